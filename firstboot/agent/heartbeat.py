"""One heartbeat: say how this host is, and take the plane's hints (contract 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from firstboot import __version__
from firstboot.agent.loop import Schedule
from firstboot.agent.state import Sequence
from firstboot.api.answers import check
from firstboot.api.client import PlaneApi
from firstboot.api.messages import Heartbeat as Beat
from firstboot.api.messages import HeartbeatReply
from firstboot.base import files
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.layout import Layout
from firstboot.exchange.handover import Handover


@dataclass(frozen=True)
class Facts:
    """What a beat says of this host beside itself; `problems` are (code, detail), never a secret."""

    problems: tuple[tuple[str, str], ...] = ()
    deployment: Mapping[str, Any] | None = None
    signing_keys_version: int | None = None
    pending: int = 0
    quarantined: int = 0


class HeartbeatLoop:
    """`run_once` sends one beat; `schedule.period_s` follows what the plane asks for.

    `answered` gets the plane's hints and the skew of this host's clock in seconds (positive: it is ahead), None where
    the reply has no date.
    """

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        api: PlaneApi,
        *,
        schedule: Schedule,
        facts: Callable[[], Facts],
        answered: Callable[[HeartbeatReply, float | None], None],
        clock: Clock,
    ) -> None:
        self.schedule = schedule
        self._handed = handed
        self._api = api
        self._facts = facts
        self._answered = answered
        self._clock = clock
        self._sequence = Sequence(layout)
        self._boot_id = (files.read(layout.boot_id, limit=64) or b"").decode().strip()

    def run_once(self) -> None:
        """Send one beat; raise what `answers.check` makes of the answer."""
        facts = self._facts()
        beat = Beat(
            status="degraded" if facts.problems else "ok",
            agent_version=__version__,
            boot_id=self._boot_id,
            sequence=self._sequence.next(),
            uptime_s=self._clock.uptime(),
            sent_at=rfc3339(self._clock.wall()),
            problems=facts.problems,
            pending=facts.pending,
            quarantined=facts.quarantined,
            deployment=facts.deployment,
            signing_keys_version=facts.signing_keys_version,
        )
        answer = self._api.heartbeat(self._handed.agent_id, self._handed.api_key, beat)
        skew = self._clock.wall() - answer.date if answer.date is not None else None
        check(answer, doing="heartbeat")
        hints = answer.heartbeat or HeartbeatReply()
        if hints.heartbeat_interval_s is not None:
            self.schedule.period_s = hints.heartbeat_interval_s
        self._answered(hints, skew)
