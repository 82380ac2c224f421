"""The loop runner: its schedule as values, and what it makes of what `run_once` raises."""

from __future__ import annotations

import random
import threading
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.agent.loop import Loop, Outcome, Schedule
from firstboot.agent.pace import APART_S, MISSED_S, Pace
from firstboot.api.answers import NotThePlane
from firstboot.base.clock import Clock
from firstboot.base.errors import LocalFault, Refused, TryAgain


@given(st.floats(5, 3600), st.lists(st.sampled_from(list(Outcome)), max_size=40), st.integers())
def test_every_pause_keeps_the_contract(period: float, outcomes: list[Outcome], seed: int) -> None:
    """Success: period +-10 %; transient: at most two periods; refused: at least a period, at most
    an hour.
    """
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


@pytest.mark.parametrize(
    ("asked", "floor"), [(0.0, 0.0), (120.0, 120.0), (3600.0, 3600.0), (3601.0, 0.0), (-5.0, 0.0)]
)
def test_retry_after_is_a_floor_where_it_is_believable(asked: float, floor: float) -> None:
    """Never sooner than the plane asked, and never at the one moment it named to everybody."""
    delays = {Schedule(30).next_delay(random.Random(n), Outcome.RETRY, asked) for n in range(50)}
    assert min(delays) >= floor
    assert max(delays) - min(delays) > 1


class Moment(Clock):
    """A clock that moves only when somebody waits on its event."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Wait(threading.Event):
    """An event whose waits pass at once: the clock jumps instead; `when` is called before each, and
    may end it all.
    """

    def __init__(self, clock: Moment, when: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.clock, self.when = clock, when

    def wait(self, timeout: float | None = None) -> bool:
        before = self.clock.now
        self.when()
        self.clock.now = before + (0.0 if self.is_set() else timeout or 0.0)
        return True


def run_loop(raises: list[Exception | None]) -> tuple[Loop, list[str]]:
    pending, crashes, stop, clock = list(raises), [], threading.Event(), Moment()  # type: ignore[var-annotated]

    def once() -> None:
        error = pending.pop(0)
        if not pending:
            stop.set()
        if error is not None:
            raise error

    loop = Loop(
        "beat",
        once,
        schedule=Schedule(30.0),
        stop=stop,
        crashed=crashes.append,
        changed=lambda: None,
        clock=clock,
        chance=random.Random(1),
        nudged=Wait(clock),
    )
    loop.run()
    return loop, crashes


def test_hints_are_followed_at_once_and_then_once_a_minute() -> None:
    """A plane that hints with every answer makes a loop look once a minute, and no more often."""
    clock, stop, at = Moment(), threading.Event(), []  # type: ignore[var-annotated]

    def once() -> None:
        at.append(clock.now)
        loop.hint()
        if len(at) == 5:
            stop.set()

    loop = Loop(
        "keys",
        once,
        schedule=Schedule(86400.0),
        stop=stop,
        crashed=lambda _: None,
        changed=lambda: None,
        clock=clock,
        first_delay_s=500.0,
        nudged=Wait(clock),
    )
    loop.hint()
    loop.run()
    assert at[0] == 1000.0  # not after 500 s
    assert {later - earlier for earlier, later in zip(at, at[1:])} == {60.0}


def test_a_wake_from_this_host_is_followed_at_once() -> None:
    """`wake` ends a pause of an hour; nothing else does."""
    clock, stop, at = Moment(), threading.Event(), []  # type: ignore[var-annotated]

    def once() -> None:
        at.append(clock.now)
        if len(at) == 2:
            stop.set()
        raise Refused("no scope")

    loop = Loop(
        "spool",
        once,
        schedule=Schedule(3600.0),
        stop=stop,
        crashed=lambda _: None,
        changed=lambda: None,
        clock=clock,
        first_delay_s=0.0,
        nudged=Wait(clock, lambda: loop.wake()),
    )
    loop.run()
    assert at == [1000.0, 1000.0]


def test_a_problem_is_shown_until_the_next_success() -> None:
    """The sentence and the hint of the last failure stand in the health, and go with a success."""
    loop, crashes = run_loop([TryAgain("no route", hint="wait")])
    assert (loop.health.problem, loop.health.hint, loop.health.outcome) == (
        "no route",
        "wait",
        "retry",
    )
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


def test_refused_loops_take_turns_and_hold_up_nobody() -> None:
    """Every route refused: two requests in any minute, whoever makes them; a loop that is not
    refused goes when it is due.
    """
    pace = Pace()
    assert pace.wait_s(0.0, refused=True) == 0.0
    assert pace.wait_s(1.0, refused=True) == APART_S - 1.0
    assert pace.wait_s(1.0) == 0.0
    assert pace.wait_s(APART_S, refused=True) == 0.0
    pace.slow()
    assert pace.wait_s(APART_S + 1.0) == APART_S - 1.0


class Busy(Wait):
    """An event whose waits take a second where something happens."""

    def wait(self, timeout: float | None = None) -> bool:
        begun = self.clock.now
        super().wait(timeout)
        if self.is_set():
            self.clock.now = begun + min(1.0, timeout or 0.0)
        return True


class Bench:
    """A loop that is not run in a thread: `step` is one attempt that ends as told, after whatever
    pause it makes.
    """

    def __init__(
        self, name: str = "artifacts", pace: Pace | None = None, period_s: float = 30.0
    ) -> None:
        self.clock, self.at, self.ends = Moment(), [], []  # type: ignore[var-annotated]
        self.events: list[Callable[[Loop], None]] = []
        self.stop = threading.Event()
        self.loop = Loop(
            name,
            self.once,
            schedule=Schedule(period_s),
            stop=self.stop,
            crashed=self.crashed,
            changed=lambda: None,
            clock=self.clock,
            first_delay_s=0.0,
            chance=random.Random(3),
            pace=pace,
            nudged=Busy(self.clock, self.during),
        )

    def crashed(self, message: str) -> None:
        raise AssertionError(message)

    def during(self) -> None:
        if self.events and self.at:
            self.events.pop(0)(self.loop)

    def once(self) -> bool | None:
        self.at.append(self.clock.now)
        end = self.ends.pop(0)
        if not self.ends:
            self.stop.set()
        if isinstance(end, Exception):
            raise end
        return end if isinstance(end, bool) else None

    def pauses(
        self, *ends: object, events: list[Callable[[Loop], None]] | None = None
    ) -> list[float]:
        """The seconds between attempts that end so, while `events` happen one at a time in the
        pauses.
        """
        self.ends, self.events = list(ends), list(events or [])
        self.stop.clear()
        self.loop.run()
        return [later - earlier for earlier, later in zip(self.at, self.at[1:])]


def anyhow(loop: Loop) -> None:
    loop.wake()
    loop.hint()


def settings(loop: Loop) -> None:
    loop.wake(anew=True)


@pytest.mark.parametrize("event", [anyhow, settings])
def test_nothing_on_this_host_undercuts_what_the_plane_asked_for(
    event: Callable[[Loop], None],
) -> None:
    """A Retry-After holds against uploads, hints and new settings."""
    (pause,) = Bench().pauses(TryAgain("429", retry_after=600.0), None, events=[event] * 5)
    assert pause >= 600.0


def test_a_back_off_ends_early_only_by_new_settings() -> None:
    """Neither uploads nor hints make a host ask again sooner after a failure; a person who changed
    something does.
    """
    failing = [TryAgain("cut")] * 12
    quiet = Bench().pauses(*failing, None)
    assert (
        Bench().pauses(*failing, None, events=[anyhow] * 10_000) == pytest.approx(quiet)
        and sum(quiet) > 200.0
    )
    assert max(Bench().pauses(*failing, None, events=[settings] * 1000)) <= 1.0


def test_who_was_refused_is_woken_once_a_minute_and_never_by_a_hint() -> None:
    """The scope was granted, and somebody uploads: soon; but a shell that uploads for ever is no
    louder than once a minute.
    """
    refused = [Refused("no scope")] * 6
    woken = Bench(period_s=3600.0).pauses(*refused, events=[Loop.wake] * 1000)
    assert woken == [1.0, *[60.0] * 4]
    hinted = Bench(period_s=3600.0).pauses(*refused, events=[Loop.hint] * 1000)
    assert min(hinted) >= 3600.0


def test_an_attempt_that_asked_nothing_is_no_success() -> None:
    """`last_success_at` says when the plane last took something."""
    bench = Bench()
    bench.pauses(False)
    assert bench.loop.health.last_success_at is None and bench.loop.health.outcome == "done"
    bench.pauses(None)
    assert bench.loop.health.last_success_at is not None


def test_a_page_at_one_loop_slows_that_loop_alone() -> None:
    """What a proxy says to an upload holds up no heartbeat; what it says to the heartbeat holds up
    all.
    """
    pace = Pace()
    Bench("artifacts", pace).pauses(NotThePlane("413 with a page"))
    assert [pace.wait_s(now, who="heartbeat") for now in (1000.0, 1001.0)] == [0.0, 0.0]
    again = Bench("artifacts", pace).pauses(*[NotThePlane("413 with a page")] * 10)
    assert min(again[1:]) >= APART_S - 0.001
    Bench("heartbeat", pace).pauses(NotThePlane("a captive portal"))
    now = 10_000.0
    assert (
        pace.wait_s(now, who="deployments") == 0.0 and pace.wait_s(now, who="artifacts") == APART_S
    )


def test_turns_are_taken_in_the_order_of_asking_and_the_heartbeat_goes_first() -> None:
    """Whoever asks again and again gains nothing; two requests in any minute; who does not come
    loses its turn.
    """
    pace = Pace()
    pace.slow()
    assert pace.wait_s(0.0, who="artifacts") == 0.0
    assert pace.wait_s(1.0, who="deployments") == APART_S - 1.0
    assert pace.wait_s(2.0, who="artifacts") == 2 * APART_S - 2.0
    assert pace.wait_s(3.0, who="heartbeat") == APART_S - 3.0
    assert (
        pace.wait_s(APART_S, who="artifacts") == 2 * APART_S
        and pace.wait_s(APART_S, who="deployments") == APART_S
    )
    assert pace.wait_s(APART_S, who="heartbeat") == 0.0
    assert pace.wait_s(2 * APART_S, who="artifacts") == APART_S
    assert pace.wait_s(2 * APART_S + MISSED_S + 1.0, who="artifacts") == 0.0


def test_a_heartbeat_is_not_starved_by_whoever_is_woken_for_ever() -> None:
    """All refused, one loop asks at every second: the heartbeat has its turn within half a minute
    of wanting it.
    """
    pace, beats, others = Pace(), [], []  # type: ignore[var-annotated]
    pace.slow()
    due = 5.0
    for now in map(float, range(1800)):
        if pace.wait_s(now, who="artifacts") <= 0:
            others.append(now)
        if now >= due and pace.wait_s(now, who="heartbeat") <= 0:
            assert now - due <= APART_S
            beats.append(now)
            due = now + 100.0
    assert len(beats) >= 13 and others
    turns = sorted(beats + others)
    assert min(later - earlier for earlier, later in zip(turns, turns[1:])) >= APART_S
