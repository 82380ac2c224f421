"""The messages of contract 2 as frozen dataclasses: read tolerantly, written strictly.

Parsers take what a server that may lie has sent and return a value, None where the message is not
there, or raise ``ValueError`` with a sentence; they never raise anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Optional
from urllib.parse import urlsplit

from firstboot.base import documents
from firstboot.base.clock import LONGEST_RETRY_AFTER_S, from_http_date
from firstboot.base.documents import (
    LONGEST_INTERVAL_S,
    SHORTEST_INTERVAL_S,
    Identifier,
    Rule,
    Time,
    lenient,
)
from firstboot.base.log import one_line
from firstboot.base.secret import Secret, redacted

LONGEST_LIST = 64  # scopes that we keep
LONGEST_CURSOR = 2048  # characters
LONGEST_SAID = 200  # characters of a server's prose that we repeat
LONGEST_DETAIL, MOST_PROBLEMS = 1000, 64  # what one heartbeat says of its problems
KEY_LENGTHS = range(8, 4097)
KEY_NAMES = ("api_key", "runtime_api_key", "agent_api_key")


def _is_plain(value: object) -> bool:
    short = isinstance(value, str) and 0 < len(value) <= LONGEST_SAID
    return short and all(" " <= c <= "~" for c in str(value))


def _is_key(key: Secret) -> bool:
    text = key.reveal()
    return len(text) in KEY_LENGTHS and all("!" <= c <= "~" for c in text)


# An optional text that is sealed and shown to people; one of another shape counts as absent.
_Plain = Annotated[str, Rule(_is_plain, "short visible ASCII")]


@dataclass(frozen=True)
class Problem:
    """An RFC 9457 error document with the extension member `code`.

    It is shown to everybody (status, heartbeat, reasons): a control plane that echoes our
    credential must not publish it, so known secrets are taken out.
    """

    code: str | None = None
    title: str | None = None
    detail: str | None = None
    type: str | None = None

    @classmethod
    def parse(cls, value: Any) -> Problem | None:
        """Return what an error document says, None when `value` is no object."""
        if not isinstance(value, dict):
            return None
        texts = {name: value.get(name) for name in cls.__dataclass_fields__}
        return cls(**{n: redacted(t) for n, t in texts.items() if isinstance(t, str) and t})

    def said(self) -> str:
        """Return one line of what the control plane said."""
        words = ": ".join(word for word in (self.code, self.detail or self.title) if word)
        line = one_line(words)[:LONGEST_SAID].strip()
        return line or "no reason given"


@dataclass(frozen=True)
class EnrollmentReply:
    """The reply to enrollment; nobody has vouched for its `signing_keys` yet."""

    agent_id: Identifier
    api_key: Annotated[Secret, Rule(_is_key, "a key")]
    name: Optional[_Plain] = lenient()
    scopes: tuple[str, ...] = ()
    expires_at: Optional[Annotated[Time, Rule(_is_plain, "short")]] = lenient()
    heartbeat_interval_s: Optional[float] = None
    signing_keys: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def parse(cls, value: Any) -> EnrollmentReply:
        """Return the reply; ValueError names what is malformed, never its value."""
        if not isinstance(value, dict):
            raise ValueError("the answer is not a JSON object")
        scopes = value.get("scopes")
        kept = scopes[:LONGEST_LIST] if isinstance(scopes, list) else []
        members = {
            **value,
            "agent_id": value.get("agent_id") or value.get("id"),
            "api_key": next((value[name] for name in KEY_NAMES if value.get(name)), None),
            "scopes": [scope for scope in kept if _is_plain(scope)],
            "heartbeat_interval_s": interval(value.get("heartbeat_interval_s")),
            "signing_keys": list(documents.envelopes(value.get("signing_keys"))),
        }
        return documents.parse(cls, members)


def interval(value: Any) -> float | None:
    """Return a period clamped to 5..3600 s, None for no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return None
    return float(min(LONGEST_INTERVAL_S, max(SHORTEST_INTERVAL_S, value)))


def enrollment_body(*, name: str | None = None, hostname: str | None = None) -> dict[str, str]:
    """Return the body of request 1: a name, a host name, or nothing."""
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
        """Return it as JSON, details and the list of problems cut."""
        members = dict(vars(self))
        members["spool"] = {name: members.pop(name) for name in ("pending", "quarantined")}
        members["problems"] = [
            {"code": code, "detail": detail[:LONGEST_DETAIL]}
            for code, detail in self.problems[:MOST_PROBLEMS]
        ]
        return json.dumps(members).encode()


@dataclass(frozen=True)
class HeartbeatReply:
    """The hints of a 200 to a heartbeat; None for each that is missing."""

    heartbeat_interval_s: Optional[float] = lenient()
    deployment_id: Optional[Identifier] = lenient()
    deployment_sequence: Optional[int] = lenient()
    signing_keys_version: Optional[int] = lenient()

    @classmethod
    def parse(cls, value: Any) -> HeartbeatReply:
        """Return the hints of an answer that may be anything."""
        if not isinstance(value, dict):
            return cls()
        period_s = interval(value.get("heartbeat_interval_s"))
        return replace(documents.parse(cls, value), heartbeat_interval_s=period_s)


@dataclass(frozen=True)
class ListedAgent:
    """One row of the environment's agent list."""

    agent_id: str
    name: Optional[_Plain] = lenient()
    last_heartbeat_at: Optional[_Plain] = lenient()


def agent_page(value: Any) -> tuple[tuple[ListedAgent, ...], str | None]:
    """Return the agents of one page and the next one's token, or ValueError."""
    listed = value.get("agents") if isinstance(value, dict) else None
    if not isinstance(listed, list):
        raise ValueError("the answer is not an agent list")
    rows = []
    for row in listed:
        try:
            rows.append(documents.parse(ListedAgent, row))
        except ValueError:
            continue
    cursor = value.get("next")
    if not isinstance(cursor, str) or not cursor:
        return tuple(rows), None
    if len(cursor) > LONGEST_CURSOR or any("\ud800" <= c <= "\udfff" for c in cursor):
        raise ValueError("the answer's next page has no name that a URL can carry")
    return tuple(rows), cursor


def key_sets(value: Any) -> int:
    """Return how many key sets an answer holds; ValueError for another one."""
    found = value.get("key_sets") if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise ValueError("the answer has no key_sets")
    return len(found)


_TAG = re.compile(r'"[!#-~]{1,128}"\Z')
_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)\Z")
_SECONDS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,10})?")


def entity_tag(header: str | None) -> str | None:
    """Return a strong ``ETag`` that can be sent back, else None."""
    return header if header is not None and _TAG.match(header) else None


def content_range(header: str | None) -> tuple[int, int | None] | None:
    """Return a part's start and the whole length, if said; None for garbage."""
    found = _RANGE.match(header or "")
    if found is None:
        return None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def target(location: str | None) -> str | None:
    """Return where a redirect points, without what may be secret in it."""
    try:
        parts = urlsplit(location or "")
    except ValueError:
        return None
    place = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    shown = redacted(f"{parts.scheme}://{place}" if parts.scheme else place)
    return shown[:LONGEST_SAID] if shown.isascii() and shown.isprintable() and shown else None


def retry_after(header: str | None, *, now: float) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, else None.

    None when absent, negative, over an hour, or garbage. A number may have a fraction (Sentry and
    Microsoft Graph send them); of several, joined by commas where a proxy added its own, the
    largest counts. A date is judged against `now`.
    """
    if header is None:
        return None
    numbers = [number.strip() for number in header.split(",")]
    if all(_SECONDS.fullmatch(number) for number in numbers):
        seconds = max(map(float, numbers))
    else:
        try:
            seconds = from_http_date(header.strip()) - now
        except (ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds <= LONGEST_RETRY_AFTER_S else None
