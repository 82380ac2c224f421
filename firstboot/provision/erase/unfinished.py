"""Copies that an earlier look left: told by their marks, and named until their file was read.

No source may show their token any more. A row ends when its whole file was read, the bytes that
were left are gone and no others are recognised; or when the file is gone. What is recognised is
searched for. A look that cannot see the file, or all of it, ends no row.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

from firstboot.base import inplace
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision.erase.places import Place
from firstboot.provision.erase.receipt import Copy, Spot
from firstboot.provision.erase.scrub import TooLarge, recognise

FILE_LIMIT = 64 << 20  # bytes of one file that is looked at
MOST_SPOTS = 64  # in a row; what is beyond is one more
AWAY = "not seen: the file system that it stood on is not mounted"
UNKNOWN = "its bytes are those that were left, and nothing tells the token in them"
UNSEARCHED = "the token is still in it, and it is none of the places that are searched"


def spots(data: bytes, spans: Iterable[tuple[int, int]]) -> tuple[Spot, ...]:
    """Return where copies stand in `data`, as a row keeps it."""
    listed = sorted(spans)
    if len(listed) > MOST_SPOTS:
        rest = (listed[MOST_SPOTS][0], max(end for _, end in listed))
        listed = [*listed[:MOST_SPOTS], rest]
    return tuple(Spot(at, end - at, zlib.crc32(data[at:end])) for at, end in listed)


def mount_point(layout: Layout, path: Path) -> str | None:
    """Return where the file system of a file's directory is mounted; None for the root's."""
    top = path.parent
    while top not in (layout.root, top.parent) and not _is_mounted(top):
        top = top.parent
    return layout.shown(top) if top != layout.root else None


def _is_mounted(path: Path) -> bool:
    """Return True where another file system begins than the one above it."""
    try:
        return os.stat(path).st_dev != os.stat(path.parent).st_dev
    except OSError:
        return False


class Unfinished:
    """The rows of an earlier receipt that say *remains*, and the tokens that stand there."""

    def __init__(
        self,
        layout: Layout,
        rows: Iterable[Copy],
        places: Iterable[Place],
        known: Callable[[bytes], bool],
        lengths: Collection[int],
    ) -> None:
        self.tokens: set[bytes] = set()
        self._layout, self._known, self._lengths = layout, known, lengths
        self._open: list[tuple[Copy, set[str]]] = []  # a row that stays, but for rows of these
        inodes = {inode: place.path for place in places for inode in _inode(place.path)}
        for row in rows:
            # The path, and where the file was renamed to.
            paths = {layout.path(row.path), inodes.get(row.inode or 0, layout.path(row.path))}
            why = self._look(row, paths)
            if why is not None:
                shown = {layout.shown(path) for path in paths}
                self._open.append((replace(row, reason=why), {row.path, *shown}))

    def _look(self, row: Copy, paths: set[Path]) -> str | None:
        """Return why a row stays, unless this look finds the token again; None when it ends."""
        if row.mount_point and not _is_mounted(self._layout.path(row.mount_point)):
            return AWAY
        why: str | None = None
        for path in paths:
            try:
                held = inplace.read(path, limit=FILE_LIMIT)
                data = held.data if held is not None else b""
                pieces = {data}
                for spot in row.spots or ():
                    piece = data[spot.offset : spot.offset + spot.length]
                    pieces.add(piece)
                    if zlib.crc32(piece) == spot.crc:
                        why = why or UNKNOWN
                for piece in sorted(pieces, key=len):  # of a file that is too large, at least these
                    for token in recognise(piece, self._known, self._lengths):
                        self.tokens.add(token)
                        why = UNSEARCHED
            except (LocalFault, TooLarge) as error:
                why = why or str(error)
        return why

    def after(self, rows: Iterable[Copy]) -> Iterator[Copy]:
        """Yield the rows that stay after a look that found `rows`."""
        found = {row.path for row in rows if row.result != "not_looked_at"}
        for row, paths in self._open:
            if not paths & found:
                yield row


def _inode(path: Path) -> Iterator[int]:
    try:
        yield os.lstat(path).st_ino
    except OSError:
        return
