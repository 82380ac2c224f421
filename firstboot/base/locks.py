"""Exclusive locks between processes, by flock(2): they go with their holder, and their files are never unlinked."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Callable

from firstboot.base import files
from firstboot.base.clock import monotonic

POLL_S = 0.05


@contextmanager
def locked(path: Path, *, wait_s: float, busy: Callable[[], Exception]) -> Iterator[None]:
    """Hold ``flock`` on `path` (made if absent, never unlinked); raise what `busy` makes after `wait_s` seconds."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        files.fail("lock", path, error)
    pause = Event()
    try:
        limit = monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() >= limit:
                    raise busy() from None
                pause.wait(POLL_S)
        yield
    finally:
        os.close(fd)
