"""The troubles by name, each with its run: boot at 0, trouble from `BEGINS` to `ENDS`, then time to
come back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable

from tests.fleet import fleet, planes
from tests.fleet.planes import FAILED, TIMED_OUT, Plane

BEGINS, LASTS_S, AFTER_S = 300.0, 600.0, 300.0
ENDS = BEGINS + LASTS_S


@dataclass(frozen=True)
class Trouble:
    """`plane` from (agents, seed); `boots`: the trouble is the boot itself; `ends` else."""

    name: str
    plane: Callable[[int, int], Plane]
    ends: float = ENDS
    boots: bool = False

    def run(self, *, agents: int, seed: int) -> fleet.Run:
        ends = 0.0 if self.boots else self.ends
        return fleet.run(
            self.plane(agents, seed), agents=agents, until_s=ends + AFTER_S, seed=seed, ends=ends
        )


def _outage(
    name: str, failing: Callable[[float], planes.Answer], lasts_s: float = LASTS_S
) -> Trouble:
    ends = BEGINS + lasts_s
    return Trouble(name, lambda agents, seed: planes.outage(BEGINS, ends, failing), ends=ends)


def twice_the_mean(agents: int) -> int:
    return round(2 * agents / fleet.PERIOD_S)


_REFUSED = planes.outage(BEGINS, ENDS, lambda at: FAILED)

TROUBLES: dict[str, Trouble] = {
    trouble.name: trouble
    for trouble in (
        Trouble("boot", lambda agents, seed: planes.well, boots=True),
        Trouble(
            "boot, capacity twice the mean",
            lambda agents, seed: planes.limited(twice_the_mean(agents)),
            boots=True,
        ),
        _outage("outage: refused or 503", lambda at: FAILED),
        _outage("outage: timed out", lambda at: TIMED_OUT),
        _outage("outage: 429, Retry-After 30", planes.asks_for(30)),
        _outage("outage: 429, Retry-After 1", planes.asks_for(1)),
        _outage("outage: 429, a date at its end", planes.names_the_end(ENDS)),
        Trouble(
            "outage, then capacity twice the mean",
            lambda agents, seed: planes.limited(twice_the_mean(agents), _REFUSED),
        ),
        _outage("outage of 20 s", lambda at: FAILED, lasts_s=20.0),
        _outage("outage of 60 s", lambda at: FAILED, lasts_s=60.0),
        Trouble(
            "brownout: half fail",
            lambda agents, seed: planes.brownout(BEGINS, ENDS, chance=random.Random(seed + 1)),
        ),
        Trouble("half the keys expired", lambda agents, seed: planes.half_expired(BEGINS)),
    )
}
