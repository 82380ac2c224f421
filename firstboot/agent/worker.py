"""Run tasks one at a time in a thread: the only retry.

It sleeps until the agenda has something for it or until it is woken, makes one attempt, and says
until when it will be heard of again, which feeds or starves the watchdog.
"""

from __future__ import annotations

import threading
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable, Protocol

from firstboot.agent.problems import Problem
from firstboot.agent.schedule import Agenda, Ask, End, Outcome, Reach, Schedule, Task
from firstboot.api.answers import KeyRefused, NotThePlane
from firstboot.api.client import PlaneApi
from firstboot.api.connection import ProxyRefused
from firstboot.api.messages import HeartbeatReply
from firstboot.base import log
from firstboot.base.clock import Chance, Clock, rfc3339, rng
from firstboot.base.documents import sentence
from firstboot.base.errors import ByteorError, Refused, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.handover import Handover

# A worker that is later than its next attempt plus this is stuck, and the watchdog may end us.
GRACE_S = 90.0
LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True)
class Context:
    """The host and identity of all tasks; `api` is their worker's session."""

    layout: Layout
    handed: Handover
    api: PlaneApi
    clock: Clock

    @property
    def who(self) -> tuple[str, Secret]:
        """Return the agent's id and key, with which each request begins."""
        return self.handed.agent_id, self.handed.api_key


class Work(Protocol):
    """One task's work; the defaults are of one with nothing to say."""

    def run_once(self) -> bool | None:
        """Make one attempt; False when the control plane was not asked."""

    def problems(self) -> list[Problem]:
        """Return what is wrong beyond the error of the last attempt."""
        return []

    def shown(self) -> dict[str, Any]:
        """Return its part of `status.json`."""
        return {}

    def hinted(self, hints: HeartbeatReply) -> bool:
        """Return True when the hints name something not dealt with yet."""
        return False

    def nudged(self) -> bool:
        """Return True when a change on this host leaves something to do."""
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
    logged_s: float = 0.0  # the pause that was logged last

    def shown(self, next_attempt_at: str | None) -> dict[str, Any]:
        """Return the members of one loop of `status.json`."""
        names = ("last_attempt_at", "last_success_at", "problem", "hint")
        outcome, schedule = self.task.outcome, self.task.schedule
        return {
            **{name: getattr(self, name) for name in names},
            "next_attempt_at": next_attempt_at,
            "outcome": outcome.value if outcome is not None else None,
            "failures": schedule.failures,
            "period_s": schedule.period_s,
        }


@dataclass
class Crew:
    """The shared state of an agent's workers.

    `stop` ends those that are woken. `crashed` gets one sentence about an unexpected error, which
    ends a worker. `changed` is called after each attempt that changed anything.
    """

    crashed: Callable[[str], None]
    changed: Callable[[], None]
    agenda: Agenda
    jobs: dict[str, Job]
    stop: threading.Event = field(default_factory=threading.Event)
    chance: Chance = field(default_factory=rng)


class Worker(threading.Thread):
    """Run tasks one at a time, on the session of the context."""

    def __init__(self, name: str, crew: Crew, context: Context) -> None:
        super().__init__(name=name, daemon=True)
        self.due_by = float("inf")  # monotonic
        self.api = context.api
        self._crew, self._agenda, self._clock = crew, crew.agenda, context.clock
        self._woken = threading.Event()
        self._agenda.sleepers.append(self.wake)
        self._nudged = False

    def add(
        self, name: str, work: Work, schedule: Schedule, delay_s: float, **options: Any
    ) -> None:
        """Take one more task, due in `delay_s`, before the start."""
        due = self._clock.monotonic() + delay_s
        task = self._agenda.tasks[name] = Task(name, self.name, schedule, due, **options)
        self._crew.jobs[name] = Job(task, work)

    def wake(self, name: str = "", by: Ask = Ask.LOCAL) -> None:
        """Look again, and run the task `name`; for any thread."""
        self._agenda.ask(name, by)
        self._woken.set()

    def nudge(self) -> None:
        """Run the tasks that a change on this host concerns; for any thread."""
        self._nudged = True
        self._woken.set()

    def alive(self, pause_s: float = 0.0) -> None:
        """Say that an attempt makes progress, or that a pause begins."""
        self.due_by = self._clock.monotonic() + pause_s + GRACE_S

    def run(self) -> None:
        """Thread body."""
        try:
            while not self._crew.stop.is_set():
                self._step()
        except Exception as error:  # noqa: BLE001 - the one broad except of the package
            # Frames without values: a local variable may hold the key.
            frames = traceback.extract_tb(error.__traceback__)
            places = "; ".join(f"{f.filename}:{f.lineno} {f.name}" for f in frames)
            self._crew.crashed(f"worker {self.name} ended by {type(error).__name__} at {places}")

    def _step(self) -> None:
        self.alive()
        if self._nudged:
            self._nudged = False
            for name, job in self._crew.jobs.items():
                if job.task.worker == self.name and job.work.nudged():
                    self._agenda.ask(name, Ask.LOCAL)
        now = self._clock.monotonic()
        task, until = self._agenda.take(self.name, now)
        if task is not None:
            self._attempt(self._crew.jobs[task.name])
            return
        pause = min(until - now, LONGEST_WAIT_S)
        self.alive(pause)
        self._woken.wait(pause)
        self._woken.clear()

    def _attempt(self, job: Job) -> None:
        before, job.last_attempt_at = job.problem, rfc3339(self._clock.wall())
        try:
            end = End(sent=job.work.run_once() is not False)
            job.problem = job.hint = None
            if end.sent:
                job.last_success_at = job.last_attempt_at
        except ByteorError as error:
            end, job.hint = _judge(error), error.hint
            job.problem = sentence(str(error))
        delay = self._agenda.end(job.task, self._crew.chance, self._clock.monotonic(), end)
        self._say(job, before, delay)
        if end.sent or before is not None:
            self._crew.changed()

    def _say(self, job: Job, before: str | None, delay: float) -> None:
        """Log a problem's begin, its changes, its growing pauses and its end."""
        if job.problem is None:
            job.logged_s = 0.0
            if before is not None:
                log.notice(f"{job.task.name} works again")
        elif job.problem != before or delay >= 2 * job.logged_s:
            job.logged_s = delay
            log.warning(job.problem, loop=job.task.name, next_in_s=delay, hint=job.hint)


def _judge(error: ByteorError) -> End:
    """Return what a failure means for the next attempts (contract 2.6)."""
    retry_after = error.retry_after if isinstance(error, TryAgain) else None
    if isinstance(error, (KeyRefused, ProxyRefused)):
        return End(Outcome.REFUSED, Reach.HOST)
    if isinstance(error, Refused):
        return End(Outcome.REFUSED, Reach.TASK)
    # A proxy's answer to one task may be about what that one sends; to a heartbeat it is about
    # this host, which the agenda knows.
    reach = Reach.TASK if isinstance(error, NotThePlane) else Reach.NOBODY
    return End(Outcome.RETRY, reach, retry_after)
