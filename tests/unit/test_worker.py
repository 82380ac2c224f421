"""The worker: what it makes of what `run_once` raises, what it says, and how it is woken."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Callable

import pytest

from firstboot.agent.schedule import Agenda, Ask, Outcome, Schedule
from firstboot.agent.worker import GRACE_S, Context, Crew, Job, Work, Worker
from firstboot.api.answers import KeyRefused, NotThePlane
from firstboot.api.connection import ProxyRefused
from firstboot.base.clock import Clock
from firstboot.base.errors import LocalFault, Refused, TryAgain
from firstboot.base.layout import Layout
from tests.unit.test_deployments_loop import HANDED


class Moment(Clock):
    """A clock that moves only when the worker waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_800_000_000.0 + self.now


class Wait(threading.Event):
    """An event whose waits pass at once: the clock jumps instead; `during` is called before."""

    def __init__(self, clock: Moment) -> None:
        super().__init__()
        self.clock = clock
        self.during: Callable[[float], None] = lambda pause: None

    def wait(self, timeout: float | None = None) -> bool:
        self.during(timeout or 0.0)
        self.clock.now += 0.0 if self.is_set() else timeout or 0.0
        return True


class Does(Work):
    """Ends its attempts as told, the last one with the worker."""

    def __init__(self, scene: Scene, *ends: object) -> None:
        self.scene, self.ends, self.at, self.has_news = scene, list(ends), [], False  # type: ignore[var-annotated]

    def run_once(self) -> bool | None:
        self.at.append(self.scene.clock.now)
        end = self.ends.pop(0)
        if not self.ends:
            self.scene.shared.stop.set()
        if isinstance(end, Exception):
            raise end
        return end if isinstance(end, bool) else None

    def nudged(self) -> bool:
        return self.has_news


class Scene:
    """One worker that is run in this thread, with one task."""

    def __init__(self, tmp_path: Path, *ends: object, name: str = "reports") -> None:
        self.clock = Moment()
        self.crashes: list[str] = []
        self.changes = 0
        self.shared = Crew(self.crashes.append, self.changed, Agenda(), {})
        self.event = Wait(self.clock)
        api: Any = None
        context = Context(Layout(tmp_path), HANDED, api, self.clock)
        self.worker = Worker("control", self.shared, context)
        self.worker._woken = self.event
        self.work = Does(self, *ends)
        self.worker.add(name, self.work, Schedule(30.0), 5.0, first=name == "heartbeat")

    def changed(self) -> None:
        self.changes += 1

    def run(self) -> Job:
        self.worker.run()
        (job,) = self.shared.jobs.values()
        return job


def test_a_problem_is_shown_until_the_next_success(tmp_path: Path) -> None:
    """The sentence and the hint of the last failure, and the hint of its kind."""
    job = Scene(tmp_path, TryAgain("no route", hint="wait")).run()
    assert (job.problem, job.hint, job.task.outcome) == ("no route", "wait", Outcome.RETRY)
    scene = Scene(
        tmp_path, TryAgain("no route"), Refused("bad key"), LocalFault("disk"), TryAgain("x"), None
    )
    job = scene.run()
    assert job.problem is None and job.task.schedule.failures == 0 and not scene.crashes
    assert job.last_success_at == job.last_attempt_at and scene.changes == 5
    for error in (TryAgain("x"), Refused("x")):
        assert Scene(tmp_path, error).run().hint


def test_the_journal_hears_of_a_trouble_as_its_pauses_grow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """When it begins, when it changes, as its pauses grow, and when it is over; not at each try."""
    Scene(tmp_path, *[TryAgain("no route")] * 40, TryAgain("refused"), None, None).run()
    lines = capfd.readouterr().err.splitlines()
    first = [line for line in lines if "no route" in line]
    assert 2 <= len(first) <= 7 and "next_in_s" in first[0]
    assert sum("refused" in line for line in lines) == 1
    assert sum("works again" in line for line in lines) == 1


def test_an_unexpected_error_ends_the_process_without_values(tmp_path: Path) -> None:
    """A bug is reported by type and place: its message could hold a secret."""
    scene = Scene(tmp_path, ValueError("bet_canary"))
    scene.run()
    assert "ValueError" in scene.crashes[0] and "test_worker.py" in scene.crashes[0]
    assert "bet_canary" not in scene.crashes[0]


def test_an_attempt_that_asked_nothing_is_no_success(tmp_path: Path) -> None:
    """`last_success_at` says when the control plane last took something; nothing is published."""
    scene = Scene(tmp_path, False, False)
    job = scene.run()
    assert job.last_success_at is None and job.task.outcome is Outcome.DONE and not scene.changes
    scene = Scene(tmp_path, TryAgain("x"), False)
    scene.run()
    assert scene.changes == 2  # the problem is over


@pytest.mark.parametrize(
    ("error", "name", "turns"),
    [
        (KeyRefused("401"), "reports", True),
        (ProxyRefused("407"), "reports", True),
        (Refused("403"), "reports", False),
        (NotThePlane("a page"), "reports", False),
        (NotThePlane("a page"), "heartbeat", True),
        (TryAgain("503"), "heartbeat", False),
        (LocalFault("disk"), "reports", False),
    ],
)
def test_who_takes_turns_after_what(
    tmp_path: Path, error: Exception, name: str, turns: bool
) -> None:
    """A refused key, and a proxy's answer to the heartbeat, concern the whole host."""
    scene = Scene(tmp_path, error, name=name)
    other = Does(scene, None)
    scene.worker.add("other", other, Schedule(30.0), 5.0)
    scene.shared.agenda.tasks["other"].outcome = Outcome.DONE
    scene.worker.run()
    task = scene.shared.agenda.tasks["other"]
    expected = scene.shared.agenda.when(task, scene.clock.now)
    assert expected == scene.clock.now + (30.0 if turns else 0.0)


def test_its_deadline_covers_its_pause_and_its_attempt(tmp_path: Path) -> None:
    """A long attempt that says nothing is late; one that makes progress is not."""
    scene = Scene(tmp_path, None, None)
    pauses = []
    scene.event.during = lambda pause: pauses.append((pause, scene.worker.due_by - scene.clock.now))
    scene.run()
    assert pauses and all(left == pause + GRACE_S for pause, left in pauses)
    assert scene.worker.due_by == scene.clock.now + GRACE_S
    scene.worker.alive(7.0)
    assert scene.worker.due_by == scene.clock.now + 7.0 + GRACE_S


def test_a_nudge_runs_what_has_something_to_do(tmp_path: Path) -> None:
    """A change on this host, of which each task knows whether it concerns it."""
    scene = Scene(tmp_path, None, None)
    scene.work.has_news = True
    scene.event.during = lambda pause: scene.worker.nudge()
    scene.run()
    assert scene.work.at == [1000.0, 1000.0]
    scene = Scene(tmp_path, None, None)
    scene.event.during = lambda pause: scene.worker.nudge() if scene.clock.now < 1001 else None
    nudges = iter(range(20))
    scene.event.during = lambda pause: scene.worker.nudge() if next(nudges, 99) < 5 else None
    scene.run()
    assert scene.work.at[0] == 1005.0 and scene.work.at[1] > 1030.0


def test_a_wake_names_the_task_that_is_wanted(tmp_path: Path) -> None:
    """Also one of the other worker's threads; an unknown name only makes it look."""
    scene = Scene(tmp_path, None, None)
    scene.event.during = lambda pause: scene.worker.wake("reports", Ask.LOCAL)
    scene.worker.wake("unknown")
    scene.run()
    assert scene.work.at == [1000.0, 1000.0]


def test_a_sleeper_is_woken_when_the_turns_of_all_are_over(tmp_path: Path) -> None:
    """The other worker waits for a turn that nobody has to wait for any more."""
    scene = Scene(tmp_path, KeyRefused("401"), None)
    context = Context(Layout(tmp_path), HANDED, scene.worker.api, scene.clock)
    other = Worker("transfer", scene.shared, context)
    woken = []
    scene.event.during = lambda pause: woken.append(other._woken.is_set())
    scene.run()
    assert len(woken) > 1 and not any(woken) and other._woken.is_set()
