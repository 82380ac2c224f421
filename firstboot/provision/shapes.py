"""The shape of each setting (contract 4.1): a function a key, value in, checked value out, ValueError saying what is expected.

No message holds a value: it could be a secret that stands under the wrong key.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any, Callable
from urllib.parse import urlsplit

from firstboot.base import systemd
from firstboot.base.documents import IDENTIFIER, LONGEST_INTERVAL_S, SHORTEST_INTERVAL_S, base_url
from firstboot.base.secret import Secret

_NO_ARGUMENT = re.compile("[\0\ud800-\udfff]")  # of a program: execve knows neither
LONGEST_UNIT = 255  # characters; systemd's own limit
_UNIT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]*\.(service|target|socket|path|timer|mount|slice|scope)"
)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text (quote it)")
    if not value:
        raise ValueError("must not be empty")
    return value


def _identifier(value: Any) -> str:
    if not IDENTIFIER.match(_text(value)):
        raise ValueError("must be letters, digits, dot, underscore and dash, at most 128")
    return str(value)


def _label(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", _text(value)):
        raise ValueError("must be one DNS label: letters, digits and dashes, at most 63")
    return str(value)


def _url(value: Any) -> str:
    return base_url(_text(value), under_systemd=systemd.under_systemd())


def _pem(value: Any) -> str:
    text = _text(value)
    if "PRIVATE KEY" in text:
        raise ValueError(
            "must be certificates alone, without a private key: everybody can read settings.json"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError, TypeError):  # TypeError: not ASCII
        raise ValueError("must be certificates in PEM form") from None
    return str(value)


def _proxy(value: Any) -> Secret:
    try:
        parts = urlsplit(_text(value))
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = (
            usable and re.fullmatch(r"[!-~]+", value) is not None
        )  # urlsplit drops line ends without a word
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be a URL such as http://proxy.example:3128")
    return Secret(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _interval(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number of seconds")
    if not SHORTEST_INTERVAL_S <= value <= LONGEST_INTERVAL_S:
        raise ValueError(f"must be from {SHORTEST_INTERVAL_S:g} to {LONGEST_INTERVAL_S:g} seconds")
    return float(value)


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return str(value)

    return check


def _keys(value: Any) -> tuple[Mapping[str, str], ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of {kid, public_key}")
    for key in value:
        if (
            not isinstance(key, dict)
            or set(key) != {"kid", "public_key"}
            or not all(map(_is_text, key.values()))
        ):
            raise ValueError("must be a list of {kid, public_key}")
        if not IDENTIFIER.match(key["kid"]) or not re.fullmatch(
            r"[A-Za-z0-9_-]{43}", key["public_key"]
        ):
            raise ValueError(
                "must name each key by an id, with the base64url of its 32 bytes (43 characters)"
            )
    if len({key["kid"] for key in value}) != len(value):
        raise ValueError("must name each kid once")
    return tuple(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _unit(value: Any) -> str:
    # What systemd allows in a name, without a leading dash (an option) or a pattern (several units).
    if len(_text(value)) > LONGEST_UNIT or not _UNIT.fullmatch(value):
        raise ValueError("must be the name of one systemd unit, such as edge-runtime.service")
    return str(value)


def _argv(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of texts: a command and its arguments")
    if not value[0] or any(map(_NO_ARGUMENT.search, value)):
        raise ValueError(
            "must begin with a command, and have neither NUL nor half a character in it"
        )
    return tuple(value)


def _activation(value: Any) -> Mapping[str, Any]:
    checks: dict[str, Callable[[Any], Any]] = {
        "unit": _unit,
        "command": _argv,
        "health": _argv,
        "window_s": _window,
    }
    if not isinstance(value, dict) or not set(value) <= set(checks):
        raise ValueError("must be a mapping of unit, command, health, window_s")
    found = {}
    for key, item in value.items():
        try:
            found[key] = checks[key](item)
        except ValueError as error:
            raise ValueError(f".{key} {error}") from None  # `parse` puts the outer key before it
    return found


def _window(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 3600:
        raise ValueError("must be from 0 to 3600 seconds")
    return float(value)


def _token(value: Any) -> Secret | None:
    text = _text(value)
    if not re.fullmatch(r"[!-~]{16,4096}", text):
        raise ValueError("must be 16 to 4096 visible ASCII characters")
    return None if set(text) == {"x"} else Secret(text)  # all x is what erasing leaves behind


CHECKS: dict[str, Callable[[Any], Any]] = {
    "enrollment_token": _token,
    "api_base_url": _url,
    "org_id": _identifier,
    "project_id": _identifier,
    "environment_id": _identifier,
    "name": _label,
    "ca_certificates": _pem,
    "proxy": _proxy,
    "no_proxy": _texts,
    "heartbeat_interval_s": _interval,
    "seal": _one_of("auto", "host", "file"),
    "signing_keys": _keys,
    "signing_keys_trust": _one_of("chained", "tls"),
    "activation": _activation,
}
