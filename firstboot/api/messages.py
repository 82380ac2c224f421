"""Every message as a frozen dataclass: read tolerantly, written strictly (contract 2).

Parsers take bytes of a server that may lie and return a value, None where the message is not there, or raise
``ValueError`` with a sentence; they never raise anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstboot.base.clock import LONGEST_RETRY_AFTER_S, from_http_date, from_rfc3339
from firstboot.base.documents import (
    IDENTIFIER,
    LARGEST_COUNT,
    LONGEST_INTERVAL_S,
    SHORTEST_INTERVAL_S,
    envelopes,
)
from firstboot.base.secret import Secret, redacted

LONGEST_LIST = 64  # scopes that we keep
LONGEST_CURSOR = 2048  # characters
LONGEST_SAID = 200  # characters of a server's prose that we repeat
LONGEST_DETAIL, MOST_PROBLEMS = 1000, 64  # what one heartbeat says of its problems
KEY_LENGTHS = range(8, 4097)


def _text(value: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        found = value.get(name)
        if isinstance(found, str) and found:
            return found
    return None


@dataclass(frozen=True)
class Problem:
    """An RFC 9457 error document with the extension member `code`; prose is shortened and printable.

    It is shown to everybody (status, heartbeat, reasons): a plane that echoes our credential must not publish it.
    """

    code: str | None
    title: str | None
    detail: str | None

    @classmethod
    def parse(cls, value: Any) -> Problem | None:
        if not isinstance(value, dict):
            return None
        said = {name: _text(value, name) for name in ("code", "title", "detail")}
        return cls(
            **{name: redacted(text) if text is not None else None for name, text in said.items()}
        )

    def said(self) -> str:
        """One line of what the plane said."""
        words = ": ".join(word for word in (self.code, self.detail or self.title) if word)
        return (
            "".join(c if c.isprintable() else " " for c in words)[:LONGEST_SAID].strip()
            or "no reason given"
        )


@dataclass(frozen=True)
class EnrollmentReply:
    """What enrollment gives (contract 2.1). `signing_keys` are envelopes that nobody vouches for yet."""

    agent_id: str
    api_key: Secret
    name: str | None
    scopes: tuple[str, ...]
    expires_at: str | None
    heartbeat_interval_s: float | None
    signing_keys: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def parse(cls, value: Any) -> EnrollmentReply:
        """ValueError naming what is missing or malformed, never its value."""
        if not isinstance(value, dict):
            raise ValueError("the answer is not a JSON object")
        agent_id = _text(value, "agent_id", "id")
        if agent_id is None or not IDENTIFIER.match(agent_id):
            raise ValueError("the answer has no well-formed agent_id")
        key = _text(value, "api_key", "runtime_api_key", "agent_api_key")
        if key is None or len(key) not in KEY_LENGTHS or not all("!" <= c <= "~" for c in key):
            raise ValueError("the answer has no well-formed api_key")
        scopes = value.get("scopes")
        return cls(
            agent_id=agent_id,
            api_key=Secret(key),
            name=_plain(value.get("name")),
            scopes=tuple(filter(None, map(_plain, scopes[:LONGEST_LIST])))
            if isinstance(scopes, list)
            else (),
            expires_at=_date(value.get("expires_at")),
            heartbeat_interval_s=interval(value.get("heartbeat_interval_s")),
            signing_keys=envelopes(value.get("signing_keys")),
        )


def _plain(value: Any) -> str | None:
    """An optional text that is sealed and shown to people: short visible ASCII, or as if it were not there."""
    short = isinstance(value, str) and 0 < len(value) <= LONGEST_SAID
    return value if short and all(" " <= c <= "~" for c in value) else None


def _date(value: Any) -> str | None:
    try:
        from_rfc3339(value if isinstance(value, str) else "")
    except (ValueError, OverflowError):
        return None
    return _plain(value)


def interval(value: Any) -> float | None:
    """A heartbeat period from the plane, clamped to 5..3600 s; None for anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return None
    return float(min(LONGEST_INTERVAL_S, max(SHORTEST_INTERVAL_S, value)))


def enrollment_body(*, name: str | None = None, hostname: str | None = None) -> dict[str, str]:
    """The body of request 1: a configured name, else a host name for the backend to derive one from, else nothing."""
    if name is not None:
        return {"name": name}
    return {"hostname": hostname} if hostname is not None else {}


@dataclass(frozen=True)
class Heartbeat:
    """The body of request 3 (contract 2.2)."""

    status: str
    agent_version: str
    boot_id: str
    sequence: int
    uptime_s: int
    sent_at: str
    problems: tuple[tuple[str, str], ...] = ()
    pending: int = 0
    quarantined: int = 0
    signing_keys_version: int | None = None
    deployment: Mapping[str, Any] | None = None  # deployment_id, sequence, spec_hash, state

    def to_bytes(self) -> bytes:
        problems = [
            {"code": code, "detail": detail[:LONGEST_DETAIL]}
            for code, detail in self.problems[:MOST_PROBLEMS]
        ]
        return json.dumps(
            {
                "status": self.status,
                "agent_version": self.agent_version,
                "boot_id": self.boot_id,
                "sequence": self.sequence,
                "uptime_s": self.uptime_s,
                "sent_at": self.sent_at,
                "deployment": self.deployment,
                "signing_keys_version": self.signing_keys_version,
                "spool": {"pending": self.pending, "quarantined": self.quarantined},
                "problems": problems,
            }
        ).encode()


@dataclass(frozen=True)
class HeartbeatReply:
    """What a 200 to a heartbeat may hint: each is None where it is absent or of another shape."""

    heartbeat_interval_s: float | None = None
    deployment_id: str | None = None
    deployment_sequence: int | None = None
    signing_keys_version: int | None = None

    @classmethod
    def parse(cls, value: Any) -> HeartbeatReply:
        said = value if isinstance(value, dict) else {}
        named = _text(said, "deployment_id")
        return cls(
            heartbeat_interval_s=interval(said.get("heartbeat_interval_s")),
            deployment_id=named if named is not None and IDENTIFIER.match(named) else None,
            deployment_sequence=_count(said.get("deployment_sequence")),
            signing_keys_version=_count(said.get("signing_keys_version")),
        )


def _count(value: Any) -> int | None:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT
        else None
    )


@dataclass(frozen=True)
class ListedAgent:
    """One row of the environment's agent list."""

    agent_id: str
    name: str | None
    last_heartbeat_at: str | None


def agent_page(value: Any) -> tuple[tuple[ListedAgent, ...], str | None]:
    """Return the agents of one page and the token of the next; ValueError when it is not a page."""
    if not isinstance(value, dict) or not isinstance(value.get("agents"), list):
        raise ValueError("the answer is not an agent list")
    rows = tuple(
        ListedAgent(row["agent_id"], _plain(row.get("name")), _plain(row.get("last_heartbeat_at")))
        for row in value["agents"]
        if isinstance(row, dict) and isinstance(row.get("agent_id"), str)
    )
    cursor = _text(value, "next")
    if cursor is not None and (
        len(cursor) > LONGEST_CURSOR or any("\ud800" <= c <= "\udfff" for c in cursor)
    ):
        raise ValueError("the answer's next page has no name that a URL can carry")
    return rows, cursor


_TAG = re.compile(r'"[!#-~]{1,128}"\Z')
_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)\Z")


def entity_tag(header: str | None) -> str | None:
    """A strong ``ETag`` that can be sent back; None for a weak one (no byte is sure under it) and for garbage."""
    return header if header is not None and _TAG.match(header) else None


def content_range(header: str | None) -> tuple[int, int | None] | None:
    """Where a part begins and how long the whole is (None: not said); None for garbage."""
    found = _RANGE.match(header or "")
    return (
        (int(found[1]), None if found[2] == "*" else int(found[2])) if found is not None else None
    )


def key_sets(value: Any) -> int:
    """How many key sets an answer to request 7 holds, unjudged; ValueError when it is no such answer."""
    if not isinstance(value, dict) or not isinstance(value.get("key_sets"), list):
        raise ValueError("the answer has no key_sets")
    return len(value["key_sets"])


_REPORT = {"report_id": str, "status": str, "sequence": int, "spec_hash": str, "occurred_at": str}


def report_body(value: Any) -> bytes:
    """The body of request 6 out of what was kept for it; ValueError when that is no report."""
    if not isinstance(value, dict) or set(value) != {*_REPORT, "reason"}:
        raise ValueError("it has not the members of a report")
    if not all(type(value[name]) is kind for name, kind in _REPORT.items()):
        raise ValueError("a member of the report has another shape")
    if not isinstance(value["reason"], (str, type(None))):
        raise ValueError("the reason is not a text")
    return json.dumps(value, sort_keys=True).encode()


def retry_after(header: str | None, *, now: float) -> float | None:
    """Seconds that ``Retry-After`` asks for, as a number or a date; None when absent, negative, absurd or garbage."""
    if header is None:
        return None
    text = header.strip()
    try:
        seconds = (
            float(int(text)) if text.isascii() and text.isdigit() else from_http_date(text) - now
        )
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds <= LONGEST_RETRY_AFTER_S else None
