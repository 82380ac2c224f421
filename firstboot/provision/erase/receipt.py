"""What was looked at, done, verified, and what remains: ``identity/erasure.json``, truthful or nothing.

{"v": 1, "at": RFC 3339, "files_looked_at": n, "copies": [{"path", "encodings": {"raw": n}, "result", "reason"}],
"history": [the copies of earlier receipts with their "at"], "still_served": [sentence], "not_looked_at": [sentence]}

`result` is ``overwritten`` (in place, then read back clean), ``unlinked`` (overwritten, then removed), ``pending`` (a
stage of this boot still needs it), ``still_served`` (on a medium that cannot be written), ``kept`` (not ours to erase) or
``remains``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from firstboot.base import files
from firstboot.base.clock import rfc3339
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout

HISTORY_LIMIT = 200
RESULTS = ("overwritten", "unlinked", "pending", "still_served", "kept", "remains")
NOT_LOOKED_AT = (
    "freed disk blocks that cloud-init's own rewriting of its files left behind",
    "the journal, /var/log/cloud-init.log and cloud-init-output.log, and the console at the provider",
    "swap and memory",
    "snapshots and backups made before",
    "files that user data's own commands wrote",
)


@dataclass(frozen=True)
class Copy:
    """One file that held a token."""

    path: str
    encodings: dict[str, int]
    result: str
    reason: str | None = None


@dataclass(frozen=True)
class Receipt:
    """One look everywhere."""

    at: float
    files_looked_at: int
    copies: tuple[Copy, ...]
    still_served: tuple[str, ...] = ()
    not_looked_at: tuple[str, ...] = NOT_LOOKED_AT
    history: tuple[dict[str, Any], ...] = field(default=())

    @property
    def remaining(self) -> list[str]:
        """Files that we could have written and that still hold a token: exit 9."""
        return [copy.path for copy in self.copies if copy.result == "remains"]

    def counted(self, result: str) -> int:
        return sum(1 for copy in self.copies if copy.result == result)

    def summary(self) -> dict[str, Any]:
        """The facts of one log line."""
        counts = {result: self.counted(result) for result in RESULTS}
        return {
            "files_looked_at": self.files_looked_at,
            **{key: value or None for key, value in counts.items()},
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "v": 1,
            "at": rfc3339(self.at),
            "files_looked_at": self.files_looked_at,
            "copies": [asdict(copy) for copy in self.copies],
            "history": list(self.history),
            "still_served": list(self.still_served),
            "not_looked_at": list(self.not_looked_at),
        }


def _rows(stored: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = stored.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def earlier(layout: Layout) -> tuple[dict[str, Any], ...]:
    """The history for the next receipt: what earlier ones did, newest last; a damaged receipt is set aside."""
    try:
        stored = files.read_json(layout.erasure)
    except Corrupt:
        files.set_aside(layout.erasure)
        return ()
    if stored is None:
        return ()
    last = [{**copy, "at": stored.get("at")} for copy in _rows(stored, "copies")]
    return tuple((_rows(stored, "history") + last)[-HISTORY_LIMIT:])


def remained(layout: Layout) -> bool:
    """True when the last look left a copy in a file that we could have written; a receipt that is damaged does not tell."""
    try:
        stored = files.read_json(layout.erasure) or {}
    except LocalFault:
        return False
    return any(row.get("result") == "remains" for row in _rows(stored, "copies"))


def save(layout: Layout, receipt: Receipt) -> None:
    files.write_json(layout.erasure, receipt.to_json())
