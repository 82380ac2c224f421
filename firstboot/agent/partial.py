"""A file that grows over many attempts: continued where it ended, hashed as it grows, put in place when it is whole."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Callable, NoReturn

from firstboot.base import files
from firstboot.base.errors import Corrupt

BLOCK_BYTES = 1 << 20  # read at a time
# Made durable so often: a power cut costs no more than this, and no single fsync takes minutes on a slow card.
SYNC_BYTES = 64 << 20


class Partial:
    """`path` opened to go on writing, private; closed by leaving the ``with``. `size` bytes are there, `digest` is theirs.

    `alive` is called after each block. OSErrors come out as LocalFault.
    """

    def __init__(self, path: Path, *, alive: Callable[[], None]) -> None:
        self._path, self._alive = path, alive
        self._fd = self._open()
        self.size, self.digest = 0, hashlib.sha256()
        self._synced = 0

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            self._fail("open", error)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Corrupt(f"{self._path} is not a regular file")
        return fd

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def take_up(self) -> None:
        """Hash what is there, so that writing goes on at its end."""
        try:
            while True:
                block = os.pread(self._fd, BLOCK_BYTES, self.size)
                if not block:
                    break
                self.digest.update(block)
                self.size += len(block)
                self._alive()
        except OSError as error:
            self._fail("read", error)
        self._synced = self.size

    def start_over(self) -> None:
        """Forget what is there."""
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            self._fail("empty", error)
        self.size, self._synced, self.digest = 0, 0, hashlib.sha256()

    def add(self, piece: bytes) -> None:
        """Write at the end."""
        left = memoryview(piece)
        try:
            while left:
                written = os.pwrite(self._fd, left, self.size)
                self.digest.update(left[:written])
                self.size += written
                left = left[written:]
            if self.size - self._synced >= SYNC_BYTES:
                os.fdatasync(self._fd)
                self._synced = self.size
        except OSError as error:
            self._fail("write", error)
        self._alive()

    def complete(self, target: Path) -> None:
        """Make it durable and rename it to `target`."""
        try:
            os.fsync(self._fd)
            os.rename(self._path, target)
            files.sync_directory(target.parent)
        except OSError as error:
            self._fail("complete", error)

    def _fail(self, doing: str, error: OSError) -> NoReturn:
        files.fail(doing, self._path, error)
