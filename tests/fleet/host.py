"""One host with all its loops, and a key that is refused for good: when does it still ask?"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

from firstboot.agent.loop import Outcome, Schedule
from firstboot.agent.pace import FIRST, Pace

# heartbeat, deployments, artifacts, key sets that could not be refreshed, reports
PERIODS_S = (30.0, 60.0, 60.0, 300.0, 300.0)


def refused_attempts(
    *, seed: int, until_s: float, periods_s: Sequence[float] = PERIODS_S, paced: bool = True
) -> list[float]:
    """The seconds of all attempts of a host that was well until its key expired in second 0."""
    chance, pace = random.Random(seed), Pace()
    schedules = [Schedule(period) for period in periods_s]
    due = [(schedule.first_delay(chance), loop) for loop, schedule in enumerate(schedules)]
    heapq.heapify(due)
    at: list[float] = []
    while due[0][0] < until_s:
        now, loop = due[0]
        pause = pace.wait_s(now, who=str(loop) if loop else FIRST) if paced else 0.0
        if not pause:
            at.append(now)
            pace.slow()
            pause = schedules[loop].next_delay(chance, Outcome.REFUSED)
        heapq.heapreplace(due, (now + pause, loop))
    return at
