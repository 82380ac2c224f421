"""Fetch newer key sets, which the activator judges (contract 2.5).

Once a day, counted across reboots; at once where there is no set yet, after ``trust --reset``, on
the control plane's hint, and when a deployment names an unknown key. A failed refresh changes
nothing: the trusted set stays trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

from firstboot.agent.schedule import Schedule
from firstboot.agent.submit import Inbox
from firstboot.agent.worker import Work
from firstboot.api.answers import check
from firstboot.api.client import PlaneApi
from firstboot.api.messages import HeartbeatReply
from firstboot.base import documents, files
from firstboot.base.clock import Chance, Clock, from_rfc3339, rfc3339
from firstboot.base.documents import Time
from firstboot.base.errors import LocalFault, TryAgain
from firstboot.base.layout import KEY_SETS, Layout
from firstboot.exchange import verdicts
from firstboot.exchange.handover import Handover

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


class KeySets(Work):
    """Refresh the key sets; `first_delay` and `schedule` make it daily across reboots."""

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        api: PlaneApi,
        *,
        schedule: Schedule,
        inbox: Inbox,
        clock: Clock,
    ) -> None:
        self._layout, self._handed, self._api = layout, handed, api
        self.schedule = schedule
        self._inbox, self._clock = inbox, clock
        # The hint and the trusted version, when we last looked.
        self._hint: int | None = None
        self._dealt: tuple[int, int] | None = None
        self._version: int | None = None

    def first_delay(self, chance: Chance, *, splay_s: float) -> float:
        """Return the seconds until the first look: with the first beat where there is no set."""
        try:
            kept = documents.read(self._layout.kept_key_sets, _Kept)
            if kept is None or not verdicts.keys_version(self._layout):
                return splay_s
        except LocalFault:
            return splay_s
        left = from_rfc3339(kept.looked_at) + PERIOD_S - self._clock.wall()
        # A clock that jumped must not put it off.
        return splay_s + chance.uniform(0.0, SPREAD_S) + (left if 0 <= left <= PERIOD_S else 0.0)

    def run_once(self) -> None:
        """Fetch what is newer, and have it judged."""
        version = self._version = verdicts.keys_version(self._layout)
        self.schedule.period_s = RETRY_S if version else URGENT_S
        answer = self._api.signing_keys(self._handed.agent_id, self._handed.api_key, since=version)
        self._inbox.heard(answer.date)
        check(answer, doing=DOING)
        if answer.key_sets is None:
            said = answer.complaint or "the answer is empty"
            raise TryAgain(f"{DOING}: the control plane answered {answer.status}, and {said}")
        if answer.key_sets:
            self._inbox.put(KEY_SETS, answer.body)
            self._inbox.request()
        files.write_json(
            self._layout.kept_key_sets, {"v": 1, "looked_at": rfc3339(self._clock.wall())}
        )
        if self._hint is not None:
            self._dealt = (self._hint, verdicts.keys_version(self._layout))
        self.schedule.period_s = PERIOD_S

    def hinted(self, hints: HeartbeatReply) -> bool:
        """Return True when another version is named than this host's, which was not looked at."""
        hint, version = hints.signing_keys_version, self._trusted()
        if hint is None or version is None or hint == version or self._dealt == (hint, version):
            return False
        self._hint = hint
        return True

    def nudged(self) -> bool:
        """Return True when ``trust --reset`` took the trusted set away."""
        return self._trusted() == 0 and bool(self._version)

    def _trusted(self) -> int | None:
        try:
            return verdicts.keys_version(self._layout)
        except LocalFault:
            return None
