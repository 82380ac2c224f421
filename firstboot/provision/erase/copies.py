"""Look everywhere for the tokens in hand, overwrite them, look again, write the receipt."""

from __future__ import annotations

import enum
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from firstboot.base import files
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision.erase import receipt as receipts
from firstboot.provision.erase.receipt import Copy, Receipt
from firstboot.provision.erase.scrub import Unredactable, redact

FILE_LIMIT = 64 << 20
WALK_DEPTH = 12
FILES_LIMIT = 20_000
TRIES = 3  # a file that somebody writes meanwhile is read and overwritten again
LATE = ("scripts that a later stage of this boot runs: byteor-erase looks at them",)
# cloud-init's datasources that fetch user data again at every boot (CLOUD-INIT.md, section 4).
FETCH_AGAIN = re.compile(
    "aliyun|altcloud|bigstep|cloudcix|cloudsigma|cloudstack|ec2|exoscale|gce|nwcs|opennebula|ovf"
    "|rbxcloud|scaleway|smartos|vmware"
)


class Kind(enum.IntEnum):
    """What may be done to a place; the order in which places are overwritten."""

    LATE = 1  # a later stage of this boot runs it
    LIVE = 2  # cloud-init reads it again: overwritten, never removed
    # Read by `sources`, so overwritten last: a run that is cut before sees the token again.
    SOURCE = 3
    OURS = 4  # the drop place and the token file: overwritten, then unlinked


@dataclass(frozen=True)
class Place:
    path: Path
    kind: Kind


def cloud_init_finished(layout: Layout) -> bool:
    """Return True when no later stage of this boot can still need a copy.

    cloud-init has written its result, or does not run at all.
    """
    if not layout.is_host or layout.cloud_result.exists():
        return True
    return not layout.cloud_run.is_dir() or (layout.cloud_run / "disabled").exists()


def still_served(layout: Layout) -> tuple[str, ...]:
    """Return sentences for what brings a token back whatever is overwritten here."""
    described = files.read(layout.cloud_datasource, limit=4096) or b""
    name = described.decode("utf-8", "replace").split(":")[0]
    short = name.replace("DataSource", "").lower()
    for suffix in ("local", "net"):
        short = short[: -len(suffix)] if short.endswith(suffix) else short
    if FETCH_AGAIN.fullmatch(short):
        return (
            f"the datasource {name} serves the user data again at every boot, and to any process "
            "on this host",
        )
    return ()


def places(layout: Layout) -> Iterator[Place]:
    """Yield every regular file to look at; links are not followed out of these trees."""
    yield Place(layout.drop_place, Kind.OURS)
    yield Place(layout.token_file, Kind.OURS)
    for top in (layout.cloud, layout.cloud_run):
        for path in _regular(top):
            kind = Kind.LIVE
            if "scripts" in path.relative_to(top).parts:
                kind = Kind.LATE
            elif path.name.startswith(("user-data.txt", "vendor-data")):
                kind = Kind.SOURCE
            yield Place(path, kind)


def _regular(top: Path) -> Iterator[Path]:
    seen = 0
    for directory, folders, names in os.walk(top, followlinks=False):
        too_deep = len(Path(directory).relative_to(top).parts) >= WALK_DEPTH
        folders[:] = [] if too_deep else sorted(folders)
        for name in sorted(names):
            path = Path(directory, name)
            try:
                regular = stat.S_ISREG(path.lstat().st_mode)
            except OSError:
                continue
            seen += 1
            if seen > FILES_LIMIT:
                return
            if regular:
                yield path


def erase(
    layout: Layout,
    tokens: Iterable[bytes],
    *,
    now: float,
    known: Callable[[bytes], bool] = lambda candidate: False,
    late: bool = True,
    served: Sequence[str] = (),
    kept: Sequence[Copy] = (),
) -> Receipt:
    """Erase the `tokens` in hand from every place, look again, and write the receipt.

    `known` tells a spent token by its mark: asked only about the bytes of copies that an earlier
    look left. `late` is False while cloud-init is at work: what it still runs is left alone, and
    said. `kept` are copies that are not ours to erase; those that were erased all the same are left
    out.
    """
    wanted = sorted({*tokens, *_left_before(layout, known)})
    found = sorted(places(layout), key=lambda place: place.kind)
    if not late:
        found = [place for place in found if place.kind is not Kind.LATE]
    copies, unread = [], []
    for place in found:
        try:
            data = files.read(place.path, limit=FILE_LIMIT)
        except LocalFault as error:
            unread.append(Copy(layout.shown(place.path), {}, "not_looked_at", str(error)))
            continue
        copy = _scrub(layout, place, data, wanted) if data and wanted else None
        if copy is not None:
            copies.append(copy)
    seen = {copy.path for copy in copies}
    receipt = Receipt(
        now,
        len(found) - len(unread),
        (*copies, *unread, *(copy for copy in kept if copy.path not in seen)),
        tuple(served),
        receipts.NOT_LOOKED_AT + (() if late else LATE),
    )
    receipts.save(layout, receipt)
    return receipt


def _left_before(layout: Layout, known: Callable[[bytes], bool]) -> Iterator[bytes]:
    """Yield the tokens of copies that the last look left, where their bytes still stand."""
    for copy in receipts.remaining(layout):
        path = layout.path(copy.path)
        try:
            data = files.read(path, limit=FILE_LIMIT) or b""
        except LocalFault:
            continue  # the walk meets it as well, and says why
        start = copy.offset or 0
        candidate = data[start : start + (copy.length or 0)]
        if candidate and known(candidate):
            yield candidate


def _scrub(layout: Layout, place: Place, data: bytes, tokens: Sequence[bytes]) -> Copy | None:
    """Erase what one file holds; None when it holds no token."""
    shown, counts = layout.shown(place.path), {}
    try:
        clean, found = redact(data, tokens)
        if not found:
            return None
        counts = dict(found)
        for _ in range(TRIES):
            if len(data) == place.path.lstat().st_size:
                files.overwrite(place.path, clean)
            data = files.read(place.path, limit=FILE_LIMIT) or b""
            clean, found = redact(data, tokens)
            if not found:
                break
        else:
            raise LocalFault("it was written again while it was being erased")
        if place.kind is Kind.OURS:
            files.wipe(place.path)
        return Copy(shown, counts, "unlinked" if place.kind is Kind.OURS else "overwritten")
    except (Unredactable, LocalFault) as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EROFS:
            return Copy(shown, counts, "still_served", str(error))
        spans = [(data.find(token), len(token)) for token in tokens if token in data]
        offset, length = spans[0] if spans else (None, None)
        inode = place.path.lstat().st_ino
        return Copy(shown, counts, "remains", str(error), inode, offset, length)
