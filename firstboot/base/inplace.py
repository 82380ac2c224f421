"""Overwriting in place, by the inode that was read, for files that hold a secret.

Not an atomic write on purpose: a new file would leave the old blocks, with the secret, free on the
disk. A write that is cut leaves a mixture of old and new bytes of the same length. A file that was
renamed into the place meanwhile is neither overwritten nor unlinked unread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from firstboot.base import files
from firstboot.base.errors import LocalFault

BLOCK = 4096  # bytes that one write replaces at most


class Changed(LocalFault):
    """The file at the path is not the one that was read, or not as it was read."""


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


def overwrite(held: Held, data: bytes) -> Held:
    """Write the bytes in which `data` differs from what was read, and fsync; return what is there.

    `data` has the same length. What was appended meanwhile stays, and is returned as well: by the
    inode, wherever it was renamed to. Changed when another file is at the path, or other bytes
    stand where this would write.
    """
    with files.attempt("overwrite", held.path):
        try:
            fd = _open(held.path)
        except FileNotFoundError:
            raise _changed(held.path) from None
        try:
            facts = os.fstat(fd)
            same = (facts.st_dev, facts.st_ino) == (held.device, held.inode)
            if not same or not stat.S_ISREG(facts.st_mode) or len(data) != len(held.data):
                raise _changed(held.path)
            pieces = list(_differing(held.data, data))
            if any(_at(fd, start, end) != held.data[start:end] for start, end in pieces):
                raise _changed(held.path)
            for start, end in pieces:
                while start < end:
                    start += os.pwrite(fd, data[start:end], start)
            os.fsync(fd)
            return replace(held, data=_at(fd, 0, os.fstat(fd).st_size))
        finally:
            os.close(fd)


def _differing(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    """Yield the stretches in which two texts of one length differ, at most `BLOCK` bytes each."""
    for at in range(0, len(old), BLOCK):
        one, other = old[at : at + BLOCK], new[at : at + BLOCK]
        if one != other:
            places = [n for n, (a, b) in enumerate(zip(one, other)) if a != b]
            yield at + places[0], at + places[-1] + 1


def _at(fd: int, start: int, end: int) -> bytes:
    """Read a stretch of a file, less where it ends before."""
    pieces = []
    while start < end:
        piece = os.pread(fd, end - start, start)
        if not piece:
            break
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


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
    left = overwrite(held, bytes(len(held.data)))
    with files.attempt("look at", held.path):
        if os.lstat(held.path).st_ino != held.inode or left.data.strip(b"\0"):
            raise _changed(held.path)
    files.remove(held.path)


def wipe_file(path: Path, *, limit: int = 1 << 20) -> None:
    """Wipe whatever regular file is at `path`; nothing when there is none."""
    held = read(path, limit=limit)
    if held is not None:
        wipe(held)


def _changed(path: Path) -> Changed:
    return Changed(f"{path} changed while it was being erased", hint="byteor-firstboot erase")
