"""How long a run waits between attempts, when it gives up, and how often it says why (contract 2.1)."""

from __future__ import annotations

from threading import Event

from firstboot.base import log
from firstboot.base.clock import Backoff, Clock, rng
from firstboot.base.errors import TryAgain

BASE_S, CAP_S = 1.0, 60.0
SAY_WHY_EVERY_S = 180.0


class Patience:
    """The transient failures of one run; without a limit it lasts as long as the plane is away."""

    def __init__(self, clock: Clock, *, limit_s: float | None) -> None:
        self._clock, self._limit_s = clock, limit_s
        self._started = clock.monotonic()
        self._backoff, self._chance = Backoff(BASE_S, CAP_S), rng()
        self._said: str | None = None
        self._said_at = 0.0

    def wait(self, error: TryAgain, *, pause_s: float | None = None) -> None:
        """Wait after `error`, `pause_s` or else with full jitter; raise it when the limit is reached."""
        delay = (
            pause_s
            if pause_s is not None
            else self._backoff.next_delay(self._chance, error.retry_after)
        )
        now = self._clock.monotonic()
        if self._limit_s is not None:
            left = self._limit_s - (now - self._started)
            if left <= 0:
                raise error
            delay = min(delay, left)
        # A new reason at once, an old one every few minutes: a night of outage is not a night of log lines.
        if str(error) != self._said or now - self._said_at >= SAY_WHY_EVERY_S:
            log.warning(str(error), next_attempt_in_s=delay, hint=error.hint)
            self._said, self._said_at = str(error), now
        Event().wait(delay)
