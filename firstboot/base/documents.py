"""Read documents: strict JSON from outside and from disk, identifiers, URLs, and their bounds."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from typing import Any
from urllib.parse import urlsplit

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})\Z")
_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 5.0, 3600.0
MOST_KEY_SETS, MOST_SIGNATURES = 64, 16  # of an enrollment reply that are kept; of one set
KEY_SETS_LIMIT = (
    1 << 17
)  # bytes of them in all: everything in settings.json is read by every process
LARGEST_COUNT = 2**53 - 1  # JSON numbers are exact up to here
LONGEST_INTEGER = (
    1000  # digits: reading more takes quadratic time, on Pythons that do not refuse it themselves
)


def load(body: bytes) -> Any:
    """Parse JSON from outside; ValueError for anything that is not strict JSON of reasonable depth."""
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_number,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two members of one name: whoever looked at the answer before us may have read the other one."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("beyond what a float holds")
    return value


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError("too many digits")
    return int(digits)


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def optional_text(value: object) -> str | None:
    """`value` if it is a text that is not empty, or None; ValueError otherwise."""
    return None if value is None else text(value)


def text(value: object) -> str:
    """`value` if it is a text that is not empty; ValueError otherwise."""
    if not isinstance(value, str) or not value:
        raise ValueError("not a text")
    return value


def base_url(text: str, *, under_systemd: bool) -> str:
    """Return the origin in `text` without a trailing slash, ``/v1`` or ``/api/v1``; ValueError saying what is wrong."""
    if not re.fullmatch(
        r"[!-~]+", text.strip()
    ):  # urlsplit drops tabs and line ends without a word
        raise ValueError("is not a URL")
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("https", "http") or not host:
        raise ValueError("must be an https URL such as https://api.example")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("must be an origin, without user, query or fragment")
    path = parts.path.rstrip("/")
    if path not in ("", "/v1", "/api/v1"):
        raise ValueError("must be an origin, without a path")
    if parts.scheme == "http":
        if not _loopback(host):
            raise ValueError("must be https (http only towards loopback)")
        if under_systemd:
            raise ValueError("must be https (under systemd http is refused, even towards loopback)")
    bracketed = parts.netloc.startswith("[")
    if port == 0 or not (_is_ipv6(host) if bracketed else _HOST.match(host)):
        raise ValueError("has no usable host name or port")
    shown = f"[{host}]" if bracketed else host
    return f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "")


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Not `is_loopback`: Python 3.13 counts ::ffff:127.0.0.1 in, older ones do not.
    return address in _LOOPBACK if address.version == 4 else host == "::1"


def _is_ipv6(host: str) -> bool:
    try:
        return "%" not in host and ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def envelopes(value: Any) -> tuple[dict[str, Any], ...]:
    """The key sets (DSSE envelopes, contract 2.5) that a list begins with, in shape only: nobody vouches for them here.

    A chain is good up to where it is cut, and the plane is asked for the rest: so what is malformed, or beyond the bounds,
    ends the list and is no error. Members that DSSE does not know are dropped.
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
