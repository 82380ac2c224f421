"""One pace for all loops of a host whose requests come to nothing until a person acts (contract 2.6).

Each loop's pauses grow by themselves, but four loops do not know of each other, and a shell that wakes one knows of none:
without this a host sends four requests in some minutes (``tests/fleet``). Healthy hosts are not slowed down.
"""

from __future__ import annotations

import threading
from typing import Callable

APART_S = 30.0  # two requests in any minute


class Pace:
    """Shared by the loops; for any thread. The moments are monotonic seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slow = False
        self._latest = self._latest_refused = float("-inf")

    def slow(self) -> None:
        """The plane refused the key, or something that is not the plane answers: whatever is asked next, seldom."""
        self._slow = True

    def free(self) -> None:
        """The plane accepted a request."""
        self._slow = False

    def wait_s(self, now: float, *, refused: bool = False) -> float:
        """Seconds that an attempt has to wait, after which it asks again; 0: it may begin, and has taken this turn.

        `refused`: the loop's own last request was; such loops take turns among themselves, and the others go on.
        """
        with self._lock:
            latest = self._latest if self._slow else self._latest_refused if refused else float("-inf")
            left = latest + APART_S - now
            if left > 0:
                return left
            self._latest = now
            if refused:
                self._latest_refused = now
            return 0.0


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

    def wait_s(self, now: float, *, refused: bool = False) -> float:
        """As of the shared pace, and 0 for an attempt that asks nothing."""
        return self._shared.wait_s(now, refused=refused) if self._asks() else 0.0
