"""One pace for all loops of a host whose requests come to nothing until a person acts (contract 2.6).

Each loop's pauses grow by themselves, but four loops do not know of each other, and a shell that wakes one knows of none:
without this a host sends four requests in some minutes (``tests/fleet``). Healthy hosts are not slowed down.
"""

from __future__ import annotations

import threading
from typing import Callable

APART_S = 30.0  # two requests in any minute
# Who does not come for its turn in so many seconds has lost it.
MISSED_S = 5.0
# The loop whose success sets all others free: it goes before them, and tells what stands between this host and the plane.
FIRST = "heartbeat"


class Pace:
    """Shared by the loops; for any thread. The moments are monotonic seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slow = False
        self._latest = self._latest_refused = float("-inf")
        self._queue: list[str] = []  # who was told to wait, in the order of their turns

    def slow(self) -> None:
        """The plane refused the key, or what answers the heartbeat is not the plane: whatever is asked next, seldom."""
        self._slow = True

    def free(self) -> None:
        """The plane accepted a request."""
        self._slow = False

    def wait_s(self, now: float, *, refused: bool = False, who: str = "") -> float:
        """Seconds that an attempt of the loop `who` has to wait, after which it asks again; 0: it may, and has its turn.

        `refused`: the loop's own last request was; such loops take turns among themselves, and the others go on.
        """
        with self._lock:
            if self._slow or refused:
                left = self._turn(self._latest if self._slow else self._latest_refused, now, who)
                if left > 0:
                    return left
            if who in self._queue:
                self._queue.remove(who)
            self._latest = now
            if refused:
                self._latest_refused = now
            return 0.0

    def _turn(self, latest: float, now: float, who: str) -> float:
        """Seconds until the turn of `who`: first come, first served, but for the one that goes first."""
        while self._queue and self._queue[0] != who and now > latest + APART_S + MISSED_S:
            del self._queue[0]
        if who not in self._queue:
            self._queue.insert(0 if who == FIRST else len(self._queue), who)
        return latest + APART_S * (1 + self._queue.index(who)) - now


class PaceIfAsking(Pace):
    """The pace of a loop that often has nothing to ask: then it neither waits for a turn nor takes one."""

    def __init__(self, shared: Pace, asks: Callable[[], bool]) -> None:
        super().__init__()
        self._shared, self._asks = shared, asks

    def slow(self) -> None:
        """As of the shared pace."""
        self._shared.slow()

    def free(self) -> None:
        """As of the shared pace."""
        self._shared.free()

    def wait_s(self, now: float, *, refused: bool = False, who: str = "") -> float:
        """As of the shared pace, and 0 for an attempt that asks nothing."""
        return self._shared.wait_s(now, refused=refused, who=who) if self._asks() else 0.0
