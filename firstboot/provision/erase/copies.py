"""Look everywhere for the tokens in hand, overwrite them, look again, write the receipt."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable

from firstboot.base import files, inplace
from firstboot.base.errors import LocalFault
from firstboot.base.inplace import Held
from firstboot.base.layout import Layout
from firstboot.provision.erase import fragments, places, receipt, systemjournal
from firstboot.provision.erase.places import Kind, Place
from firstboot.provision.erase.receipt import Copy, Receipt
from firstboot.provision.erase.reread import Reader
from firstboot.provision.erase.scrub import Scrubber, recognise
from firstboot.provision.erase.shield import COPIED, MEMORY, OFF

FILE_LIMIT = 64 << 20  # bytes of one file that is looked at
TOKEN_FILE_LIMIT = 8192
TRIES = 3  # a file that somebody writes meanwhile is read and overwritten again
LATE = "scripts that a later stage of this boot runs: byteor-erase looks at them"
UNREADABLE = "in a form that cannot be overwritten at its length"
# Places of which no copy reaches the disk while the shield is up.
IN_MEMORY = re.compile(r"/run/(?!byteor-shield/)|/var/lib/cloud/instances/[^/]+/(?!sem/|scripts/)")
_SEED = re.compile(r"\[(?:seed|source)=([^\]]*)\]")


def cloud_init_finished(layout: Layout) -> bool:
    """Return True when no later stage of this boot can still need a copy.

    cloud-init has written its result, or does not run at all.
    """
    if not layout.is_host or layout.cloud_result.exists():
        return True
    return not layout.cloud_run.is_dir() or (layout.cloud_run / "disabled").exists()


def still_served(layout: Layout) -> tuple[str, ...]:
    """Return a sentence for the datasource from which the user data can be read again.

    That is any but a seed directory, whose files are overwritten as all others: a metadata service
    answers any process of the host or root alone, a medium can be mounted again.
    """
    described = (files.read(layout.cloud_datasource, limit=4096) or b"").decode("utf-8", "replace")
    name = described.split(":")[0].strip()
    seeds = [seed for match in _SEED.finditer(described) for seed in match.group(1).split(",")]
    if not name or name == "DataSourceNone":
        return ()
    if seeds and all(seed.startswith("/") and not seed.startswith("/dev/") for seed in seeds):
        return ()
    return (
        f"the datasource {name} serves the user data again, at every boot or to whoever asks it on "
        "this host",
    )


def erase(
    layout: Layout,
    tokens: Iterable[bytes],
    *,
    now: float,
    known: Callable[[bytes], bool] = lambda candidate: False,
    late: bool = True,
    served: Sequence[str] = (),
    kept: Sequence[Copy] = (),
    named: Sequence[str] = (),
    shield: str = OFF,
    unspent: bool = False,
    again: Callable[[], Iterable[Path]] = tuple,
) -> Receipt:
    """Erase the `tokens` in hand from every place, look again, and write the receipt.

    `known` tells a spent token by its mark: asked only about what an earlier look left or named.
    `late` is False while cloud-init is at work: what it still runs is left alone, and said. `kept`
    are copies that are not ours to erase; those that were erased all the same are left out. `named`
    are the files of `erase.paths`. `shield` is the shield's state; `unspent`: a source
    holds a token that is not erased now. `again` reads the sources once more, and returns the
    files that still give a token: these remain.
    """
    before = receipt.earlier(layout)
    given = dict(_given_before(before, known))
    wanted = sorted({*tokens, *given.values(), *_left_before(layout, before, known)})
    found = places.find(layout, named)
    unsaid = list(receipt.NOT_LOOKED_AT)
    if not late:
        found.places = [place for place in found.places if place.kind is not Kind.LATE]
        unsaid.append(LATE)
    rows, looked_at = _search(layout, found, wanted)
    rows += _fragments(layout)
    try:
        rows += filter(None, [systemjournal.search(layout, wanted)])
    except LocalFault as error:
        unsaid.append(str(error))
    rows += [Copy(path, {"raw": 1}, "kept", receipt.GIVEN) for path in given]
    seen = {row.path: row for row in reversed([*rows, *kept])}
    for path in {layout.shown(Path(os.path.realpath(file))) for file in again()}:
        if path not in seen or seen[path].result in receipt.ERASED:
            seen[path] = Copy(path, {}, "remains", "its reader still finds the token in it")
            rows.append(seen[path])
    boot_id = (files.read(layout.boot_id, limit=64) or b"").decode().strip()
    shield = _shielded(shield, before, boot_id, rows, unspent=unspent)
    if shield == MEMORY:
        unsaid.remove(receipt.FREED)
    return receipt.save(
        layout,
        Receipt(
            now,
            boot_id,
            looked_at,
            tuple(reversed(seen.values())),
            tuple(served),
            tuple(unsaid),
            shield=shield,
        ),
    )


def _search(layout: Layout, found: places.Found, wanted: list[bytes]) -> tuple[list[Copy], int]:
    """Erase `wanted` from each place; return a row a copy, and how many files were looked at."""
    rows, looked_at = found.unseen, 0
    scrubber, reader = Scrubber(wanted), Reader(wanted)
    for place in found.places:
        try:
            held = inplace.read(place.path, limit=FILE_LIMIT)
        except LocalFault as error:
            rows.append(Copy(layout.shown(place.path), {}, "not_looked_at", str(error)))
            continue
        looked_at += held is not None
        row = (
            _scrub(layout, place, held, scrubber, reader) if held and held.data and wanted else None
        )
        if row is not None:
            rows.append(row)
    return rows, looked_at


def _shielded(
    state: str, before: receipt.Stored, boot_id: str, rows: Sequence[Copy], *, unspent: bool
) -> str:
    """Return what the receipt says of the shield, whose state is `state` at this look.

    ``in memory`` only where all copies were in memory, and none is left when they are copied down.
    """
    if state == COPIED:
        if before.shield == MEMORY and before.boot_id == boot_id and not rows:
            return MEMORY
        return "not shielded: the files were on the disk before the token was erased"
    if state != MEMORY:
        return state
    if unspent:
        return "not shielded: a token that is not spent goes to the disk with the files"
    for row in rows:
        if row.result not in receipt.ERASED or not IN_MEMORY.match(row.path):
            return f"not shielded: {row.path} is on the disk, or still holds the token"
    return MEMORY


def _given_before(
    before: receipt.Stored, known: Callable[[bytes], bool]
) -> Iterator[tuple[str, bytes]]:
    """Yield the files that were given with --token-file and still hold a spent token, and it."""
    for row in before.of("kept"):
        if os.path.isabs(row.path):
            try:
                token = (files.read(Path(row.path), limit=TOKEN_FILE_LIMIT) or b"").strip()
            except LocalFault:
                continue  # it cannot be looked at, so nothing is claimed of it
            if token and known(token):
                yield row.path, token


def _left_before(
    layout: Layout, before: receipt.Stored, known: Callable[[bytes], bool]
) -> Iterator[bytes]:
    """Yield the tokens of copies that the last look left, where their bytes still stand."""
    for row in before.of("remains"):
        try:
            held = inplace.read(layout.path(row.path), limit=FILE_LIMIT)
        except LocalFault:
            continue  # the walk meets it as well, and says why
        start = row.offset or 0
        if held is not None:
            yield from recognise(held.data[start : start + (row.length or 0)], known)


def _scrub(
    layout: Layout, place: Place, held: Held, scrubber: Scrubber, reader: Reader
) -> Copy | None:
    """Erase what one file holds, and read it again; None when it holds no token."""
    done = scrubber.redact(held.data)
    counts = dict(done.found)

    def row(result: str, why: str | None = None) -> Copy:
        shown, left = layout.shown(place.path), result == "remains"
        where = (held.inode, done.start, done.end - done.start) if left else (None, None, None)
        return Copy(shown, counts, result, why, *where)

    ours = place.kind is Kind.OURS
    given = ours and reader.gives(held.data)
    try:
        for _ in range(TRIES):
            if done.data == held.data:
                break
            inplace.overwrite(held, done.data)
            again = inplace.read(place.path, limit=FILE_LIMIT)
            if again is None or again.data == done.data:
                held = again or held
                break
            held, done = again, scrubber.redact(again.data)
        else:
            return row("remains", "it was written again while it was being erased")
        if given or (ours and (counts or reader.gives(done.data))):
            # Whatever form it has: nobody reads the file again.
            inplace.wipe(held)
            return row("unlinked")
        if reader.reads(done.data):
            done.start, done.end = 0, len(done.data)
            return row("remains", "; ".join(done.failed) or UNREADABLE)
        if done.failed:
            return row("remains" if counts else "not_looked_at", "; ".join(done.failed))
    except LocalFault as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EROFS:
            if _read_only(place.path):
                return row("still_served", "its file system is read-only")
            return row("remains", f"{error}: it lies outside what the unit may write")
        return row("remains", str(error))
    if not counts:
        return None
    return row("overwritten")


def _fragments(layout: Layout) -> Iterator[Copy]:
    """Erase what cloud-init printed of a broken line of ours."""
    values = fragments.broken(layout)
    for place in fragments.where(layout) if values else ():
        shown = layout.shown(place.path)
        try:
            held = inplace.read(place.path, limit=FILE_LIMIT)
            if held is None:
                continue
            data, count = fragments.x_out(held.data, values)
            if count:
                inplace.overwrite(held, data)
                yield Copy(shown, {"fragment": count}, "overwritten")
        except LocalFault as error:
            yield Copy(shown, {}, "not_looked_at", str(error))


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
