"""Tell the time and draw pauses: the only user of `time`.

`Backoff` takes the random generator as an argument and returns seconds, so that a simulation can
drive it. Nothing sleeps here: callers wait on an event that a signal can set.
"""

from __future__ import annotations

import datetime
import random
import re
import time
from dataclasses import dataclass

# A longer Retry-After is not believed (contract 2.6): the back-off's own pause is used.
LONGEST_RETRY_AFTER_S = 3600.0
# Not left to fromisoformat: before Python 3.11 it knows neither Z nor most fractions.
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


class Clock:
    """The host's clocks; tests pass one that they move by hand."""

    def wall(self) -> float:
        """Return seconds since the epoch, as the host believes."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that only ever grow, for time-outs and periods."""
        return time.monotonic()

    def uptime(self) -> int:
        """Return whole seconds since this host booted, sleep included."""
        return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def monotonic() -> float:
    """Return seconds that only ever grow, where no clock needs replacing."""
    return time.monotonic()


Chance = random.Random  # the type, for code that is handed one


def rng() -> random.Random:
    """Return a generator seeded by the system: clones must not share a schedule."""
    return random.SystemRandom()


def rfc3339(seconds: float) -> str:
    """Format seconds since the epoch as RFC 3339 in UTC, to the second."""
    moment = datetime.datetime.fromtimestamp(int(seconds), tz=datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def from_rfc3339(text: str) -> float:
    """Parse an RFC 3339 date into seconds since the epoch; ValueError for anything else."""
    found = _RFC3339.fullmatch(text.strip().upper())
    if found is None:
        raise ValueError("not an RFC 3339 date")
    date, fraction, zone = found.groups()
    moment = datetime.datetime.fromisoformat(date + ("+00:00" if zone == "Z" else zone))
    return moment.timestamp() + float(fraction or 0)


def instant(value: object) -> float | None:
    """Return the seconds since the epoch of an RFC 3339 date, None for anything else."""
    try:
        return from_rfc3339(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def from_http_date(text: str) -> float:
    """Parse an HTTP date, in any of its three forms (RFC 9110), into seconds since the epoch.

    ValueError for anything else.
    """
    from email.utils import parsedate_to_datetime  # a tenth of a short command's start

    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # the asctime form: GMT all the same
            moment = moment.replace(tzinfo=datetime.timezone.utc)
        return moment.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise ValueError("not an HTTP date") from error


@dataclass
class Backoff:
    """Draw pauses of U(0, min(cap, base * 2^n)) seconds, n being the failures so far.

    Full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """

    base_s: float
    cap_s: float
    failures: int = 0

    def next_delay(self, chance: random.Random, retry_after: float | None = None) -> float:
        """Return the pause after one more failure; at least a believable `retry_after`."""
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        jitter = chance.uniform(0.0, ceiling)
        if retry_after is not None and 0 <= retry_after <= LONGEST_RETRY_AFTER_S:
            return retry_after + jitter
        return jitter
