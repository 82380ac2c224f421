"""Overwriting in place, by the inode that was read, for files that hold a secret.

Not an atomic write on purpose: a new file would leave the old blocks, with the secret, free on the
disk. A write that is cut leaves a mixture of old and new bytes of the same length. A file that was
renamed into the place meanwhile is neither overwritten nor unlinked unread.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from firstboot.base import files
from firstboot.base.errors import LocalFault


@dataclass(frozen=True)
class Held:
    """A regular file as it was read."""

    path: Path
    data: bytes
    device: int
    inode: int


def read(path: Path, *, limit: int) -> Held | None:
    """Read a file that may be overwritten; None and errors as for `files.read`."""
    found = files.read_with_facts(path, limit=limit)
    if found is None:
        return None
    data, facts = found
    return Held(path, data, facts.st_dev, facts.st_ino)


def overwrite(held: Held, data: bytes) -> None:
    """Replace the bytes of the file that was read and fsync; `data` has the same length."""
    try:
        fd = _open(held.path)
        try:
            facts = os.fstat(fd)
            same = (facts.st_dev, facts.st_ino) == (held.device, held.inode)
            if not same or not stat.S_ISREG(facts.st_mode) or facts.st_size != len(data):
                raise _changed(held.path)
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], written)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        files.fail("overwrite", held.path, error)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except PermissionError:
        # Without root (--root on a tree of one's own) a 0400 file such as obj.pkl needs a new mode.
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        if mode & 0o200 or path.is_symlink():
            raise
        os.chmod(path, mode | 0o200)
        try:
            return os.open(path, flags)
        finally:
            os.chmod(path, mode)


def wipe(held: Held) -> None:
    """Overwrite the file that was read with zeros, fsync, then unlink it durably."""
    overwrite(held, bytes(len(held.data)))
    try:
        if os.lstat(held.path).st_ino != held.inode:
            raise _changed(held.path)
    except OSError as error:
        files.fail("look at", held.path, error)
    files.remove(held.path)


def wipe_file(path: Path, *, limit: int = 1 << 20) -> None:
    """Wipe whatever regular file is at `path`; nothing when there is none."""
    held = read(path, limit=limit)
    if held is not None:
        wipe(held)


def _changed(path: Path) -> LocalFault:
    return LocalFault(f"{path} changed while it was being erased", hint="byteor-firstboot erase")
