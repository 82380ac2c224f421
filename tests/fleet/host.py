"""One host with all its tasks and both workers on a virtual clock, driving the real agenda."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Callable

from firstboot.agent.schedule import Agenda, End, Outcome, Reach, Schedule, Task

# (task, worker, period): artifacts are sent by the other worker; key sets could not be refreshed.
TASKS = (
    ("heartbeat", "control", 30.0),
    ("deployments", "control", 60.0),
    ("artifacts", "transfer", 60.0),
    ("keysets", "control", 300.0),
    ("reports", "control", 300.0),
)


KEY_REFUSED = End(Outcome.REFUSED, Reach.HOST)


@dataclass(frozen=True)
class Attempt:
    """When one attempt was due and when it began."""

    task: str
    due: float
    began: float


@dataclass
class Host:
    """Both workers, each running one task at a time.

    `answer` says how the attempt that begins now ends, and after how many seconds.
    """

    seed: int
    answer: Callable[[Task, float], tuple[End, float]]
    agenda: Agenda = field(default_factory=Agenda)
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        for name, worker, period_s in TASKS:
            schedule = Schedule(period_s)
            self.agenda.tasks[name] = Task(
                name, worker, schedule, schedule.first_delay(self.chance), first=name == "heartbeat"
            )

    def run(self, until_s: float, *, between: Callable[[float], None] = lambda now: None) -> None:
        """Run until `until_s`; `between` is called at each moment at which anything happens."""
        busy: dict[str, tuple[float, Task, End]] = {}
        now = 0.0
        while now < until_s:
            between(now)
            for worker, (ends, task, end) in list(busy.items()):
                if ends <= now:
                    del busy[worker]
                    self.agenda.end(task, self.chance, now, end)
            following = [ends for ends, _, _ in busy.values()]
            for worker in {task.worker for task in self.agenda.tasks.values()} - set(busy):
                moments = {task.name: task.moment() for task in self.agenda.tasks.values()}
                begun, until = self.agenda.take(worker, now)
                if begun is None:
                    following.append(until)
                    continue
                self.attempts.append(Attempt(begun.name, moments[begun.name], now))
                end, took_s = self.answer(begun, now)
                busy[worker] = now + took_s, begun, end
                following.append(now + took_s)
            now = min(following)


def refused_attempts(*, seed: int, until_s: float) -> list[float]:
    """Return the seconds of all attempts of a host whose key expired in second 0."""
    host = Host(seed, lambda task, now: (KEY_REFUSED, 0.0))
    host.run(until_s)
    return [attempt.began for attempt in host.attempts]


def loose_attempts(*, seed: int, until_s: float) -> list[float]:
    """Return the same for tasks that take no turns."""
    host = Host(seed, lambda task, now: (End(Outcome.REFUSED), 0.0))
    host.run(until_s)
    return [attempt.began for attempt in host.attempts]
