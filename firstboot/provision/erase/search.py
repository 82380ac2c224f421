"""Search one place after the other for the tokens in hand; overwrite it, and read it again."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from firstboot.base import files, inplace
from firstboot.base.errors import LocalFault
from firstboot.base.inplace import Changed, Held
from firstboot.base.layout import Layout
from firstboot.provision.erase.places import Kind, Place
from firstboot.provision.erase.receipt import Copy, unseen
from firstboot.provision.erase.reread import Damaged, Reader
from firstboot.provision.erase.scrub import Redacted, Scrubber
from firstboot.provision.erase.unfinished import FILE_LIMIT, mount_point, spots

# Places of which no copy reaches the disk while the shield is up.
IN_MEMORY = re.compile(r"/run/(?!byteor-shield/)|/var/lib/cloud/instances/[^/]+/(?!sem/|scripts/)")
TRIES = 3  # a file that somebody writes meanwhile is read and overwritten again
UNREADABLE = "in a form that cannot be overwritten at its length"
BUSY = "it was written again while it was being erased"
MOVED = "it was renamed or removed while it was being erased"
SANDBOX = "it lies outside what the unit may write"


@dataclass(frozen=True)
class Holding:
    """A file that holds a token as it was read, and as it is to be; `result` is what that gives."""

    place: Place
    held: Held
    done: Redacted
    given: bool  # the reader of the drop place finds a token in it
    result: str
    why: str | None


class Search:
    """The tokens that are searched for, and how many files were looked at.

    `shielded`: what `IN_MEMORY` names is in memory in this boot.
    """

    def __init__(self, layout: Layout, wanted: Iterable[bytes], *, shielded: bool) -> None:
        self.looked_at = 0
        self.unseen: list[Copy] = []  # what could not be looked at
        self._layout, self._wanted = layout, tuple(wanted)
        self._scrubber, self._reader = Scrubber(self._wanted), Reader(self._wanted)
        self._shielded = shielded

    def look(self, places: Iterable[Place]) -> Iterator[Holding]:
        """Yield the files that hold a token, or that cannot be searched whole."""
        for place in places:
            if place.plain and not self._wanted:
                continue
            try:
                held = inplace.read(place.path, limit=FILE_LIMIT)
            except LocalFault as error:
                self.unseen.append(unseen(self._layout, place.path, str(error)))
                continue
            self.looked_at += held is not None
            if held is not None and held.data and self._wanted:
                one = self._judge(place, held)
                if _holds(one):
                    yield one

    def row(self, one: Holding, result: str, why: str | None = None) -> Copy:
        """Return the row that says `result` of a file; what remains says where."""
        copy = Copy(self._layout.shown(one.place.path), dict(one.done.found), result, why)
        if result != "remains":
            return copy
        # Where it was not found, or stays in what it is packed in: the whole file.
        whole = one.result == result or not one.done.spans
        where = spots(one.held.data, [(0, len(one.held.data))] if whole else one.done.spans)
        # Memory goes with the boot, and what it held then is gone.
        kept = not (self._shielded and IN_MEMORY.match(copy.path))
        point = mount_point(self._layout, one.place.path) if kept else None
        return replace(copy, inode=one.held.inode, mount_point=point, spots=where)

    def erase(self, todo: Iterable[Holding], *, tries: int = TRIES) -> Iterator[Copy]:
        """Overwrite each file, and what was renamed meanwhile; yield a row for each."""
        for one in todo:
            yield from filter(None, [self._erase(one)])
            if tries:
                yield from self.erase(self.look(_renamed(one)), tries=tries - 1)

    def _judge(self, place: Place, held: Held) -> Holding:
        """Redact a file, and read what that makes of it with the reader's own decoders."""
        if place.plain:
            return Holding(place, held, self._scrubber.plain(held.data), False, "overwritten", None)
        done = self._scrubber.redact(held.data)
        failed = "; ".join(done.failed) or None
        result, why = "overwritten", failed
        try:
            if self._reader.reads(done.data):
                result, why = "remains", failed or UNREADABLE
            elif failed:
                result = "remains" if done.found else "not_looked_at"
        except Damaged as error:
            result, why = "not_looked_at", str(error)
        ours = place.kind is Kind.OURS
        given = ours and (self._reader.gives(held.data) or self._reader.gives(done.data))
        return Holding(place, held, done, given, result, why)

    def _erase(self, one: Holding) -> Copy | None:
        """Overwrite the file that was read, by its inode; None when it holds none any more."""
        place, counts = one.place, Counter(one.done.found)
        # Whatever form it has: nobody reads the file again.
        wiped = place.kind is Kind.OURS and bool(one.given or counts)
        try:
            for _ in range(TRIES):
                if one.done.data == one.held.data:
                    break
                try:
                    held = inplace.overwrite(one.held, one.done.data)
                except Changed:
                    fresh = inplace.read(place.path, limit=FILE_LIMIT)
                    if fresh is None or fresh.inode != one.held.inode:
                        return self.row(one, "not_looked_at", MOVED)
                    one = self._judge(place, fresh)
                    counts = Counter(one.done.found)
                    wiped = place.kind is Kind.OURS and bool(one.given or counts)
                    continue
                same = held.data == one.done.data
                one = replace(one, held=held) if same else self._judge(place, held)
                counts |= one.done.found
                if same:
                    break
            else:
                return self.row(one, "remains", BUSY)
            one = replace(one, done=replace(one.done, found=counts))
            if wiped:
                if os.path.lexists(place.path):
                    inplace.wipe(one.held)
                return self.row(one, "unlinked")
        except LocalFault as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EROFS:
                return self.row(one, "remains", str(error))
            if _read_only(place.path):
                return self.row(one, "still_served", "its file system is read-only")
            return self.row(one, "remains", f"{error}: {SANDBOX}")
        return self.row(one, one.result, one.why) if _holds(one) else None


def _holds(one: Holding) -> bool:
    return bool(one.done.found or one.given or one.result != "overwritten")


def _renamed(one: Holding) -> Iterator[Place]:
    """Yield what is in a file's place, and where the file is now, if it was renamed meanwhile."""
    path = one.place.path
    try:
        if os.lstat(path).st_ino == one.held.inode:
            return
        yield one.place
    except OSError:
        pass
    try:
        beside = [
            entry.path for entry in os.scandir(path.parent) if entry.inode() == one.held.inode
        ]
    except OSError:
        return
    yield from (Place(Path(name), plain=one.place.plain) for name in beside)


def _read_only(path: Path) -> bool:
    """Return True where the file system itself is read-only, and not just our view of it.

    A unit's sandbox mounts it read-only for us alone: that is an option of the mount, and not of
    the file system (proc(5), mountinfo: the last field).
    """
    try:
        device = os.stat(path).st_dev
        text = (files.read(Path("/proc/self/mountinfo"), limit=4 << 20) or b"").decode()
    except (OSError, LocalFault):
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in text.splitlines():
        fields = line.split()
        if fields[2] == wanted and "ro" in fields[-1].split(","):
            return True
    return False
