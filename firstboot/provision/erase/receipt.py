"""The erasing receipt, ``identity/erasure.json``: what was found, done, verified, and what remains.

{"v": 1, "at": RFC 3339, "files_looked_at": n, "copies": [{"path", "encodings": {"raw": n},
"result", "reason"}], "still_served": [sentence], "not_looked_at": [sentence]}

`result` is ``overwritten`` (in place, then read back clean), ``unlinked`` (overwritten, then
removed), ``still_served`` (on a medium that cannot be written), ``kept`` (not ours to erase),
``not_looked_at`` or ``remains``. A ``remains`` row also keeps `inode`, `offset` and `length` of one
copy, so that a later look recognises it by its mark once no source shows the token any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional

from firstboot.base import documents, files
from firstboot.base.clock import rfc3339
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout

RESULTS = ("overwritten", "unlinked", "still_served", "kept", "not_looked_at", "remains")
NOT_LOOKED_AT = (
    "freed disk blocks that cloud-init's own rewriting of its files left behind",
    "the journal, /var/log/cloud-init.log and cloud-init-output.log, and the provider's console",
    "swap and memory",
    "snapshots and backups made before",
    "files that user data's own commands wrote",
)


@dataclass(frozen=True)
class Copy:
    """One file that held a token, or that could not be looked at."""

    path: str
    encodings: Mapping[str, Any]
    result: str
    reason: Optional[str] = None
    inode: Optional[int] = None
    offset: Optional[int] = None
    length: Optional[int] = None


@dataclass(frozen=True)
class _Stored:
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """One look everywhere."""

    at: float
    files_looked_at: int
    copies: tuple[Copy, ...]
    still_served: tuple[str, ...] = ()
    not_looked_at: tuple[str, ...] = NOT_LOOKED_AT

    @property
    def remaining(self) -> list[str]:
        """Files that we could have written and that still hold a token: exit 9."""
        return [copy.path for copy in self.copies if copy.result == "remains"]

    def summary(self) -> dict[str, Any]:
        """Return the facts of one log line."""
        results = [copy.result for copy in self.copies]
        counts = {result: results.count(result) or None for result in RESULTS}
        return {"files_looked_at": self.files_looked_at, **counts}

    def to_json(self) -> dict[str, Any]:
        return {
            "v": 1,
            "at": rfc3339(self.at),
            "files_looked_at": self.files_looked_at,
            "copies": [asdict(copy) for copy in self.copies],
            "still_served": list(self.still_served),
            "not_looked_at": list(self.not_looked_at),
        }


def remaining(layout: Layout) -> tuple[Copy, ...]:
    """Return the copies that the last look left; none where the receipt is damaged."""
    try:
        stored = documents.read(layout.erasure, _Stored) or _Stored()
    except LocalFault:
        return ()
    return tuple(copy for copy in stored.copies if copy.result == "remains")


def save(layout: Layout, receipt: Receipt) -> None:
    """Write the receipt; a damaged one is set aside first."""
    try:
        documents.read(layout.erasure, _Stored)
    except Corrupt:
        files.set_aside(layout.erasure)
    files.write_json(layout.erasure, receipt.to_json())
