"""The fetching side of key sets (contract 2.5): what is newer than the set in force goes to the activator, which judges it.

Once a day, counted across reboots; at once where there is no set yet, after ``trust --reset``, on the plane's hint, and when
a deployment names an unknown key. A failed refresh changes nothing: the set in force stays in force.
"""

from __future__ import annotations

from typing import Any, Callable

from firstboot.agent.inbox import Inbox
from firstboot.agent.loop import Schedule
from firstboot.agent.problems import Problem
from firstboot.api.answers import check
from firstboot.api.client import PlaneApi
from firstboot.api.messages import HeartbeatReply
from firstboot.base import files
from firstboot.base.clock import Chance, Clock, from_rfc3339, rfc3339
from firstboot.base.errors import LocalFault, TryAgain
from firstboot.base.layout import KEY_SETS, Layout
from firstboot.exchange import verdicts
from firstboot.exchange.handover import Handover

DOING = "signing keys"
PERIOD_S = 86400.0
# The period by which a refresh that failed is tried again; without any set no deployment can be verified.
RETRY_S, URGENT_S = 300.0, 60.0
# So many seconds keep hosts apart whose refresh fell due while they were off.
SPREAD_S = 600.0


class KeySetsLoop:
    """`first_delay` and `schedule` make it daily whenever the host was booted."""

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        api: PlaneApi,
        *,
        schedule: Schedule,
        inbox: Inbox,
        alive: Callable[..., None],
        clock: Clock,
    ) -> None:
        self._layout, self._handed, self._api = layout, handed, api
        self.schedule = schedule
        self._inbox, self._alive, self._clock = inbox, alive, clock
        self._kept = layout.kept_key_sets
        # What the plane hinted and what was in force, when we last looked.
        self._hint: int | None = None
        self._dealt: tuple[int, int] | None = None
        self._version: int | None = None
        self._at_it = False

    def first_delay(self, chance: Chance, *, splay_s: float) -> float:
        """Seconds until the first look: with the first beat where there is no set, else when the last one is a day old."""
        try:
            stored = files.read_json(self._kept) or {}
            if not verdicts.keys_version(self._layout):
                return splay_s
            left = from_rfc3339(str(stored.get("looked_at"))) + PERIOD_S - self._clock.wall()
        except (LocalFault, ValueError, OverflowError):
            return splay_s
        # A clock that jumped must not put it off.
        return splay_s + chance.uniform(0.0, SPREAD_S) + (left if 0 <= left <= PERIOD_S else 0.0)

    def run_once(self) -> None:
        """Fetch what is newer, and have it judged."""
        self._at_it = True
        try:
            self._refresh()
        finally:
            self._at_it = False

    def _refresh(self) -> None:
        version = self._version = verdicts.keys_version(self._layout)
        self.schedule.period_s = RETRY_S if version else URGENT_S
        hint = self._hint
        answer = self._api.signing_keys(self._handed.agent_id, self._handed.api_key, since=version)
        self._inbox.heard(answer.date)
        check(answer, doing=DOING)
        if answer.key_sets is None:
            said = answer.complaint or "the answer is empty"
            raise TryAgain(f"{DOING}: the plane answered {answer.status}, and {said}")
        if answer.key_sets:
            self._inbox.put(KEY_SETS, answer.body)
            self._inbox.request(self._alive)
        files.write_json(self._kept, {"v": 1, "looked_at": rfc3339(self._clock.wall())})
        if hint is not None:
            self._dealt = (hint, verdicts.keys_version(self._layout))
        self.schedule.period_s = PERIOD_S
        self._api.rest()

    def problems(self) -> list[Problem]:
        """None of its own: what the activator refused stands in the key ring, and `condition` says it."""
        return []

    def shown(self) -> dict[str, Any]:
        return {}

    def hinted(self, hints: HeartbeatReply) -> bool:
        """Whether the plane has another version than this host, and did not say so before we last looked.

        While we look, a hint may be about what we are just fetching: one that is not comes again with the next beat.
        """
        hint, version = hints.signing_keys_version, self._in_force()
        if (
            self._at_it
            or hint is None
            or version is None
            or hint == version
            or self._dealt == (hint, version)
        ):
            return False
        self._hint = hint
        return True

    def nudged(self) -> bool:
        """Whether ``trust --reset`` took the set in force away."""
        version = self._in_force()
        return version == 0 and bool(self._version)

    def _in_force(self) -> int | None:
        try:
            return verdicts.keys_version(self._layout)
        except LocalFault:
            return None
