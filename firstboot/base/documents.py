"""Read JSON into frozen dataclasses by their annotations; identifiers, URLs, bounds.

`read` takes a document of ours from disk, `parse` a value that is already parsed; both check every
member before anybody uses it, and name the damaged one. Unknown members are ignored, so that what
a newer version wrote is still read. A member's annotation says what it may hold:

- ``str``: at most 4,096 characters that UTF-8 can carry; ``int``: 0 to 2^53-1; ``float``: finite;
  ``bool``, `Secret`, another dataclass, ``Mapping[str, Any]`` (an object, unchecked inside);
- ``Optional[X]`` may be null, ``Tuple[X, ...]`` is a list;
- ``Annotated[X, Rule(...)]`` adds a condition: `Identifier`, `Digest`, `Time` and `Line` are such.

A member without a default must be there. `lenient()` marks one that counts as absent when it has
another shape: for replies of a server, which are read tolerantly (contract 2).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar
from urllib.parse import urlsplit

from firstboot.base import files, log
from firstboot.base.clock import instant
from firstboot.base.errors import Corrupt
from firstboot.base.secret import Secret

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})\Z")
_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 5.0, 3600.0
MOST_KEY_SETS, MOST_SIGNATURES = 64, 16  # of an enrollment reply that are kept; of one set
KEY_SETS_LIMIT = 1 << 17  # bytes of them in all: every process reads everything in settings.json
LARGEST_COUNT = 2**53 - 1  # JSON numbers are exact up to here
LONGEST_TEXT = 4096  # characters
LONGEST_SENTENCE = 1000  # of what we write for people ourselves
LONGEST_INTEGER = 1000  # digits: reading more takes quadratic time on Pythons that allow it

T = TypeVar("T")
S = TypeVar("S", str, Optional[str])


class Malformed(ValueError):
    """A document has another shape; the message names the member, never its value."""


@dataclass(frozen=True)
class Rule:
    """A condition on a member, and the noun for what meets it."""

    accepts: Callable[[Any], bool]
    noun: str


Identifier = typing.Annotated[str, Rule(lambda t: bool(IDENTIFIER.match(t)), "an identifier")]
Digest = typing.Annotated[
    str, Rule(lambda t: bool(re.fullmatch("[0-9a-f]{64}", t)), "a SHA-256 digest in hex")
]
Time = typing.Annotated[str, Rule(lambda t: instant(t) is not None, "an RFC 3339 time")]
# May stand in a header or on a line that a person reads.
Line = typing.Annotated[str, Rule(lambda t: bool(t) and t.isprintable(), "one printable line")]


def sentence(text: S) -> S:
    """Return `text` as one printable line that every reader of ours takes; None stays None."""
    if text is None:
        return text
    return log.one_line(text)[:LONGEST_SENTENCE]


def lenient(default: Any = None) -> Any:
    """Return a field that takes `default` when its member is absent or of another shape."""
    return dataclasses.field(default=default, metadata={"lenient": True})


def read(path: Path, kind: type[T], *, private_to: int | None = None) -> T | None:
    """Return the document in one of our JSON files, None when there is none.

    Corrupt, naming the file and the member, when it holds something else; LocalFault when it cannot
    be looked at, which says nothing about what it holds. See `files.read_json` for `private_to`.
    """
    value = files.read_json(path, private_to=private_to)
    if value is None:
        return None
    try:
        return parse(kind, value)
    except Malformed as error:
        raise Corrupt(f"{path} is damaged: {error}") from error


def read_or_set_aside(path: Path, kind: type[T]) -> T | None:
    """Do as `read`; a damaged document is set aside with a warning, and counts as none."""
    try:
        return read(path, kind)
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(path))
        return None


def parse(kind: type[T], value: object, *, where: str = "") -> T:
    """Return `value` as the dataclass `kind`; Malformed when it is not of that shape."""
    if not isinstance(value, Mapping):
        raise Malformed(f"{where or 'the document'} is not an object")
    found = {}
    for member, annotation, is_lenient in _members(typing.cast(Any, kind)):
        if member.name not in value:
            if (
                member.default is dataclasses.MISSING
                and member.default_factory is dataclasses.MISSING
            ):
                raise Malformed(f"{_join(where, member.name)} is missing")
            continue
        try:
            found[member.name] = _convert(annotation, value[member.name], _join(where, member.name))
        except Malformed:
            if not is_lenient:
                raise
    return kind(**found)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


@cache
def _members(kind: Any) -> list[tuple[dataclasses.Field[Any], Any, bool]]:
    """Return fields, evaluated annotations and leniency: of each class once."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        (member, hints[member.name], "lenient" in member.metadata)
        for member in dataclasses.fields(kind)
        if member.init
    ]


def _convert(annotation: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        converted = _convert(arguments[0], value, where)
        for rule in arguments[1:]:
            if not rule.accepts(converted):
                raise Malformed(f"{where} is not {rule.noun}")
        return converted
    if origin is typing.Union:
        kind = next(one for one in arguments if one is not type(None))
        return None if value is None else _convert(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise Malformed(f"{where} is not a list")
        return tuple(_convert(arguments[0], one, f"{where}[{n}]") for n, one in enumerate(value))
    if dataclasses.is_dataclass(annotation):
        return parse(annotation, value, where=where)  # type: ignore[arg-type]
    if annotation is Secret:
        return Secret(_convert(str, value, where))
    noun, accepts = _PLAIN.get(origin or annotation, ("", None))
    if accepts is not None and not accepts(value):
        raise Malformed(f"{where} is not {noun}")
    return float(value) if annotation is float else value


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        return False
    return not any("\ud800" <= c <= "\udfff" for c in value)


def is_count(value: object) -> bool:
    """Return True for an integer that JSON carries exactly, from 0 on; a boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= LARGEST_COUNT  # no NaN: it compares with nothing


_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", _is_text),
    int: ("a count", is_count),
    float: ("a number", _is_number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    Mapping: ("an object", lambda value: isinstance(value, dict)),
}


def load(body: bytes) -> Any:
    """Parse JSON from outside; ValueError unless it is strict and of reasonable depth."""
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_number,
            parse_float=_number,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two members of one name another reader may have taken the other one.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # NaN and Infinity are not JSON
        raise ValueError("beyond what a float holds")
    return value


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError("too many digits")
    return int(digits)


def base_url(text: str, *, under_systemd: bool) -> str:
    """Return the origin in `text`, without a trailing slash, ``/v1`` or ``/api/v1``.

    ValueError, saying what is wrong, for anything else (contract 1).
    """
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if not re.fullmatch(r"[!-~]+", text.strip()):  # urlsplit drops tabs and line ends silently
        raise ValueError("is not a URL")
    if parts.scheme not in ("https", "http") or not host:
        raise ValueError("must be an https URL such as https://api.example")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("must be an origin, without user, query or fragment")
    if parts.path.rstrip("/") not in ("", "/v1", "/api/v1"):
        raise ValueError("must be an origin, without a path")
    address = _address(host)
    if parts.scheme == "http":
        # Not `is_loopback`: Python 3.13 counts ::ffff:127.0.0.1 in, older ones do not.
        is_127 = address is not None and address in _LOOPBACK
        if not is_127 and host not in ("localhost", "::1"):
            raise ValueError("must be https (http only towards loopback)")
        if under_systemd:
            raise ValueError("must be https (under systemd http is refused, even towards loopback)")
    bracketed = parts.netloc.startswith("[")
    named = address is not None and address.version == 6 if bracketed else _HOST.match(host)
    if port == 0 or not named:
        raise ValueError("has no usable host name or port")
    shown = f"[{host}]" if bracketed else host
    return f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "%" in host else ipaddress.ip_address(host)
    except ValueError:
        return None


def envelopes(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the key sets (DSSE envelopes, contract 2.5) that a list begins with, unverified.

    A chain is good up to where it is cut, and the control plane is asked for the rest: so what is
    malformed, or beyond the bounds, ends the list and is no error. Members that DSSE does not know
    are dropped.
    """
    found: list[dict[str, Any]] = []
    room = KEY_SETS_LIMIT
    for item in value[:MOST_KEY_SETS] if isinstance(value, list) else ():
        listed = item.get("signatures") if isinstance(item, dict) else None
        if (
            not isinstance(listed, list)
            or len(listed) > MOST_SIGNATURES
            or not all(isinstance(one, dict) for one in listed)
        ):
            break
        made = [{"keyid": one.get("keyid"), "sig": one.get("sig")} for one in listed]
        texts = [
            item.get("payload"),
            item.get("payloadType"),
            *(text for one in made for text in one.values()),
        ]
        # ASCII, since JSON takes up to twelve bytes for any other character.
        if not all(
            isinstance(text, str) and text.isascii() and text.isprintable() for text in texts
        ):
            break
        room -= sum(map(len, texts))
        if room < 0:
            break
        found.append({"payload": texts[0], "payloadType": texts[1], "signatures": made})
    return tuple(found)
