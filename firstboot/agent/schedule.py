"""Decide when to ask the control plane next, as pure values.

`Schedule` turns the outcome of an attempt into a pause (contract 2.2 and 2.6); ``tests/fleet`` runs
ten thousand of them through boots and outages. `Agenda` keeps the tasks of all workers of a host
and says which one a worker runs next. All moments are seconds of the monotonic clock.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Callable

from firstboot.base.clock import LONGEST_RETRY_AFTER_S, Chance

BACKOFF_BASE_S = 5.0
REFUSED_CAP_S = 3600.0
# So many transient failures in a row may be followed by another attempt at once: most troubles are
# over by then.
QUICK_FAILURES = 3
JITTER = 0.1  # of the period, to both sides
# A hint makes a task look at once, but not again and again (contract 2.2); nor do local requests
# while the control plane refuses it.
ASKED_EVERY_S = 60.0
APART_S = 30.0  # two requests in any minute
FOREVER = float("inf")


class Outcome(enum.Enum):
    """The result of one attempt (contract 2.6)."""

    DONE = "done"
    RETRY = "retry"  # transient: full jitter, base 5 s, cap 2 x period
    REFUSED = "refused"  # permanent until a person acts: growing pauses up to one hour


class Reach(enum.IntEnum):
    """The tasks that have to ask seldom after a failure."""

    NOBODY = 0
    TASK = 1
    HOST = 2


@dataclass(frozen=True)
class End:
    """The end of one attempt.

    `sent`: it asked the control plane anything; else it neither takes a turn nor proves anything.
    """

    outcome: Outcome = Outcome.DONE
    reach: Reach = Reach.NOBODY
    retry_after: float | None = None
    sent: bool = True


class Ask(enum.IntEnum):
    """The reason to end a pause early; the larger one counts."""

    NOBODY = 0
    HINT = 1  # the control plane: once a minute, while all is well
    LOCAL = 2  # this host: not after a transient failure; once a minute while refused
    ANEW = 3  # what failed may succeed now; only Retry-After still holds


def believed(retry_after: float | None) -> float | None:
    """Return the pause that was asked for, if it is believable."""
    if retry_after is None or not 0 <= retry_after <= LONGEST_RETRY_AFTER_S:
        return None
    return retry_after


@dataclass
class Schedule:
    """Pauses of one task: first U(0, period), then the period +-10 %."""

    period_s: float
    failures: int = 0
    # True when the latest attempt succeeded, like the one before it.
    settled: bool = field(default=False, repr=False)

    def first_delay(self, chance: Chance) -> float:
        """Return the seconds before the first attempt, which spread booting hosts."""
        return chance.uniform(0.0, self.period_s)

    def next_delay(
        self, chance: Chance, outcome: Outcome, retry_after: float | None = None
    ) -> float:
        """Return the seconds between an attempt with `outcome` and the next."""
        if outcome is Outcome.DONE:
            # After a mass boot or an outage the fleet is spread over one period: a host that came
            # early the second time would meet those whose first time it is.
            early, self.failures, self.settled = JITTER if self.settled else 0.0, 0, True
            return self.period_s * chance.uniform(1.0 - early, 1.0 + JITTER)
        self.failures, self.settled = self.failures + 1, False
        growth = 2.0 ** min(self.failures - 1, 32)
        if outcome is Outcome.REFUSED:
            # Never sooner than the period: a refused host must not be louder than a healthy one.
            jitter = self.period_s + chance.uniform(0.0, min(REFUSED_CAP_S, self.period_s * growth))
            return min(REFUSED_CAP_S, jitter)
        ceiling = min(2.0 * self.period_s, BACKOFF_BASE_S * growth)
        # Full jitter as long as hosts may still be in step. From then on a floor: at the cap full
        # jitter alone averages one period, so that a fleet in an outage would be as loud as a
        # healthy one, and louder by its first quick attempts.
        floor = ceiling / 3.0 if self.failures > QUICK_FAILURES else 0.0
        jitter = chance.uniform(floor, ceiling)
        asked = believed(retry_after)
        if asked is not None:
            # The control plane names one moment to everybody: without a spread the whole fleet
            # would come then.
            return max(jitter, asked + chance.uniform(0.0, self.period_s))
        return jitter


@dataclass
class Task:
    """One kind of request: its next time and its last end.

    `worker` names the thread that runs it. `first`: it goes before all others, and what stands
    between it and the control plane concerns the whole host. `on_demand`: a success ends it until
    somebody asks for it.
    """

    name: str
    worker: str
    schedule: Schedule
    due: float
    first: bool = False
    on_demand: bool = False
    outcome: Outcome | None = None
    began: float = -FOREVER  # the latest attempt that asked the control plane anything
    running: float | None = None  # since when
    seldom: bool = False  # its last attempt was refused: it takes turns with others that were
    asked: Ask = Ask.NOBODY
    followed: float = -FOREVER  # the last attempt that was sooner than due, and is so once a minute
    ended: float = -FOREVER
    not_before: float = -FOREVER  # what Retry-After asked for

    def moment(self) -> float:
        """Return when it is to run, turns left aside."""
        sooner = FOREVER
        if self.asked is Ask.ANEW:
            sooner = self.not_before
        elif self.outcome is Outcome.RETRY:
            pass
        elif self.asked is Ask.LOCAL and self.outcome is not Outcome.REFUSED:
            sooner = self.ended
        elif self.asked is Ask.LOCAL or (self.asked and self.outcome is not Outcome.REFUSED):
            sooner = self.followed + ASKED_EVERY_S
        return min(self.due, sooner)

    def rank(self) -> tuple[bool, float]:
        """Return its place among those that are due: the earliest first."""
        return not self.first, self.moment()


class Agenda:
    """Say which task a worker runs next; for any thread.

    A host whose requests are all in vain until a person acts sends two a minute in all: each
    task's pauses grow by themselves, but five tasks do not know of each other. A refused key, or a
    proxy's answer to the heartbeat, makes all tasks take turns, any other refusal those that were
    refused, and those that were never tried while nothing but refusals came. Beats that are
    accepted never do. Who is due first goes first. `sleepers` are called when the turns of all
    tasks are over: their moments are sooner now.
    """

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        self.tasks = {task.name: task for task in tasks}
        self._lock = threading.Lock()
        self.sleepers: list[Callable[[], None]] = []
        self._slow = False

    def ask(self, name: str, by: Ask) -> None:
        """Want a task to run soon; unknown names are ignored."""
        with self._lock:
            if name in self.tasks:
                self.tasks[name].asked = max(self.tasks[name].asked, by)

    def take(self, worker: str, now: float) -> tuple[Task | None, float]:
        """Return the task that `worker` begins, or when to look again."""
        with self._lock:
            own = sorted(
                (task for task in self.tasks.values() if task.worker == worker), key=Task.rank
            )
            moments = [self._when(task, now) for task in own]
            for task, moment in zip(own, moments):
                if moment <= now:
                    self._begin(task, now)
                    return task, now
            return None, min(moments, default=FOREVER)

    def when(self, task: Task, now: float) -> float:
        """Return when `task` is expected to run."""
        with self._lock:
            return self._when(task, now)

    def end(self, task: Task, chance: Chance, now: float, end: End) -> float:
        """Note the end of an attempt; return the pause after it."""
        with self._lock:
            done = end.outcome is Outcome.DONE
            if end.sent:
                task.began = task.running if task.running is not None else now
            task.running, task.outcome, task.ended = None, end.outcome, now
            task.seldom = end.reach is not Reach.NOBODY
            # A proxy answers the heartbeat: whatever is asked, it will.
            proxy = task.seldom and task.first and end.outcome is Outcome.RETRY
            was_slow = self._slow
            if end.reach is Reach.HOST or proxy or (done and end.sent):
                self._slow = not done
            is_over = was_slow and not self._slow
            delay = task.schedule.next_delay(chance, end.outcome, end.retry_after)
            if task.on_demand and done:
                delay = FOREVER
            task.due = now + delay
            task.not_before = task.due if believed(end.retry_after) is not None else now
        for wake in self.sleepers if is_over else ():
            wake()
        return delay

    def _when(self, task: Task, now: float) -> float:
        moment = task.moment()
        if not self._takes_turns(task):
            return moment
        turns = [other for other in self.tasks.values() if self._takes_turns(other)]
        free = APART_S + max(
            other.began if other.running is None else other.running for other in turns
        )
        if moment > now:
            return max(moment, free)
        busy = {other.worker for other in self.tasks.values() if other.running is not None}
        ahead = sum(
            other.rank() < task.rank()
            for other in turns
            if other.worker not in busy and other.moment() <= now
        )
        return max(free, now) + APART_S * ahead

    def _takes_turns(self, task: Task) -> bool:
        # What another task was told, perhaps for its own route, delays no beat that is accepted.
        is_accepted = task.first and task.outcome is Outcome.DONE
        is_slow = self._slow
        if task.outcome is None and not task.first:
            ends = {other.outcome for other in self.tasks.values()}
            is_slow |= Outcome.REFUSED in ends and Outcome.DONE not in ends
        return task.seldom or (is_slow and not is_accepted)

    def _begin(self, task: Task, now: float) -> None:
        refused = task.asked is Ask.LOCAL and task.outcome is Outcome.REFUSED
        if now < task.due and (refused or task.asked is Ask.HINT):
            task.followed = now
        task.running, task.asked = now, Ask.NOBODY
