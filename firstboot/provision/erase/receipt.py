"""The erasing receipt, ``identity/erasure.json``: what was found, done, verified, and what remains.

{"v": 2, "at": RFC 3339, "boot_id", "enrolling_boot_id", "files_looked_at": n, "shield", "copies":
[{"path", "encodings": {"raw": n}, "result", "at", "boot_id", "reason"}], "still_served":
[sentence], "not_looked_at": [sentence]}

`copies` are those of this boot and of the one that enrolled, one row a path. `result` is
``overwritten`` (in place, then read back clean), ``unlinked`` (overwritten, then removed),
``still_served`` (on a file system that is read-only), ``kept`` (not ours to erase),
``not_looked_at`` or ``remains``. A ``remains`` row also keeps what tells it once no source shows
the token: `inode`, the `mount_point` of its file system unless that is the root's, and `spots`, the
`offset`, `length` and `crc` of each copy. It stays until its file was read (`erase.unfinished`).
`shield` is the shield's state at this look (`erase.shield`): ``in memory`` where no copy reached
the disk, else ``off`` or why not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Optional

from firstboot.base import documents, files
from firstboot.base.clock import rfc3339
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout

VERSION = 2
RESULTS = ("overwritten", "unlinked", "still_served", "kept", "not_looked_at", "remains")
ERASED = ("overwritten", "unlinked")
GIVEN = "given with --token-file: its owner's, left as it is"
FREED = "freed disk blocks that cloud-init's own rewriting of its files left behind"
NOT_LOOKED_AT = (
    FREED,
    "the console at the provider",
    "swap and memory",
    "snapshots and backups made before",
    "files that user data's own commands wrote, but those of erase.paths",
    "system logs but /var/log/syslog, /var/log/messages and the .1 of each",
)


@dataclass(frozen=True)
class Spot:
    """A copy's place in a file; the CRC-32 of its bytes tells later if they are the same."""

    offset: int
    length: int
    crc: int


@dataclass(frozen=True)
class Copy:
    """One file that held a token, or that could not be looked at."""

    path: str
    encodings: Mapping[str, Any]
    result: str
    reason: Optional[str] = None
    inode: Optional[int] = None
    mount_point: Optional[str] = None
    spots: Optional[tuple[Spot, ...]] = None
    at: Optional[str] = None
    boot_id: Optional[str] = None


@dataclass(frozen=True)
class Stored:
    """The part of an earlier receipt that a later look needs."""

    copies: tuple[Copy, ...] = ()
    enrolling_boot_id: Optional[str] = None
    boot_id: Optional[str] = None
    shield: Optional[str] = None

    def of(self, result: str) -> tuple[Copy, ...]:
        return tuple(copy for copy in self.copies if copy.result == result)


@dataclass(frozen=True)
class Receipt:
    """One look everywhere."""

    at: float
    boot_id: str
    files_looked_at: int
    copies: tuple[Copy, ...]
    still_served: tuple[str, ...] = ()
    not_looked_at: tuple[str, ...] = NOT_LOOKED_AT
    enrolling_boot_id: str | None = None
    shield: str = "off"

    @property
    def remaining(self) -> list[str]:
        """Return the files that we could have written and that still hold a token: exit 9."""
        return [copy.path for copy in self.copies if copy.result == "remains"]

    def summary(self) -> dict[str, int]:
        """Return how many files were looked at, and how many rows have which result."""
        results = [copy.result for copy in self.copies]
        counts = {result: results.count(result) for result in RESULTS if result in results}
        return {"files_looked_at": self.files_looked_at, **counts}

    def to_json(self) -> dict[str, Any]:
        rows = [asdict(copy) for copy in self.copies]
        return {
            "v": VERSION,
            "at": rfc3339(self.at),
            "boot_id": self.boot_id,
            "enrolling_boot_id": self.enrolling_boot_id,
            "files_looked_at": self.files_looked_at,
            "shield": self.shield,
            "copies": [{k: v for k, v in row.items() if v is not None} for row in rows],
            "still_served": list(self.still_served),
            "not_looked_at": list(self.not_looked_at),
        }


def earlier(layout: Layout) -> Stored:
    """Return the last receipt's rows; none where it is damaged, or there is none."""
    try:
        return documents.read(layout.erasure, Stored) or Stored()
    except LocalFault:
        return Stored()


def unseen(layout: Layout, path: Path, why: str) -> Copy:
    """Return the row of a place that could not be looked at."""
    return Copy(layout.shown(path), {}, "not_looked_at", why)


def paths(layout: Layout, row: Copy) -> tuple[Path, ...]:
    """Return where the file of a row may be.

    A row names a file in the tree as the target does, and one outside as the caller did.
    """
    return (layout.path(row.path), Path(row.path))


def remaining(layout: Layout) -> tuple[Copy, ...]:
    """Return the copies that the last look left."""
    return earlier(layout).of("remains")


def save(layout: Layout, receipt: Receipt) -> Receipt:
    """Write the receipt with what this boot and the enrolling one erased before it.

    A damaged receipt is set aside first.
    """
    before = documents.read_or_set_aside(layout.erasure, Stored) or Stored()
    when = rfc3339(receipt.at)
    rows = [
        replace(row, at=row.at or when, boot_id=row.boot_id or receipt.boot_id)
        for row in receipt.copies
    ]
    enrolling = before.enrolling_boot_id or (
        receipt.boot_id if any(row.result in ERASED for row in rows) else None
    )
    paths = {row.path for row in rows}
    kept = [
        row
        for row in before.copies
        if row.result in ERASED
        and row.path not in paths
        and row.boot_id in (receipt.boot_id, enrolling)
    ]
    whole = replace(receipt, copies=(*rows, *kept), enrolling_boot_id=enrolling)
    files.write_json(layout.erasure, whole.to_json())
    return whole
