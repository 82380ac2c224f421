"""``activation/fault.json``: why the activator could not do its work, until it does it again.

Written by the activator; the agent, `status` and the heartbeat show it. What is refused is no
fault. Whoever starts the activator keeps the pauses between its tries, which grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Optional

from firstboot.base import documents, files, log
from firstboot.base.clock import Clock, from_rfc3339, rfc3339
from firstboot.base.documents import Time, sentence
from firstboot.base.errors import ByteorError, LocalFault, TryAgain
from firstboot.base.layout import Layout

VERSION = 1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 3600.0


@dataclass(frozen=True)
class Fault:
    """The sentence that the activator ended with, the tries so far, and when the next is due."""

    message: str
    hint: Optional[str]
    at: Time
    due: Time
    tries: int


def read(layout: Layout) -> Fault | None:
    """Return the fault that stands, None when there is none; LocalFault when it cannot be read."""
    return documents.read(layout.fault, Fault)


def pause_s(layout: Layout, now: float) -> float:
    """Return the seconds until the next try is due, 0 where nothing stands in its way."""
    try:
        fault = read(layout)
    except LocalFault:
        return 0.0
    return left_s(fault.due, now) if fault is not None else 0.0


def left_s(due: str, now: float) -> float:
    """Return the seconds from `now` until `due`, 0 when that is over."""
    left = from_rfc3339(due) - now
    return left if 0 < left <= LONGEST_PAUSE_S else 0.0  # longer: the clock was set back


def next_pause(tries: int) -> float:
    """Return the pause after so many tries that failed, in seconds."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries - 1, 16))


@contextmanager
def noted(layout: Layout, clock: Clock) -> Iterator[None]:
    """Note an error that the block ends with; forget the former one when it ends well."""
    try:
        yield
    except TryAgain:
        raise  # another activator is at work
    except ByteorError as error:
        with log.warned("the fault is not noted"):
            _note(layout, error, clock.wall())
        raise
    else:
        with log.warned():
            files.remove(layout.fault)


def _note(layout: Layout, error: ByteorError, now: float) -> None:
    try:
        before = read(layout)
    except LocalFault:
        before = None
    tries = before.tries + 1 if before is not None else 1
    due = rfc3339(now + next_pause(tries))
    fault = Fault(sentence(str(error)), sentence(error.hint), rfc3339(now), due, tries)
    files.write_json(layout.fault, {"v": VERSION, **asdict(fault)}, mode=0o644)
