"""One heartbeat: say how this host is, and take the plane's hints (contract 2.2)."""

from __future__ import annotations

from typing import Callable, Dict, List

from firstboot import __version__, files
from firstboot.agent.answers import check
from firstboot.agent.loop import Schedule
from firstboot.agent.state import Sequence
from firstboot.api import PlaneApi
from firstboot.clock import Clock, rfc3339
from firstboot.handover import Handover
from firstboot.layout import Layout
from firstboot.wire import Heartbeat as Beat

Problems = Callable[[], List[Dict[str, str]]]


class HeartbeatLoop:
    """`run_once` sends one beat; `schedule.period_s` follows what the plane asks for."""

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        api: PlaneApi,
        *,
        schedule: Schedule,
        problems: Problems,
        clock: Clock,
    ) -> None:
        self.schedule = schedule
        self._handed = handed
        self._api = api
        self._problems = problems
        self._clock = clock
        self._sequence = Sequence(layout)
        self._boot_id = (files.read(layout.boot_id, limit=64) or b"").decode().strip()

    def run_once(self) -> None:
        """Send one beat; raise what `answers.check` makes of the answer."""
        # The beat that reports a problem must not count its own earlier failure as one.
        problems = [problem for problem in self._problems() if not problem["code"].startswith("heartbeat_")]
        beat = Beat(
            status="degraded" if problems else "ok",
            agent_version=__version__,
            boot_id=self._boot_id,
            sequence=self._sequence.next(),
            uptime_s=self._clock.uptime(),
            sent_at=rfc3339(self._clock.wall()),
            problems=tuple((problem["code"], problem["detail"]) for problem in problems),
        )
        answer = self._api.heartbeat(self._handed.agent_id, self._handed.api_key, beat)
        check(answer, doing="heartbeat")
        hints = answer.heartbeat
        if hints is not None and hints.heartbeat_interval_s is not None:
            self.schedule.period_s = hints.heartbeat_interval_s
