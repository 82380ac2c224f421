"""Read the activator's records: verdicts and the key ring.

    activation/deployments.json   the newest verdicts, what is active, the bundle to fetch
    activation/keyring.json       the trusted signing keys (`activate.keyring` writes it)

Written by root, readable by everybody. A record is never the authority: active is what
``current`` names, and what was verified stands in ``sequence.json``. Readers get a value of the
right shape or `Corrupt`; only the activator sets a damaged file aside.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Callable, Optional, TypeVar

from firstboot.base import documents, files, trees
from firstboot.base.clock import from_rfc3339
from firstboot.base.documents import Digest, Identifier, Line, Rule
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.exchange import faults

VERSION = 1
KEPT_ROWS = 50
LONGEST_DATE = 64  # characters
ACTIVE, REFUSED, FAILED = "active", "refused", "failed"
ROLLED_BACK, WAITING = "rolled_back", "waiting"
NO_ROOM = "no_room"
ED25519, RETIRED = "Ed25519", "retired"  # the status of a key is ACTIVE or RETIRED
_SHOWN = ("deployment_id", "sequence", "verdict", "code", "reason", "at", "due")
_Stamp = tuple[int, int, int, int]
T = TypeVar("T")

Date = Annotated[documents.Time, Rule(lambda t: len(t) <= LONGEST_DATE, "a date")]


@dataclass(frozen=True)
class Row:
    """One verdict. What is not known (of an envelope that nobody signed) is None."""

    verdict: Line
    at: Line
    deployment_id: Optional[Identifier] = None
    sequence: Optional[int] = None
    spec_hash: Optional[Line] = None
    payload_sha256: Optional[Digest] = None
    envelope_sha256: Optional[Digest] = None
    code: Optional[Line] = None
    reason: Optional[str] = None
    keys_version: Optional[int] = None
    report_id: Optional[Line] = None  # of the last report of an activation
    due: Optional[documents.Time] = None  # of what waits: when it is to be judged again
    needed: Optional[int] = None  # of `no_room`: bytes that must be free
    tries: Optional[int] = None

    @property
    def name(self) -> str | None:
        """Return the deployment's id and sequence, None for what nobody signed."""
        named = self.deployment_id is not None and self.sequence is not None
        return f"{self.deployment_id}-{self.sequence}" if named else None

    def _said(self) -> Row:
        return replace(self, at="", reason=None, due=None, tries=None)


@dataclass(frozen=True)
class Answered:
    """The request that was answered last, and the envelope that it was about."""

    request: Optional[str] = None
    envelope_sha256: Optional[Digest] = None


@dataclass(frozen=True)
class Wanted:
    """The bundle that the agent is to fetch: exactly these bytes."""

    deployment_id: Identifier
    sequence: int
    sha256: Digest
    size: Annotated[int, Rule(bool, "more than 0")]


@dataclass(frozen=True)
class Current:
    """The active deployment, as a heartbeat names it."""

    deployment_id: Identifier
    sequence: int
    spec_hash: Optional[Line]
    state: Line


@dataclass(frozen=True)
class Record:
    """The whole of ``deployments.json``; verdicts are oldest first.

    `directory` was activated last and found healthy, `previous` before it; both are kept.
    """

    history: tuple[Row, ...]
    answered: Answered = Answered()
    wanted: Optional[Wanted] = None
    current: Optional[Current] = None
    directory: Optional[str] = None
    previous: Optional[str] = None

    def of_payload(self, payload_sha256: str) -> Row | None:
        """Return the newest verdict about this payload."""
        rows = (row for row in reversed(self.history) if row.payload_sha256 == payload_sha256)
        return next(rows, None)

    def of_envelope(self, envelope_sha256: str | None) -> Row | None:
        """Return the newest verdict about this envelope."""
        rows = (row for row in reversed(self.history) if row.envelope_sha256 == envelope_sha256)
        return next(rows, None) if envelope_sha256 is not None else None

    def with_row(self, row: Row) -> Record:
        """Return the record with one more verdict, unless the newest says just that."""
        row = replace(row, reason=documents.sentence(row.reason))
        rows = [*self.history, row]
        if self.history and self.history[-1]._said() == row._said():
            # When it is due again, and how often it was tried, stands in the newest.
            rows = [*self.history[:-1], replace(row, at=self.history[-1].at)]
        while len(rows) > KEPT_ROWS:
            # What nobody signed goes first: an agent could bring any number of such envelopes to
            # make us forget what was tried.
            rows.remove(next((one for one in rows if one.payload_sha256 is None), rows[0]))
        return replace(self, history=tuple(rows))


def read(layout: Layout) -> Record:
    """Return the record and change nothing; Corrupt when it is damaged."""
    return _cached(layout.history, Record) or Record(())


def load(layout: Layout) -> Record:
    """Return the record; a damaged one is set aside and begun again."""
    return documents.read_or_set_aside(layout.history, Record) or Record(())


def save(layout: Layout, record: Record) -> None:
    """Replace the record durably."""
    document = {"v": VERSION, **asdict(record)}
    files.write_json(layout.history, document, mode=0o644)


# Read several times a minute, and written by rename a few times a year: parsing is most of what
# an idle agent would do.
_parsed: dict[Path, tuple[_Stamp, Any]] = {}


def _cached(path: Path, kind: type[T]) -> T | None:
    try:
        facts = os.lstat(path)
    except OSError:
        return documents.read(path, kind)
    stamp = (facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size)
    known = _parsed.get(path)
    if known is None or known[0] != stamp:
        known = _parsed[path] = (stamp, documents.read(path, kind))
    value: T | None = known[1]
    return value


# -- the key ring


@dataclass(frozen=True)
class Place:
    """The environment whose control plane signs for us."""

    org_id: Identifier
    project_id: Identifier
    environment_id: Identifier


# Named, since the text of an annotation is evaluated without this module's names (Python 3.9).
_Algorithm = Annotated[str, Rule(lambda alg: alg == ED25519, ED25519)]
_KeyStatus = Annotated[str, Rule(lambda status: status in (ACTIVE, RETIRED), "active or retired")]


@dataclass(frozen=True)
class ListedKey:
    """One public key as a key set lists it (contract 2.5)."""

    kid: Identifier
    alg: _Algorithm
    public_key: str
    status: _KeyStatus
    not_after: Optional[Date] = None


@dataclass(frozen=True)
class Refusal:
    """The key set that was not taken; `at` is RFC 3339."""

    code: Line
    detail: str
    at: Line


@dataclass(frozen=True)
class RingFile:
    """The whole of ``keyring.json``; `activate.chain` says what the members mean."""

    place: Place
    source: Line
    version: int
    envelope: Optional[Mapping[str, Any]]
    keys: tuple[ListedKey, ...]
    pins: tuple[ListedKey, ...]
    refused: Optional[Refusal]
    floor: int = 0
    passed_over: Optional[Line] = None


def ring(layout: Layout) -> RingFile | None:
    """Return the key ring's file, None when there is none; Corrupt when it is damaged."""
    return _cached(layout.keyring, RingFile)


def keys_version(layout: Layout) -> int:
    """Return the version of the trusted key set, 0 where there is none yet."""
    stored = ring(layout)
    return stored.version if stored is not None else 0


# -- what is shown


@dataclass(frozen=True)
class Seen:
    """The present state; mappings as ``status.json`` shows them, None for nothing yet.

    `last_verdict` is about the envelope that is assigned now: what was said of a former one is
    history. `keys_end`: when the last of the active keys ends, if each has an end. `fault`: why a
    file cannot be read. `activator`: why the activator could not do its work. `shadowed`:
    ``/etc/byteor/spec.kv`` is somebody's own file, which a runtime reads in place of ours.
    """

    deployment: Mapping[str, Any] | None = None
    signing_keys: Mapping[str, Any] | None = None
    last_verdict: Mapping[str, Any] | None = None
    keys_end: str | None = None
    fault: str | None = None
    activator: faults.Fault | None = None
    shadowed: bool = False

    @property
    def signing_keys_version(self) -> int | None:
        """Return the version of the trusted key set, None before the first."""
        return self.signing_keys["version"] if self.signing_keys is not None else None


def seen(layout: Layout) -> Seen:
    """Look at what stands now; a file that cannot be read is a fault and counts as absent."""
    unreadable: list[str] = []

    def unless_damaged(reader: Callable[[Layout], T]) -> T | None:
        try:
            return reader(layout)
        except LocalFault as error:
            unreadable.append(str(error))
            return None

    record, keys = unless_damaged(read) or Record(()), unless_damaged(ring)
    current, last = record.current, record.of_envelope(record.answered.envelope_sha256)
    shown_keys = None
    if keys is not None:
        refused = keys.refused and asdict(keys.refused)
        shown_keys = {"version": keys.version, "source": keys.source, "refused": refused}
    shown_verdict = {name: getattr(last, name) for name in _SHOWN} if last is not None else None
    return Seen(
        deployment=asdict(current) if current is not None and current.spec_hash else None,
        signing_keys=shown_keys,
        last_verdict=shown_verdict,
        keys_end=_last_end(keys.keys if keys is not None else ()),
        activator=unless_damaged(faults.read),
        fault="; ".join(unreadable) or None,
        shadowed=current is not None and trees.is_no_link(layout.spec),
    )


def _last_end(keys: tuple[ListedKey, ...]) -> str | None:
    """Return when the last active key ends; None where one has no end, or nothing is active."""
    ends = [key.not_after for key in keys if key.status == ACTIVE]
    known = [end for end in ends if end is not None]
    return max(known, key=from_rfc3339) if ends and len(known) == len(ends) else None
