"""Copies that an earlier look left: told by their marks, and named until their file was read.

No source may show their token any more. A row ends when its file was read and its bytes changed, or
are recognised, so that the token is searched for; or when the file is gone. A look that cannot see
the file, or does not recognise what stands there, ends no row.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

from firstboot.base import inplace
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision.erase.places import Place
from firstboot.provision.erase.receipt import Copy, Spot
from firstboot.provision.erase.scrub import recognise

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


class Unfinished:
    """The rows of an earlier receipt that say *remains*, and the tokens that stand there."""

    def __init__(
        self,
        layout: Layout,
        rows: Iterable[Copy],
        places: Iterable[Place],
        known: Callable[[bytes], bool],
    ) -> None:
        self.tokens: set[bytes] = set()
        self._layout = layout
        self._open: list[tuple[Copy, set[str]]] = []  # a row that stays, but for rows of these
        inodes = {inode: place.path for place in places for inode in _inode(place.path)}
        for row in rows:
            # The path, and where the file was renamed to.
            paths = {layout.path(row.path), inodes.get(row.inode or 0, layout.path(row.path))}
            why = self._look(row, paths, known)
            if why is not None:
                shown = {layout.shown(path) for path in paths}
                self._open.append((replace(row, reason=why), {row.path, *shown}))

    def _look(self, row: Copy, paths: set[Path], known: Callable[[bytes], bool]) -> str | None:
        """Return why a row stays, unless this look finds the token again; None when it ends."""
        if row.mounted and self._unmounted(row):
            return AWAY
        why: str | None = None
        for path in paths:
            try:
                held = inplace.read(path, limit=FILE_LIMIT)
            except LocalFault as error:
                why = why or str(error)
                continue
            data = held.data if held is not None else b""
            for spot in row.spots or ():
                piece = data[spot.offset : spot.offset + spot.length]
                found = recognise(piece, known)
                self.tokens |= found
                if found or zlib.crc32(piece) == spot.crc:
                    why = UNSEARCHED if found else why or UNKNOWN
        return why

    def _unmounted(self, row: Copy) -> bool:
        above = self._layout.path(row.path).parent
        while not above.exists():
            above = above.parent
        return above.stat().st_dev == self._layout.root.stat().st_dev

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
