"""``activation/deployments.json``: what was decided about each deployment, for the agent, for `status` and for people.

The newest verdicts, what is in force, and which bundle the agent is to bring. Written by the activator alone, readable by
everybody. It is a record, never the authority: what is in force is what ``current`` names, what was verified stands in
``sequence.json``; a damaged record is set aside and begun again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from firstboot.base import files, log
from firstboot.base.errors import Corrupt
from firstboot.base.layout import Layout

VERSION = 1
KEPT_ROWS = 50
ACTIVE, REFUSED, FAILED, ROLLED_BACK, WAITING = (
    "active",
    "refused",
    "failed",
    "rolled_back",
    "waiting",
)


@dataclass(frozen=True)
class Row:
    """One verdict. What is not known (of an envelope that nobody signed) is None."""

    verdict: str
    at: str
    deployment_id: str | None = None
    sequence: int | None = None
    spec_hash: str | None = None
    payload_sha256: str | None = None
    envelope_sha256: str | None = None
    code: str | None = None
    reason: str | None = None
    keys_version: int | None = None
    report_id: str | None = None  # of the last report of an activation

    def same_as(self, other: Row) -> bool:
        """True when both say the same, whenever it was said."""
        return replace(self, at="", reason=None) == replace(other, at="", reason=None)


_NUMBERS = ("sequence", "keys_version")
_TEXTS = tuple(item.name for item in fields(Row) if item.name not in _NUMBERS)


@dataclass(frozen=True)
class Record:
    """The whole file. `directory` was put in force last and found healthy, `previous` before it; both are kept."""

    request: str | None = None
    envelope_sha256: str | None = None
    wanted: Mapping[str, Any] | None = None
    current: Mapping[str, Any] | None = None
    directory: str | None = None
    previous: str | None = None
    history: tuple[Row, ...] = field(default=())

    def of_payload(self, payload_sha256: str) -> Row | None:
        """The newest verdict about this payload."""
        return next(
            (row for row in reversed(self.history) if row.payload_sha256 == payload_sha256), None
        )

    def of_envelope(self, envelope_sha256: str) -> Row | None:
        """The newest verdict about this envelope."""
        return next(
            (row for row in reversed(self.history) if row.envelope_sha256 == envelope_sha256), None
        )

    def with_row(self, row: Row) -> Record:
        """The same with one more verdict, unless the newest says just that."""
        if self.history and self.history[-1].same_as(row):
            return self
        rows = [*self.history, row]
        while len(rows) > KEPT_ROWS:
            # What nobody signed goes first: the agent could bring any number of it, to make us forget what was tried.
            rows.remove(next((one for one in rows if one.payload_sha256 is None), rows[0]))
        return replace(self, history=tuple(rows))


def load(layout: Layout) -> Record:
    """Read the record; a damaged one is set aside."""
    try:
        return peek(layout)
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(layout.history))
        return Record()


def peek(layout: Layout) -> Record:
    """Read the record and change nothing; Corrupt when it is damaged."""
    stored = files.read_json(layout.history)
    return Record() if stored is None else _parse(stored)


def save(layout: Layout, record: Record) -> None:
    """Replace the record durably."""
    document: dict[str, Any] = {
        "v": VERSION,
        "answered": {"request": record.request, "envelope_sha256": record.envelope_sha256},
        "wanted": record.wanted,
        "current": record.current,
        "directory": record.directory,
        "previous": record.previous,
        "history": [asdict(row) for row in record.history],
    }
    files.write_json(layout.history, document, mode=0o644)


def _parse(stored: Mapping[str, Any]) -> Record:
    answered, rows = stored.get("answered") or {}, stored.get("history")
    if not isinstance(answered, dict) or not isinstance(rows, list):
        raise Corrupt("deployments.json is damaged: no history")
    return Record(
        request=_text(answered.get("request")),
        envelope_sha256=_text(answered.get("envelope_sha256")),
        wanted=_mapping(stored.get("wanted")),
        current=_mapping(stored.get("current")),
        directory=_text(stored.get("directory")),
        previous=_text(stored.get("previous")),
        history=tuple(_row(row) for row in rows[-KEPT_ROWS:]),
    )


def _row(value: Any) -> Row:
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("verdict"), str)
        or not isinstance(value.get("at"), str)
    ):
        raise Corrupt("deployments.json is damaged: a verdict")
    found: dict[str, Any] = {name: _text(value.get(name)) for name in _TEXTS}
    found.update({name: _number(value.get(name)) for name in _NUMBERS})
    return Row(**found)


def _text(value: Any) -> str | None:
    if not isinstance(value, (str, type(None))):
        raise Corrupt("deployments.json is damaged: not a text")
    return value


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, type(None))):
        raise Corrupt("deployments.json is damaged: not a number")
    return value


def _mapping(value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, (dict, type(None))):
        raise Corrupt("deployments.json is damaged: not a mapping")
    return value
