"""One heartbeat: report this host's state, take hints (contract 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Callable

from firstboot import __version__
from firstboot.agent.schedule import Schedule
from firstboot.agent.worker import Context, Work
from firstboot.api.answers import check
from firstboot.api.messages import Heartbeat as Beat
from firstboot.api.messages import HeartbeatReply
from firstboot.base import documents, files, log
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.documents import Rule
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout

BLOCK = 4096  # contract 2.2
LARGEST = 2**52  # JSON numbers are exact up to 2^53: what is above was never ours
SHORTEST_DEADLINE_S, LONGEST_DEADLINE_S = 10.0, 30.0


@dataclass(frozen=True)
class Facts:
    """The state that a beat reports; `problems` are (code, detail)."""

    problems: tuple[tuple[str, str], ...] = ()
    deployment: Mapping[str, Any] | None = None
    signing_keys_version: int | None = None
    pending: int = 0
    quarantined: int = 0


@dataclass
class Heartbeat(Work):
    """Send beats; `schedule.period_s` follows what the control plane asks for.

    `answered` gets the hints of the reply and the skew of this host's clock in seconds (positive:
    it is ahead), None where the reply has no date.
    """

    context: Context
    schedule: Schedule
    facts: Callable[[], Facts]
    answered: Callable[[HeartbeatReply, float | None], None]

    def __post_init__(self) -> None:
        layout = self.context.layout
        self._sequence = Sequence(layout)
        self._boot_id = (files.read(layout.boot_id, limit=64) or b"").decode().strip()

    def run_once(self) -> None:
        """Send one beat; raise what `answers.check` makes of the answer."""
        facts, clock = self.facts(), self.context.clock
        beat = Beat(
            **vars(facts),
            status="degraded" if facts.problems else "ok",
            agent_version=__version__,
            boot_id=self._boot_id,
            sequence=self._sequence.next(),
            uptime_s=clock.uptime(),
            sent_at=rfc3339(clock.wall()),
        )
        limit_s = max(SHORTEST_DEADLINE_S, min(LONGEST_DEADLINE_S, self.schedule.period_s))
        answer = self.context.api.heartbeat(*self.context.who, beat, deadline_s=limit_s)
        skew = clock.wall() - answer.date if answer.date is not None else None
        check(answer, doing="heartbeat")
        hints = answer.heartbeat or HeartbeatReply()
        if hints.heartbeat_interval_s is not None:
            self.schedule.period_s = hints.heartbeat_interval_s
        self.answered(hints, skew)


_Number = Annotated[int, Rule(lambda n: n <= LARGEST, "a sequence number")]


@dataclass(frozen=True)
class _State:
    sequence_reserved: _Number


class Sequence:
    """Heartbeat numbers that strictly increase across restarts and crashes; gaps are allowed.

    Reserved on disk in blocks, so that a beat costs no fsync.
    """

    def __init__(self, layout: Layout) -> None:
        self._path = layout.agent_state
        self._next = 0
        self._reserved = 0

    def next(self) -> int:
        """Return the next number, reserving another block when needed."""
        if self._next >= self._reserved:
            start = max(self._reserved, self._stored())
            try:
                files.write_json(self._path, {"v": 1, "sequence_reserved": start + BLOCK})
            except LocalFault as error:
                # A beat is to report a full disk: until there is room it is numbered by the clock,
                # which is far above.
                log.warning(str(error), hint=error.hint)
                self._next = self._reserved = max(self._next, start, int(Clock().wall())) + 1
                return self._next
            self._next, self._reserved = start, start + BLOCK
        self._next += 1
        return self._next

    def _stored(self) -> int:
        try:
            state = documents.read(self._path, _State)
        except Corrupt as error:
            log.warning(str(error), kept_as=files.set_aside(self._path))
            # Far above any number that was used, and the control plane only asks that it grows:
            # a beat every 5 s, the shortest period, since 1970 is fewer than the seconds since.
            return int(Clock().wall())
        return state.sequence_reserved if state is not None else 0
