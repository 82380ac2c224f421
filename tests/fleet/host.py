"""One host with all its tasks and both workers on a virtual clock, driving the real agenda."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Callable

from firstboot.agent.schedule import Agenda, Outcome, Reach, Schedule, Task

# (task, worker, period): artifacts are sent by the other worker; key sets could not be refreshed.
TASKS = (
    ("heartbeat", "control", 30.0),
    ("deployments", "control", 60.0),
    ("artifacts", "transfer", 60.0),
    ("keysets", "control", 300.0),
    ("reports", "control", 300.0),
)


@dataclass(frozen=True)
class End:
    """The end of one attempt: how it went, and after how many seconds."""

    outcome: Outcome = Outcome.DONE
    reach: Reach = Reach.NOBODY
    took_s: float = 0.0
    retry_after: float | None = None
    sent: bool = True


KEY_REFUSED = End(Outcome.REFUSED, Reach.HOST)


@dataclass(frozen=True)
class Attempt:
    """When one attempt was due and when it began."""

    task: str
    due: float
    began: float


@dataclass
class Host:
    """Both workers, each running one task at a time; `answer` ends the attempt that begins now."""

    seed: int
    answer: Callable[[Task, float], End]
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
                    self.agenda.end(
                        task,
                        self.chance,
                        now,
                        end.outcome,
                        reach=end.reach,
                        retry_after=end.retry_after,
                        sent=end.sent,
                    )
            following = [ends for ends, _, _ in busy.values()]
            for worker in {task.worker for task in self.agenda.tasks.values()} - set(busy):
                moments = {task.name: task.moment() for task in self.agenda.tasks.values()}
                begun, until = self.agenda.take(worker, now)
                if begun is None:
                    following.append(until)
                    continue
                self.attempts.append(Attempt(begun.name, moments[begun.name], now))
                answer = self.answer(begun, now)
                busy[worker] = now + answer.took_s, begun, answer
                following.append(now + answer.took_s)
            now = min(following)


def refused_attempts(*, seed: int, until_s: float) -> list[float]:
    """Return the seconds of all attempts of a host whose key expired in second 0."""
    host = Host(seed, lambda task, now: KEY_REFUSED)
    host.run(until_s)
    return [attempt.began for attempt in host.attempts]


def loose_attempts(*, seed: int, until_s: float) -> list[float]:
    """Return the same for tasks that take no turns."""
    host = Host(seed, lambda task, now: End(Outcome.REFUSED))
    host.run(until_s)
    return [attempt.began for attempt in host.attempts]
