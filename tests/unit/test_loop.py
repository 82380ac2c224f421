"""The loop runner: its schedule as values, and what it makes of what `run_once` raises."""

from __future__ import annotations

import random
import threading
from typing import List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.agent.loop import Loop, Outcome, Schedule
from firstboot.errors import LocalFault, Refused, TryAgain


@given(st.floats(5, 3600), st.lists(st.sampled_from(list(Outcome)), max_size=40), st.integers())
def test_every_pause_keeps_the_contract(period: float, outcomes: list[Outcome], seed: int) -> None:
    """Success: period +-10 %; transient: at most two periods; refused: at least a period, at most an hour."""
    chance, schedule = random.Random(seed), Schedule(period)
    assert 0 <= schedule.first_delay(chance) <= period
    for outcome in outcomes:
        delay = schedule.next_delay(chance, outcome)
        if outcome is Outcome.DONE:
            assert 0.9 * period <= delay <= 1.1 * period
        elif outcome is Outcome.RETRY:
            assert 0 <= delay <= 2 * period
        else:
            assert min(period, 3600) <= delay <= 3600


@pytest.mark.parametrize(("asked", "floor"), [(0.0, 0.0), (120.0, 120.0), (3600.0, 3600.0), (3601.0, 0.0), (-5.0, 0.0)])
def test_retry_after_is_a_floor_where_it_is_believable(asked: float, floor: float) -> None:
    """Never sooner than the plane asked, and never at the one moment it named to everybody."""
    delays = {Schedule(30).next_delay(random.Random(n), Outcome.RETRY, asked) for n in range(50)}
    assert min(delays) >= floor
    assert max(delays) - min(delays) > 1


class Impatient(threading.Event):
    """A stop event that waits not at all, and is set after `turns` waits."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns, self.waits = turns, []  # type: ignore[var-annotated]

    def wait(self, timeout: Optional[float] = None) -> bool:
        self.waits.append(timeout)
        return len(self.waits) > self.turns


def run_loop(raises: List[Optional[Exception]]) -> tuple[Loop, List[str]]:
    pending = list(raises)
    crashes: List[str] = []

    def once() -> None:
        error = pending.pop(0)
        if error is not None:
            raise error

    loop = Loop("beat", once, schedule=Schedule(30.0), stop=Impatient(len(raises)), crashed=crashes.append,
                changed=lambda: None, chance=random.Random(1))
    loop.run()
    return loop, crashes


def test_a_problem_is_shown_until_the_next_success() -> None:
    """The sentence and the hint of the last failure stand in the health, and go with a success."""
    loop, crashes = run_loop([TryAgain("no route", hint="wait")])
    assert (loop.health.problem, loop.health.hint, loop.health.outcome) == ("no route", "wait", "retry")
    loop, crashes = run_loop([TryAgain("no route"), Refused("bad key"), LocalFault("disk"), None])
    assert loop.health.problem is None and loop.health.failures == 0 and not crashes
    assert loop.health.last_success_at


def test_an_unexpected_error_ends_the_process_without_values() -> None:
    """A bug is reported by type and place: its message could hold a secret."""
    _, crashes = run_loop([ValueError("bet_canary")])
    assert "ValueError" in crashes[0]
    assert "test_loop.py" in crashes[0]
    assert "bet_canary" not in crashes[0]


def test_a_stuck_loop_is_late() -> None:
    """The deadline of a loop covers its pause and its attempt, and no more."""
    loop, _ = run_loop([None])
    assert loop.health.due_by < float("inf")


