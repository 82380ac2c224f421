"""Fetch newer key sets, which the activator judges (contract 2.5).

Once a day, counted across reboots; at once where there is no set yet, after ``trust --reset``, on
the control plane's hint, and when a deployment names an unknown key. A failed refresh changes
nothing: the trusted set stays trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

from firstboot.agent.schedule import Schedule
from firstboot.agent.submit import Inbox
from firstboot.agent.worker import Context, Work
from firstboot.api.answers import check
from firstboot.api.messages import HeartbeatReply
from firstboot.base import documents, files
from firstboot.base.clock import Chance, from_rfc3339, rfc3339
from firstboot.base.documents import Time
from firstboot.base.errors import LocalFault, TryAgain
from firstboot.base.layout import KEY_SETS
from firstboot.exchange import verdicts

DOING = "signing keys"
PERIOD_S = 86400.0
# The period by which a refresh that failed is retried; without any set no deployment can be
# verified.
RETRY_S, URGENT_S = 300.0, 60.0
# So many seconds keep hosts apart whose refresh fell due while they were off.
SPREAD_S = 600.0


@dataclass(frozen=True)
class _Kept:
    looked_at: Time


@dataclass
class KeySets(Work):
    """Refresh the key sets; `first_delay` and `schedule` make it daily across reboots."""

    context: Context
    schedule: Schedule
    inbox: Inbox
    # The hint and the trusted version, when we last looked.
    _hint: int | None = None
    _dealt: tuple[int, int] | None = None
    _version: int | None = None  # that was trusted when we last looked or were told to

    def first_delay(self, chance: Chance, *, splay_s: float) -> float:
        """Return the seconds until the first look.

        It comes with the first beat where there is no set.
        """
        try:
            kept = documents.read(self.context.layout.kept_key_sets, _Kept)
            if kept is None or not verdicts.keys_version(self.context.layout):
                return splay_s
        except LocalFault:
            return splay_s
        left = from_rfc3339(kept.looked_at) + PERIOD_S - self.context.clock.wall()
        # A clock that jumped must not put it off.
        return splay_s + chance.uniform(0.0, SPREAD_S) + (left if 0 <= left <= PERIOD_S else 0.0)

    def run_once(self) -> None:
        """Fetch what is newer, and have it judged."""
        version = self._version = verdicts.keys_version(self.context.layout)
        self.schedule.period_s = RETRY_S if version else URGENT_S
        answer = self.context.api.signing_keys(*self.context.who, since=version)
        self.inbox.heard(answer.date)
        check(answer, doing=DOING)
        if answer.key_sets is None:
            said = answer.complaint or "the answer is empty"
            raise TryAgain(f"{DOING}: the control plane answered {answer.status}, and {said}")
        # An answer without sets too: it clears what an earlier one had refused.
        self.inbox.put(KEY_SETS, answer.body)
        self.inbox.request()
        looked = {"v": 1, "looked_at": rfc3339(self.context.clock.wall())}
        files.write_json(self.context.layout.kept_key_sets, looked)
        if self._hint is not None:
            self._dealt = (self._hint, verdicts.keys_version(self.context.layout))
        self.schedule.period_s = PERIOD_S

    def hinted(self, hints: HeartbeatReply) -> bool:
        """Return True when another version is named and not looked at."""
        hint, version = hints.signing_keys_version, self._trusted()
        if hint is None or version is None or hint == version or self._dealt == (hint, version):
            return False
        self._hint = hint
        return True

    def nudged(self) -> bool:
        """Return True when ``trust --reset`` took the trusted set away.

        Each activation calls this too, and may have brought the first set since we looked.
        """
        before, version = self._version, self._trusted()
        if version is not None:
            self._version = version
        return version == 0 and bool(before)

    def _trusted(self) -> int | None:
        try:
            return verdicts.keys_version(self.context.layout)
        except LocalFault:
            return None
