"""One thread that runs its tasks one at a time: the only retry of the agent.

It sleeps until the agenda has something for it or until it is woken, makes one attempt, and says
until when it will be heard of again, which feeds or starves the watchdog.
"""

from __future__ import annotations

import threading
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable, Protocol

from firstboot.agent.problems import Problem
from firstboot.agent.schedule import Agenda, Ask, Outcome, Reach, Schedule, Task
from firstboot.api.answers import KeyRefused, NotThePlane
from firstboot.api.client import PlaneApi
from firstboot.api.connection import ProxyRefused
from firstboot.api.messages import HeartbeatReply
from firstboot.base import log
from firstboot.base.clock import Chance, Clock, rfc3339, rng
from firstboot.base.errors import ByteorError, Refused, TryAgain
from firstboot.base.layout import Layout
from firstboot.exchange.handover import Handover

# A worker that is later than its next attempt plus this is stuck, and the watchdog may end us.
GRACE_S = 90.0
LONGEST_WAIT_S = 3600.0


class Work(Protocol):
    """What one task does; the defaults are those of a task with nothing to say."""

    def run_once(self) -> bool | None:
        """Make one attempt; False when the control plane was not asked."""

    def problems(self) -> list[Problem]:
        """Return what is wrong beyond the error of the last attempt."""
        return []

    def shown(self) -> dict[str, Any]:
        """Return its part of `status.json`."""
        return {}

    def hinted(self, hints: HeartbeatReply) -> bool:
        """Return True when the hints name something that was not dealt with yet."""
        return False

    def nudged(self) -> bool:
        """Return True when a change on this host leaves it something to do now."""
        return False


@dataclass
class Job:
    """One task, what it does, and how it went; `status.json` shows it."""

    task: Task
    work: Work
    last_attempt_at: str | None = None
    last_success_at: str | None = None
    problem: str | None = None
    hint: str | None = None
    logged_s: float = field(default=0.0, repr=False)  # the pause that was logged last

    def shown(self, next_attempt_at: str | None) -> dict[str, Any]:
        """Return the members of one loop of `status.json`."""
        schedule, outcome = self.task.schedule, self.task.outcome
        return {
            "last_attempt_at": self.last_attempt_at,
            "last_success_at": self.last_success_at,
            "next_attempt_at": next_attempt_at,
            "outcome": outcome.value if outcome is not None else None,
            "problem": self.problem,
            "hint": self.hint,
            "failures": schedule.failures,
            "period_s": schedule.period_s,
        }


@dataclass(frozen=True)
class Shared:
    """What all workers of an agent have in common.

    `stop` ends them once they are woken. `crashed` gets one sentence about an unexpected error,
    which ends a worker. `changed` is called after each attempt that changed anything.
    """

    layout: Layout
    handed: Handover
    clock: Clock
    stop: threading.Event
    crashed: Callable[[str], None]
    changed: Callable[[], None]
    agenda: Agenda = field(default_factory=Agenda)
    jobs: dict[str, Job] = field(default_factory=dict)
    chance: Chance = field(default_factory=rng)


class Worker(threading.Thread):
    """Run its own tasks, one at a time, on the session of `api`."""

    def __init__(
        self,
        name: str,
        shared: Shared,
        api: PlaneApi,
        *,
        woken: threading.Event | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.due_by = float("inf")  # monotonic
        self.api = api
        self._shared, self._agenda, self._clock = shared, shared.agenda, shared.clock
        self._woken = woken or threading.Event()
        self._nudged = False

    def add(
        self,
        name: str,
        work: Work,
        schedule: Schedule,
        delay_s: float,
        *,
        first: bool = False,
        on_demand: bool = False,
    ) -> None:
        """Take one more task before the start, due in `delay_s`; the rest as of `Task`."""
        due = self._clock.monotonic() + delay_s
        task = Task(name, self.name, schedule, due, first=first, on_demand=on_demand)
        self._agenda.tasks[name] = task
        self._shared.jobs[name] = Job(task, work)

    def wake(self, name: str = "", by: Ask = Ask.LOCAL) -> None:
        """Look again now; `name` is a task that somebody wants to run. For any thread."""
        self._agenda.ask(name, by)
        self._woken.set()

    def nudge(self) -> None:
        """Run the tasks for which a change on this host leaves something to do. For any thread."""
        self._nudged = True
        self._woken.set()

    def alive(self, for_s: float = GRACE_S) -> None:
        """Say that a long attempt makes progress; it may then be silent for `for_s` seconds."""
        self.due_by = self._clock.monotonic() + for_s

    def run(self) -> None:
        """Thread body."""
        try:
            while not self._shared.stop.is_set():
                self._step()
        except Exception as error:  # noqa: BLE001 - the one broad except of the package
            # Frames without values: a local variable may hold the key.
            frames = "; ".join(
                f"{f.filename}:{f.lineno} {f.name}"
                for f in traceback.extract_tb(error.__traceback__)
            )
            self._shared.crashed(f"worker {self.name} ended by {type(error).__name__} at {frames}")

    def _step(self) -> None:
        self.alive()
        if self._nudged:
            self._nudged = False
            for job in self._shared.jobs.values():
                if job.task.worker == self.name and job.work.nudged():
                    self._agenda.ask(job.task.name, Ask.LOCAL)
        now = self._clock.monotonic()
        task, until = self._agenda.take(self.name, now)
        if task is not None:
            self._attempt(self._shared.jobs[task.name])
            return
        pause = min(until - now, LONGEST_WAIT_S)
        self.alive(pause + GRACE_S)
        self._woken.wait(pause)
        self._woken.clear()

    def _attempt(self, job: Job) -> None:
        task, before = job.task, job.problem
        job.last_attempt_at = rfc3339(self._clock.wall())
        error, sent = None, True
        try:
            sent = job.work.run_once() is not False
        except ByteorError as raised:
            error = raised
        outcome, reach = _judge(error)
        retry_after = error.retry_after if isinstance(error, TryAgain) else None
        delay = self._agenda.end(
            task,
            self._shared.chance,
            self._clock.monotonic(),
            outcome,
            reach=reach,
            retry_after=retry_after,
            sent=sent,
        )
        if error is None:
            job.problem = job.hint = None
            if sent:
                job.last_success_at = job.last_attempt_at
        else:
            job.problem, job.hint = str(error), error.hint
        self._say(job, before, delay)
        if sent or before is not None:
            self._shared.changed()

    def _say(self, job: Job, before: str | None, delay: float) -> None:
        """Log a trouble when it begins, when it changes, as its pauses grow, and when it is over."""
        if job.problem is None:
            job.logged_s = 0.0
            if before is not None:
                log.notice(f"{job.task.name} works again")
        elif job.problem != before or delay >= 2 * job.logged_s:
            job.logged_s = delay
            log.warning(job.problem, loop=job.task.name, next_in_s=delay, hint=job.hint)


def _judge(error: ByteorError | None) -> tuple[Outcome, Reach]:
    """Return what the end of an attempt means for the next ones (contract 2.6)."""
    if error is None:
        return Outcome.DONE, Reach.NOBODY
    if isinstance(error, (KeyRefused, ProxyRefused)):
        return Outcome.REFUSED, Reach.HOST
    if isinstance(error, Refused):
        return Outcome.REFUSED, Reach.TASK
    # A proxy's answer to one task may be about what that one sends; to a heartbeat it is about
    # this host, which the agenda knows.
    return Outcome.RETRY, Reach.TASK if isinstance(error, NotThePlane) else Reach.NOBODY
