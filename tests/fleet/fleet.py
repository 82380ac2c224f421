"""The run: a heap of next attempts, and the real schedule between one attempt and the next."""

from __future__ import annotations

import heapq
import random
from array import array
from dataclasses import dataclass, field

from firstboot.agent.schedule import Outcome, Schedule
from firstboot.api import messages
from tests.fleet.planes import WALL_AT_ZERO, Plane

PERIOD_S = 30.0


@dataclass
class Run:
    """What was seen: when each request arrived and what became of it; when each agent was first
    answered after `ends`.
    """

    agents: int
    until_s: float
    period_s: float = PERIOD_S
    arrivals: array[float] = field(default_factory=lambda: array("d"))
    failed: array[float] = field(default_factory=lambda: array("d"))
    back: dict[int, float] = field(default_factory=dict)

    @property
    def mean_per_s(self) -> float:
        """The arrivals a second of a fleet that is well: what peaks are measured by."""
        return self.agents / self.period_s


def run(plane: Plane, *, agents: int, until_s: float, seed: int, ends: float = 0.0) -> Run:
    """All agents boot in second 0 and beat until `until_s`."""
    chance = random.Random(seed)
    seen = Run(agents, until_s)
    schedules = [Schedule(PERIOD_S) for _ in range(agents)]
    due = [(schedule.first_delay(chance), agent) for agent, schedule in enumerate(schedules)]
    heapq.heapify(due)
    while due and due[0][0] < until_s:
        at, agent = due[0]
        answer = plane(at, agent)
        seen.arrivals.append(at)
        if answer.outcome is not Outcome.DONE:
            seen.failed.append(at)
        elif at >= ends:
            seen.back.setdefault(agent, at - ends)
        over = at + answer.took_s
        asked = messages.retry_after(answer.retry_after, now=WALL_AT_ZERO + over)
        heapq.heapreplace(
            due, (over + schedules[agent].next_delay(chance, answer.outcome, asked), agent)
        )
    return seen
