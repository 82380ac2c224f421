"""What the activator left for us to read: what it decided, what is in force, the key ring (contract 5; world-readable files).

Written by root, read here without trusting its shape: a damaged file is as if nothing were there, and one sentence.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstboot.base import files
from firstboot.base.clock import from_rfc3339
from firstboot.base.documents import IDENTIFIER
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout

SPEC = "/etc/byteor/spec.kv"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_SHOWN = ("deployment_id", "sequence", "verdict", "code", "reason", "at")


@dataclass(frozen=True)
class Wanted:
    """The bundle that is to be brought: exactly these bytes."""

    deployment_id: str
    sequence: int | None
    sha256: str
    size: int


@dataclass(frozen=True)
class Verdict:
    """One line of the history, as far as the fetching depends on it."""

    envelope_sha256: str | None
    verdict: str
    code: str | None
    keys_version: int | None
    deployment_id: str | None
    sequence: int | None


@dataclass(frozen=True)
class Decided:
    """What was answered to which request about which envelope, what is wanted, and the verdicts, oldest first."""

    request: str | None = None
    envelope_sha256: str | None = None
    wanted: Wanted | None = None
    verdicts: tuple[Verdict, ...] = ()

    def of(self, envelope_sha256: str | None) -> Verdict | None:
        """The newest verdict about this envelope."""
        return next(
            (row for row in reversed(self.verdicts) if row.envelope_sha256 == envelope_sha256), None
        )


@dataclass(frozen=True)
class Activation:
    """`deployment`, `signing_keys` and `last_verdict` as ``status.json`` shows them, None for nothing yet.

    `keys_end`: when the last of the active keys ends, if each has an end. `fault`: if a file is damaged.
    """

    deployment: Mapping[str, Any] | None = None
    signing_keys: Mapping[str, Any] | None = None
    last_verdict: Mapping[str, Any] | None = None
    keys_end: str | None = None
    fault: str | None = None
    shadowed: bool = False  # /etc/byteor/spec.kv is a file of somebody's, which a runtime reads in place of what is deployed

    @property
    def signing_keys_version(self) -> int | None:
        return self.signing_keys["version"] if self.signing_keys is not None else None


def read(layout: Layout) -> Activation:
    """Look at what is in force now."""
    faults = []

    def mapping(name: str) -> dict[str, Any]:
        try:
            return _read(layout.activation / name)
        except LocalFault as error:
            faults.append(str(error))
            return {}

    decided, ring = mapping("deployments.json"), mapping("keyring.json")
    version = _number(ring.get("version"))
    shown = {"version": version, "source": ring.get("source"), "refused": ring.get("refused")}
    return Activation(
        deployment=_deployment(decided.get("current")),
        signing_keys=shown if version is not None else None,
        last_verdict=_last(decided.get("history")),
        keys_end=_keys_end(ring.get("keys")),
        fault="; ".join(faults) or None,
        shadowed=bool(decided.get("current")) and _is_a_file(layout.path(SPEC)),
    )


def _is_a_file(path: Path) -> bool:
    try:
        return not stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return False


def decided(layout: Layout) -> Decided:
    """What the activator decided; Corrupt or LocalFault when that cannot be read, for guessing would remove what is wanted."""
    stored = _read(layout.history)
    answered, history = stored.get("answered"), stored.get("history")
    answered = answered if isinstance(answered, dict) else {}
    rows = history if isinstance(history, list) else []
    return Decided(
        request=_text(answered.get("request")),
        envelope_sha256=_text(answered.get("envelope_sha256")),
        wanted=_wanted(stored.get("wanted")),
        verdicts=tuple(_verdict(row) for row in rows if isinstance(row, dict)),
    )


def keys_version(layout: Layout) -> int:
    """The version of the key set in force, 0 where there is none yet; LocalFault when it cannot be read."""
    ring = _read(layout.keyring)
    return _number(ring.get("version")) or 0


_Stamp = tuple[int, int, int, int]
# Read several times a minute, and written by rename a few times a year: parsing is most of what an idle agent would do.
_parsed: dict[Path, tuple[_Stamp, dict[str, Any]]] = {}


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a file, {} for none; not to be changed. LocalFault as `files.read_json`."""
    try:
        facts = os.lstat(path)
    except OSError:
        return files.read_json(path) or {}
    stamp = (facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size)
    known = _parsed.get(path)
    if known is None or known[0] != stamp:
        _parsed[path] = known = (stamp, files.read_json(path) or {})
    return known[1]


def _wanted(value: Any) -> Wanted | None:
    if not isinstance(value, dict):
        return None
    named, digest, size = (
        value.get("deployment_id"),
        value.get("sha256"),
        _number(value.get("size")),
    )
    if (
        not isinstance(named, str)
        or not IDENTIFIER.match(named)
        or not isinstance(digest, str)
        or not _DIGEST.match(digest)
    ):
        return None
    return Wanted(named, _number(value.get("sequence")), digest, size) if size else None


def _verdict(row: Mapping[str, Any]) -> Verdict:
    return Verdict(
        envelope_sha256=_text(row.get("envelope_sha256")),
        verdict=_text(row.get("verdict")) or "",
        code=_text(row.get("code")),
        keys_version=_number(row.get("keys_version")),
        deployment_id=_text(row.get("deployment_id")),
        sequence=_number(row.get("sequence")),
    )


def _deployment(current: Any) -> dict[str, Any] | None:
    """The four members that a heartbeat carries, or None when they are not all of their shape."""
    if not isinstance(current, dict):
        return None
    named, sequence = current.get("deployment_id"), current.get("sequence")
    texts = [current.get("spec_hash"), current.get("state")]
    if (
        not isinstance(named, str)
        or not IDENTIFIER.match(named)
        or not all(isinstance(text, str) for text in texts)
    ):
        return None
    if not isinstance(sequence, int) or isinstance(sequence, bool):
        return None
    return {"deployment_id": named, "sequence": sequence, "spec_hash": texts[0], "state": texts[1]}


def _last(history: Any) -> dict[str, Any] | None:
    """The newest line of the history, None when there is none or it is damaged."""
    if not isinstance(history, list) or not history or not isinstance(history[-1], dict):
        return None
    return {
        name: value if isinstance(value := history[-1].get(name), (str, int)) else None
        for name in _SHOWN
    }


def _keys_end(keys: Any) -> str | None:
    """The end of the active key that ends last; None where one has no end, or nothing is active."""
    ends: list[tuple[float, str]] = []
    for key in keys if isinstance(keys, list) else ():
        if isinstance(key, dict) and key.get("status") == "active":
            end = _text(key.get("not_after"))
            try:
                ends.append((from_rfc3339(end or ""), end or ""))
            except (ValueError, OverflowError):
                return None
    return max(ends)[1] if ends else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
