"""What a plane does to one request: answers as the schedule sees them, by the second at which the
request arrives.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from email.utils import formatdate
from typing import Callable

from firstboot.agent.schedule import Outcome
from firstboot.api.connection import CONNECT_S

WALL_AT_ZERO = 1_800_000_000.0  # the virtual clock's second 0, for Retry-After as a date


@dataclass(frozen=True)
class Answer:
    """`took_s`: how long the agent waits for it; `retry_after`: the header's text."""

    outcome: Outcome
    took_s: float = 0.0
    retry_after: str | None = None


Plane = Callable[[float, int], Answer]  # (second, agent) -> Answer

WELL, FAILED, KEY_REFUSED = Answer(Outcome.DONE), Answer(Outcome.RETRY), Answer(Outcome.REFUSED)
TIMED_OUT = Answer(
    Outcome.RETRY, took_s=CONNECT_S
)  # packets are dropped: the longest wait for a connection


def well(at: float, agent: int) -> Answer:
    return WELL


def outage(begins: float, ends: float, failing: Callable[[float], Answer]) -> Plane:
    """Well, but for the seconds from `begins` to `ends`. One that waits in vain when it ends is not
    saved by that.
    """

    def plane(at: float, agent: int) -> Answer:
        return failing(at) if begins <= at < ends else WELL

    return plane


def asks_for(seconds: int) -> Callable[[float], Answer]:
    """429 with the same number of seconds for everybody."""
    return lambda at: Answer(Outcome.RETRY, retry_after=str(seconds))


def names_the_end(ends: float) -> Callable[[float], Answer]:
    """429 that names one moment to everybody, as a date."""
    return lambda at: Answer(
        Outcome.RETRY, retry_after=formatdate(WALL_AT_ZERO + ends, usegmt=True)
    )


def limited(capacity: int, plane: Plane = well) -> Plane:
    """Answers `capacity` requests in each second, and 503 to those above; requests in an outage
    cost it nothing.
    """
    answered: Counter[int] = Counter()

    def limiting(at: float, agent: int) -> Answer:
        answer = plane(at, agent)
        if answer.outcome is Outcome.DONE:
            answered[int(at)] += 1
            if answered[int(at)] > capacity:
                return FAILED
        return answer

    return limiting


def brownout(begins: float, ends: float, *, chance: random.Random) -> Plane:
    """Every second request fails."""
    return outage(begins, ends, lambda at: FAILED if chance.random() < 0.5 else WELL)


def half_expired(begins: float) -> Plane:
    """From `begins` on the keys of every second agent are refused for good."""

    def plane(at: float, agent: int) -> Answer:
        return KEY_REFUSED if agent % 2 and at >= begins else WELL

    return plane
