"""One thread around one ``run_once()``: the only retry of the runtime, and the only broad except.

`Schedule` is pure: it turns what happened into seconds, so that a simulation of ten thousand agents drives the very
code that this host runs. `Loop` sleeps until its next attempt or until it is woken, calls ``run_once`` and says until when
it will check in again, which is what feeds (or starves) the watchdog.
"""

from __future__ import annotations

import enum
import threading
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable

from firstboot.agent.pace import FIRST, Pace
from firstboot.api.answers import KeyRefused, NotThePlane
from firstboot.base import log
from firstboot.base.clock import LONGEST_RETRY_AFTER_S, Chance, Clock, rfc3339, rng
from firstboot.base.errors import ByteorError, Refused, TryAgain

BACKOFF_BASE_S = 5.0
REFUSED_CAP_S = 3600.0
# So many transient failures in a row may be followed by another attempt at once: most troubles are over by then.
QUICK_FAILURES = 3
JITTER = 0.1  # of the period, to both sides
# A loop that is later than its next attempt plus this is stuck, and the watchdog may end us.
GRACE_S = 90.0
# What a person may do about an error that says nothing of it.
PASSES = "it is tried again by itself; if it stays: byteor-firstboot preflight checks the way to the plane"
STAYS = "the plane does not take what this agent asks: do the two fit each other? (byteor-agent --version)"
# A hint of the plane makes a loop look at once, but not again and again (contract 2.2); nor do uploads that are refused.
WOKEN_EVERY_S = 60.0
NOW, NEVER = float("-inf"), float("inf")


class Outcome(enum.Enum):
    """What one attempt means for the next one (contract 2.6)."""

    DONE = "done"
    RETRY = "retry"  # transient: full jitter, base 5 s, cap 2 x period
    REFUSED = "refused"  # permanent until a person acts: growing pauses up to one hour


def believed(retry_after: float | None) -> float | None:
    """The pause that the plane asked for, None when it asked for none that makes sense."""
    return (
        retry_after
        if retry_after is not None and 0 <= retry_after <= LONGEST_RETRY_AFTER_S
        else None
    )


@dataclass
class Schedule:
    """When a loop runs next. First after U(0, period); then every period +-10 %; contract 2.2 and 2.6.

    ``tests/fleet`` runs ten thousand of them through boots and outages; what is odd here has its figure there.
    """

    period_s: float
    failures: int = 0
    # Whether the latest attempt succeeded like the one before it.
    settled: bool = field(default=False, repr=False)

    def first_delay(self, chance: Chance) -> float:
        """Seconds before the first attempt: the splay that keeps a thousand booting hosts apart."""
        return chance.uniform(0.0, self.period_s)

    def next_delay(
        self, chance: Chance, outcome: Outcome, retry_after: float | None = None
    ) -> float:
        """Seconds until the next attempt after one that ended in `outcome`."""
        if outcome is Outcome.DONE:
            # After a mass boot or an outage the fleet is spread over one period: whoever came early the second time
            # would meet those whose first time it is.
            early, self.failures, self.settled = JITTER if self.settled else 0.0, 0, True
            return self.period_s * chance.uniform(1.0 - early, 1.0 + JITTER)
        self.failures, self.settled = self.failures + 1, False
        growth = 2.0 ** min(self.failures - 1, 32)
        if outcome is Outcome.REFUSED:
            # Never sooner than the period: a refused key must not make a host louder than a healthy one.
            jitter = self.period_s + chance.uniform(0.0, min(REFUSED_CAP_S, self.period_s * growth))
            return min(REFUSED_CAP_S, jitter)
        ceiling = min(2.0 * self.period_s, BACKOFF_BASE_S * growth)
        # Full jitter as far as it matters, which is where hosts could still be in step. From then on a floor: at the cap
        # full jitter alone averages one period, so that a fleet in an outage would be as loud as a healthy one, and
        # louder by its first quick attempts.
        floor = ceiling / 3.0 if self.failures > QUICK_FAILURES else 0.0
        jitter = chance.uniform(floor, ceiling)
        asked = believed(retry_after)
        if asked is not None:
            # The plane names one moment to everybody: without a spread of its own the whole fleet would come then.
            return max(jitter, asked + chance.uniform(0.0, self.period_s))
        return jitter


@dataclass
class LoopHealth:
    """What `status` shows of one loop."""

    last_attempt_at: str | None = None
    last_success_at: str | None = None
    next_attempt_at: str | None = None
    outcome: str | None = None
    problem: str | None = None
    hint: str | None = None
    failures: int = 0
    due_by: float = field(default=float("inf"), repr=False)  # monotonic

    def shown(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "due_by"}


class Loop(threading.Thread):
    """Run `run_once` on a schedule until `stop` is set and `wake` called; an unexpected error is handed to `crashed`.

    An attempt that is False asked the plane nothing: it proves nothing about it, and `changed` is not called for it.
    """

    def __init__(
        self,
        name: str,
        run_once: Callable[[], bool | None],
        *,
        schedule: Schedule,
        stop: threading.Event,
        crashed: Callable[[str], None],
        changed: Callable[[], None],
        first_delay_s: float | None = None,
        pace: Pace | None = None,
        clock: Clock | None = None,
        chance: Chance | None = None,
        nudged: threading.Event | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.health = LoopHealth()
        self.schedule = schedule
        self._run_once = run_once
        self._stopping = stop
        self._crashed = crashed
        self._changed = changed
        self._clock = clock or Clock()
        self._chance = chance or rng()
        self._first_delay_s = first_delay_s
        self._pace = pace or Pace()
        self._nudged = nudged or threading.Event()
        # What others ask of us: whoever is on this host, the one who changed the settings, the plane (since when).
        self._woken = self._anew = False
        self._hinted = NEVER
        # Monotonic: when we last followed a hint, and a wake although we were refused; and what the plane asked us to wait.
        self._followed = self._insisted = self._asked_until = NOW
        self._idle = self._seldom = False

    def wake(self, *, anew: bool = False) -> None:
        """Attempt now, unless it failed just before: something waits on this host. For any thread.

        `anew`: the settings changed, so that what failed before may go well; only what the plane asked for is waited for.
        """
        self._woken, self._anew = True, self._anew or anew
        self._nudged.set()

    def hint(self) -> None:
        """Attempt as soon as a hint of the plane may make us: once a minute, and while all is well. For any thread."""
        self._hinted = min(
            self._hinted, max(self._followed + WOKEN_EVERY_S, self._clock.monotonic())
        )
        self._nudged.set()

    def _wanted(self) -> float:
        """The moment at which what others ask ends the pause after the latest attempt; NEVER when it does not."""
        if self._anew:
            return self._asked_until
        if self.health.outcome == Outcome.RETRY.value:
            return NEVER
        if self.health.outcome == Outcome.REFUSED.value:
            return self._insisted + WOKEN_EVERY_S if self._woken else NEVER
        return NOW if self._woken else self._hinted

    def _follow(self, now: float, *, begins: bool) -> None:
        """What others asked up to now is answered by the next attempt."""
        if begins and self._hinted <= now and not self._woken:
            self._followed = now
        if begins and self._woken and self.health.outcome == Outcome.REFUSED.value:
            self._insisted = now
        self._woken = self._anew = False
        if self._hinted <= now:
            self._hinted = NEVER

    def alive(self, for_s: float = GRACE_S) -> None:
        """Say that a long attempt makes progress, and may be silent for so long; else the watchdog ends the process."""
        self.health.due_by = self._clock.monotonic() + for_s

    def run(self) -> None:
        """Thread body."""
        try:
            delay = (
                self._first_delay_s
                if self._first_delay_s is not None
                else self.schedule.first_delay(self._chance)
            )
            while not self._pause(delay):
                delay = self._attempt()
        except Exception as error:  # noqa: BLE001 - the one broad except of the package (house style 3)
            # Frames without values: a local variable may hold the key.
            frames = "; ".join(
                f"{f.filename}:{f.lineno} {f.name}"
                for f in traceback.extract_tb(error.__traceback__)
            )
            self._crashed(f"loop {self.name} ended by {type(error).__name__} at {frames}")

    def _pause(self, delay: float) -> bool:
        """Wait, but not longer than a hint asks; True when the loop is to end."""
        due = self._clock.monotonic() + delay
        self.health.next_attempt_at = rfc3339(self._clock.wall() + delay)
        self.health.due_by = due + GRACE_S
        if not self._idle:
            self._changed()
        while not self._stopping.is_set():
            now = self._clock.monotonic()
            if now >= min(due, self._wanted()):
                held = self._pace.wait_s(now, refused=self._seldom, who=self.name)
                self._follow(now, begins=held <= 0)
                if held <= 0:
                    return False
                due = now + held
                self.health.next_attempt_at = rfc3339(self._clock.wall() + held)
                self.health.due_by = due + GRACE_S
                self._changed()
                continue
            self._nudged.wait(min(due, self._wanted()) - now)
            self._nudged.clear()
        return True

    def _attempt(self) -> float:
        health = self.health
        health.last_attempt_at = rfc3339(self._clock.wall())
        self.alive()
        retry_after, self._idle, self._seldom = None, False, False
        before = health.problem
        try:
            asked = self._run_once()
            outcome = Outcome.DONE
            self._idle = asked is False and before is None
            if asked is not False:
                self._pace.free()
                health.last_success_at = health.last_attempt_at
            health.problem = health.hint = None
        except TryAgain as error:
            outcome, retry_after = Outcome.RETRY, error.retry_after
            health.problem, health.hint = str(error), error.hint
            # What a proxy says to one loop may be about what that one sends; to a heartbeat it is about this host.
            self._seldom = isinstance(error, NotThePlane)
            if self._seldom and self.name == FIRST:
                self._pace.slow()
        except Refused as error:
            outcome, self._seldom = Outcome.REFUSED, True
            if isinstance(error, KeyRefused):
                self._pace.slow()
            health.problem, health.hint = str(error), error.hint
        except ByteorError as error:
            outcome = Outcome.RETRY
            health.problem, health.hint = str(error), error.hint
        if health.problem is not None and health.hint is None:
            health.hint = PASSES if outcome is Outcome.RETRY else STAYS
        delay = self.schedule.next_delay(self._chance, outcome, retry_after)
        self._asked_until = (
            self._clock.monotonic() + delay if believed(retry_after) is not None else NOW
        )
        health.outcome, health.failures = outcome.value, self.schedule.failures
        if health.problem != before:
            if health.problem is None:
                log.notice(f"{self.name} works again")
            else:
                log.warning(health.problem, loop=self.name, next_in_s=delay, hint=health.hint)
        return delay
