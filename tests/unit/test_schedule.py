"""The agenda and its schedules as values: whatever happens to a host, on a virtual clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from firstboot.agent.schedule import (
    APART_S,
    ASKED_EVERY_S,
    FOREVER,
    Agenda,
    Ask,
    End,
    Outcome,
    Reach,
    Schedule,
    Task,
)
from tests.fleet import figures
from tests.fleet.host import TASKS, Host

NAMES = [name for name, _, _ in TASKS]
OTHERS_S = 10.0  # the longest request but the heartbeat's


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
    """Never sooner than the control plane asked, and never at the one moment it named to all."""
    delays = {Schedule(30).next_delay(random.Random(n), Outcome.RETRY, asked) for n in range(50)}
    assert min(delays) >= floor
    assert max(delays) - min(delays) > 1


REFUSALS = [
    (End(Outcome.REFUSED, reach), took_s)
    for reach in (Reach.HOST, Reach.TASK)
    for took_s in (0.0, 9.0)
]
# Nobody asks for a beat.
asks = st.lists(st.tuples(st.sampled_from(NAMES[1:]), st.sampled_from([Ask.HINT, Ask.LOCAL])))


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.integers(0, 1 << 32), asks)
def test_a_host_that_is_refused_everywhere_asks_twice_a_minute(
    seed: int, wanted: list[tuple[str, Ask]]
) -> None:
    """Whatever the refusals, and whoever asks on this host or over there at each turn."""
    chance = random.Random(seed)
    host = Host(seed, lambda task, now: chance.choice(REFUSALS))

    def between(now: float) -> None:
        for name, by in wanted:
            host.agenda.ask(name, by)

    host.run(2 * 3600.0, between=between)
    assert figures.most_in_a_minute([each.began for each in host.attempts], after_s=60.0) <= 2
    beats = [each.began for each in host.attempts if each.task == "heartbeat"]
    assert len(beats) >= 4 and len({each.task for each in host.attempts}) == len(TASKS)


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.integers(0, 1 << 32), asks, st.floats(0.0, 1.0))
def test_no_beat_is_later_than_the_longest_other_request(
    seed: int, wanted: list[tuple[str, Ask]], hanging: float
) -> None:
    """With others hanging until their deadline, at any share of them, a beat begins in time."""
    chance = random.Random(seed)

    def answer(task: Task, now: float) -> tuple[End, float]:
        if task.name == "heartbeat":
            return End(), chance.uniform(0.0, 1.0)
        if chance.random() < hanging:
            return End(Outcome.RETRY), 300.0 if task.worker == "transfer" else OTHERS_S
        return End(sent=chance.random() < 0.5), chance.uniform(0.0, OTHERS_S)

    host = Host(seed, answer)

    def between(now: float) -> None:
        for name, by in wanted:
            host.agenda.ask(name, by)

    host.run(3600.0, between=between)
    beats = [each for each in host.attempts if each.task == "heartbeat"]
    assert all(each.began - each.due <= OTHERS_S + 0.001 for each in beats)
    begins = [each.began for each in beats]
    # The period, its jitter, the beat itself, and what was in the way.
    assert all(b - a <= 1.1 * 30.0 + 1.0 + OTHERS_S for a, b in zip(begins, begins[1:]))
    assert len({each.task for each in host.attempts}) == len(TASKS)


def test_what_timed_out_goes_behind_the_others_ever_more_rarely() -> None:
    """Everything but the beat hangs: nobody is starved, and the attempts become rare."""
    hangs = End(Outcome.RETRY), OTHERS_S
    host = Host(7, lambda task, now: (End(), 0.0) if task.name == "heartbeat" else hangs)
    host.run(2 * 3600.0)
    for name, _, period_s in TASKS[1:]:
        begins = [each.began for each in host.attempts if each.task == name]
        late = [b - a for a, b in zip(begins, begins[1:])][10:]
        assert min(late) >= 2 * period_s / 3 and len(begins) >= 10, name


class Bench:
    """One task whose attempts end as told; `ask` happens in each second of each pause."""

    def __init__(self, *, period_s: float = 30.0, name: str = "artifacts") -> None:
        self.task = Task(name, "one", Schedule(period_s), 0.0, first=name == "heartbeat")
        self.agenda, self.now, self.chance = Agenda([self.task]), 0.0, random.Random(3)
        self.at: list[float] = []

    def pauses(self, *ends: End, by: Ask = Ask.NOBODY) -> list[float]:
        """Return the seconds between attempts that end so."""
        self.at = []
        for end in ends:
            while True:
                self.agenda.ask(self.task.name, by if self.at else Ask.NOBODY)
                task, until = self.agenda.take("one", self.now)
                if task is not None:
                    break
                self.now = min(until, self.now + 1.0)
            self.at.append(self.now)
            self.agenda.end(task, self.chance, self.now, end)
        return [later - earlier for earlier, later in zip(self.at, self.at[1:])]


def test_hints_are_followed_at_once_and_then_once_a_minute() -> None:
    """A control plane that hints with every answer makes a task look no more often."""
    bench = Bench(period_s=86400.0)
    assert bench.pauses(*[End()] * 5, by=Ask.HINT) == [0.0, 60.0, 60.0, 60.0]


def test_only_what_is_rationed_counts_against_the_next_hint() -> None:
    """Neither a look that was due anyway nor one for this host delays what is hinted next."""
    for by in (Ask.LOCAL, Ask.NOBODY):
        bench = Bench(period_s=40.0)
        bench.pauses(End(), End(), by=by)
        bench.agenda.ask("artifacts", Ask.HINT)
        assert bench.agenda.take("one", bench.now + 1.0)[0] is bench.task


def test_a_request_from_this_host_is_followed_at_once() -> None:
    """It ends a pause of a day."""
    assert Bench(period_s=86400.0).pauses(End(), End(), by=Ask.LOCAL) == [0.0]


@pytest.mark.parametrize("by", [Ask.HINT, Ask.LOCAL, Ask.ANEW])
def test_nothing_on_this_host_undercuts_what_the_control_plane_asked_for(by: Ask) -> None:
    """A Retry-After holds against uploads, hints and new settings."""
    (pause,) = Bench().pauses(End(Outcome.RETRY, retry_after=600.0), End(), by=by)
    assert pause >= 600.0


def test_a_back_off_ends_early_only_by_new_settings() -> None:
    """Neither uploads nor hints make a host ask sooner after a failure; a person's change does."""
    failing = [End(Outcome.RETRY)] * 12
    quiet = Bench().pauses(*failing)
    for by in (Ask.HINT, Ask.LOCAL):
        assert Bench().pauses(*failing, by=by) == pytest.approx(quiet) and sum(quiet) > 200.0
    assert max(Bench().pauses(*failing, by=Ask.ANEW)) <= 1.0


def test_who_was_refused_is_asked_for_once_a_minute_and_never_by_a_hint() -> None:
    """The scope was granted, and somebody uploads: soon; but no louder than once a minute."""
    refused = [End(Outcome.REFUSED, Reach.TASK)] * 6
    woken = Bench(period_s=3600.0).pauses(*refused, by=Ask.LOCAL)
    assert woken == [APART_S, *[ASKED_EVERY_S] * 4]
    assert min(Bench(period_s=3600.0).pauses(*refused, by=Ask.HINT)) >= 3600.0


def test_a_page_at_one_task_slows_that_task_alone() -> None:
    """What a proxy says to an upload holds up no beat; what it says to the beat holds up all."""
    page = End(Outcome.RETRY, Reach.TASK)
    for name, slow in (("artifacts", False), ("heartbeat", True)):
        bench = Bench(name=name)
        other = Task("other", "two", Schedule(30.0), 0.0)
        bench.agenda.tasks["other"] = other
        bench.pauses(page)
        began, until = bench.agenda.take("two", bench.now)
        assert (began is None and until == bench.now + APART_S) if slow else began is other
    assert min(Bench().pauses(*[page] * 10)) >= APART_S


def test_a_refusal_of_another_task_delays_no_beat_that_is_accepted() -> None:
    """One route answers 401, or a proxy 407 for the store's host: the heartbeats go on in time."""
    beat = Task("heartbeat", "a", Schedule(30.0), 0.0, first=True)
    other = Task("download", "b", Schedule(60.0), 20.0)
    agenda, chance = Agenda([beat, other]), random.Random(1)
    assert agenda.take("a", 0.0)[0] is beat
    agenda.end(beat, chance, 0.0, End())
    assert agenda.take("b", beat.due - 1.0)[0] is other
    agenda.end(other, chance, beat.due - 1.0, End(Outcome.REFUSED, Reach.HOST))
    assert agenda.take("a", beat.due)[0] is beat


def test_turns_are_taken_in_the_order_of_being_due_and_the_heartbeat_goes_first() -> None:
    """On both workers; one that is busy holds up nobody; who has nothing to send takes no turn."""
    names = {"heartbeat": "a", "one": "a", "two": "b", "three": "b"}
    tasks = {
        name: Task(name, worker, Schedule(1000.0), float(n), first=name == "heartbeat")
        for n, (name, worker) in enumerate(names.items())
    }
    tasks["heartbeat"].due = 20.0
    agenda, chance = Agenda(tasks.values()), random.Random(1)
    refused = End(Outcome.REFUSED, Reach.HOST)
    task, _ = agenda.take("a", 1.0)
    assert task is tasks["one"]
    agenda.end(task, chance, 1.0, refused)
    assert agenda.take("b", 3.0) == (None, 31.0)
    assert agenda.take("b", 31.0) == (None, 61.0)  # the heartbeat is due, and goes first
    assert agenda.take("a", 31.0)[0] is tasks["heartbeat"]
    assert agenda.take("b", 61.0)[0] is tasks["two"]  # "a" is busy
    agenda.end(tasks["heartbeat"], chance, 61.0, refused)
    agenda.end(tasks["two"], chance, 61.0, End(sent=False))
    assert agenda.take("b", 61.0)[0] is tasks["three"]  # which takes the turn that "two" had
    agenda.end(tasks["three"], chance, 62.0, End())
    tasks["one"].due = 63.0
    assert agenda.take("a", 63.0)[0] is tasks["one"]  # something was accepted


def test_a_task_on_demand_ends_with_its_success() -> None:
    """And is retried as any other until then."""
    task = Task("download", "one", Schedule(60.0), FOREVER, on_demand=True)
    agenda, chance = Agenda([task]), random.Random(1)
    assert agenda.take("one", 1e9) == (None, FOREVER)
    agenda.ask("download", Ask.ANEW)
    assert agenda.take("one", 5.0)[0] is task
    agenda.end(task, chance, 6.0, End(Outcome.RETRY))
    assert 6.0 <= task.due <= 11.0
    assert agenda.take("one", 11.0)[0] is task
    agenda.end(task, chance, 12.0, End())
    assert agenda.take("one", 1e9) == (None, FOREVER)
