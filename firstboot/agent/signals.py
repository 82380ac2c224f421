"""Signals of the agent, followed from its first moment on.

That is before its heavy half is imported. They arrive as bytes in a pipe: the kernel gives SIGCHLD
to the thread that started the child, which does not wake a main thread that waits for a lock.
"""

from __future__ import annotations

import os
import select
import signal
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)
FOLLOWED = (*ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGCHLD)


class Signals:
    """Take signals for the main thread; none is lost.

    Only SIGTERM and SIGINT end the process. `at_once`: these two raise SystemExit where the main
    thread is; else they are only returned.
    """

    def __init__(self) -> None:
        self.at_once = True
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def follow(self) -> None:
        """Begin, in the main thread."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in FOLLOWED:
            signal.signal(number, self._came)

    def send(self, number: int) -> None:
        """Add one as if it had come; for any thread."""
        os.write(self._write, bytes([number]))

    def wait(self, pause: float) -> bytes:
        """Return those that came, after `pause` seconds at the latest."""
        ready, _, _ = select.select([self._read], [], [], pause)
        return os.read(self._read, 1 << 16) if ready else b""

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self.at_once and number in ENDING:
            raise SystemExit(0)
