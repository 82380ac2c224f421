"""The schema of contract 4.1: one mapping, the same wherever it stands.

Errors name the place, the key and what is expected, and never hold a value: it could be a secret
that stands under the wrong key.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any, Callable

import yaml

from firstboot.api.proxies import usable
from firstboot.api.tls import tls_context
from firstboot.base import documents, systemd
from firstboot.base.documents import IDENTIFIER, LONGEST_INTERVAL_S, SHORTEST_INTERVAL_S
from firstboot.base.errors import Invalid, LocalFault
from firstboot.base.secret import Secret
from firstboot.exchange.settings import Settings, has_password

YAML_LIMIT = 1 << 20  # bytes
DEPTH_LIMIT = 32
NODE_LIMIT = 20_000
SHORTEST_TOKEN, LONGEST_TOKEN = 16, 4096  # characters (contract 4.1)
OF_A_TOKEN = f"{SHORTEST_TOKEN} to {LONGEST_TOKEN} visible ASCII characters"
LONGEST_NUMBER = 64  # characters; a longer one takes quadratic time
LONGEST_PEM = 512 << 10  # characters; every process reads it, and it is sealed
WINDOW_LIMIT_S = 3600.0

COLLECTIONS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
SCALARS = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "timestamp")
)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_PLAIN = "holds a value of a kind that is not plain YAML"
_PLAIN_HINT = "write texts, numbers, lists and mappings, without tags"


# -- YAML to plain values


def compose(data: bytes, *, where: str) -> yaml.Node | None:
    """Return the node tree of one YAML document, None when empty.

    Invalid, naming a line and never quoting one, when it is broken, too large or too deep.
    """
    if len(data) > YAML_LIMIT:
        raise Invalid(
            f"{where} is larger than {YAML_LIMIT} bytes of YAML", hint="keep our settings alone"
        )
    try:
        text = data.decode("utf-8-sig")
        depth = 0
        # Before composing, which recurses: an event stream does not.
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH_LIMIT:
                raise Invalid(
                    f"{where} is nested more than {DEPTH_LIMIT} levels deep", hint=_PLAIN_HINT
                )
        return yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError:
        raise Invalid(f"{where} is not UTF-8", hint="save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        stored = where.startswith(("user data", "vendor data"))
        again = "check-userdata checks it offline" if stored else "preflight reads it again"
        # `from None`: the library's message quotes the line, and the token may stand in it.
        raise Invalid(f"{where} is not YAML{line}", hint=f"byteor-firstboot {again}") from None


def load_yaml(data: bytes, *, where: str) -> Any:
    """Return one YAML document as plain values; Invalid as for `compose` and `plain`."""
    node = compose(data, where=where)
    return None if node is None else plain(node, where=where)


def plain(node: yaml.Node, *, where: str) -> Any:
    """Turn a node into plain values within a budget, so that no alias can blow it up.

    Invalid for a key twice, a key that is not a text, or a kind that is not plain YAML.
    """
    return _plain(node, where, [NODE_LIMIT], 0)


def _plain(node: yaml.Node, where: str, budget: list[int], depth: int) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth > DEPTH_LIMIT:
        raise Invalid(f"{where} holds more than {NODE_LIMIT} values", hint=_PLAIN_HINT)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, where)
    if node.tag not in COLLECTIONS:
        raise Invalid(f"{where} {_NOT_PLAIN}", hint=_PLAIN_HINT)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where, budget, depth + 1) for item in node.value]
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _plain(key_node, where, budget, depth + 1)
        if not isinstance(key, str):
            raise Invalid(f"{where} has a key that is not a text", hint="quote it")
        if key in found:
            raise Invalid(f"{where} names a key twice:{_shown(key)}", hint="keep one of them")
        found[key] = _plain(value_node, where, budget, depth + 1)
    return found


def _scalar(node: yaml.ScalarNode, where: str) -> Any:
    if node.tag == "tag:yaml.org,2002:str":
        return node.value
    if node.tag in SCALARS and len(node.value) <= LONGEST_NUMBER:
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError):
            # In there `!!bool maybe` is a KeyError, an empty `!!int` an IndexError, and
            # `!!timestamp x` an AttributeError.
            pass
    raise Invalid(f"{where} {_NOT_PLAIN}", hint=_PLAIN_HINT)


def _shown(key: str) -> str:
    """Return a key for a message; one that may be a token (long, and no words) is not quoted."""
    words = re.fullmatch(r"[a-z]{1,14}(?:[_.-][a-z]{1,14})*", key) and len(key) <= 40
    if words or re.fullmatch(r"[A-Za-z_.-]{1,15}", key):
        return f" {key}"
    return " (not shown: it may be a secret)"


# -- The shape of each setting: value in, checked value out, ValueError says what is expected.


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text (quote it)")
    if not value:
        raise ValueError("must not be empty")
    return value


def _matching(pattern: str, expected: str) -> Callable[[Any], str]:
    compiled = re.compile(pattern)

    def check(value: Any) -> str:
        if not compiled.fullmatch(_text(value)):
            raise ValueError(f"must be {expected}")
        return str(value)

    return check


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return str(value)

    return check


def _seconds(least: float, most: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError("must be a number of seconds")
        if not least <= value <= most:
            raise ValueError(f"must be from {least:g} to {most:g} seconds")
        return float(value)

    return check


def _token(value: Any) -> Secret | None:
    text = _text(value).strip()
    if set(text) == {"x"}:  # what erasing leaves behind, longer where the token had escapes
        return None
    if "${" in text or "{{" in text or re.fullmatch("<[^>]*>", text):
        raise ValueError("looks like a template that was not filled in")
    if re.fullmatch(r"([\"'`]).*\1", text):
        raise ValueError("has quotes around it: they are not part of a token")
    if re.match(r"[A-Za-z_][A-Za-z0-9_]*=.{16}", text):
        raise ValueError("begins with NAME=: give the token alone")
    shape = f"[!-~]{{{SHORTEST_TOKEN},{LONGEST_TOKEN}}}"
    return Secret(_matching(shape, OF_A_TOKEN)(text))


def _erase(value: Any) -> Mapping[str, list[str]]:
    paths = value.get("paths") if isinstance(value, dict) and set(value) == {"paths"} else None
    if not isinstance(paths, list) or not all(
        isinstance(path, str) and path.isprintable() and os.path.isabs(path) for path in paths
    ):
        raise ValueError("must be a mapping of paths: a list of absolute paths of files")
    return {"paths": paths}


def _pem(value: Any) -> str:
    text = _text(value)
    if "PRIVATE KEY" in text:
        raise ValueError(
            "must be certificates alone, without a private key: everybody can read settings.json"
        )
    if len(text) > LONGEST_PEM:
        raise ValueError(f"must be at most {LONGEST_PEM} characters")
    try:
        tls_context(text)
    except LocalFault:
        raise ValueError("must be certificates in PEM form") from None
    return text


def _proxy(value: Any) -> Secret:
    proxy = Secret(_text(value))
    if not usable(proxy):
        raise ValueError("must be a URL such as http://proxy.example:3128")
    return proxy


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _keys(value: Any) -> tuple[Mapping[str, str], ...]:
    for key in value if isinstance(value, list) else [None]:
        if not isinstance(key, dict) or set(key) != {"kid", "public_key"}:
            raise ValueError("must be a list of {kid, public_key}")
        kid, public = map(str, (key["kid"], key["public_key"]))
        if not IDENTIFIER.match(kid) or not re.fullmatch(r"[A-Za-z0-9_-]{43}", public):
            raise ValueError(
                "must name each key by an id, with the base64url of its 32 bytes (43 characters)"
            )
    if len({key["kid"] for key in value}) != len(value):
        raise ValueError("must name each kid once")
    return tuple(value)


def _argv(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of texts: a command and its arguments")
    # execve knows neither NUL nor half a character.
    if not value[0] or any(re.search("[\0\ud800-\udfff]", item) for item in value):
        raise ValueError(
            "must begin with a command, and have neither NUL nor half a character in it"
        )
    return tuple(value)


# What systemd allows in a name, without a leading dash (an option) or a pattern (several units).
_unit = _matching(
    r"(?=.{,255}\Z)[A-Za-z0-9][A-Za-z0-9:_.@\\-]*"
    r"\.(service|target|socket|path|timer|mount|slice|scope)",
    "the name of one systemd unit, such as edge-runtime.service",
)
_ACTIVATION: dict[str, Callable[[Any], Any]] = {
    "unit": _unit,
    "command": _argv,
    "health": _argv,
    "window_s": _seconds(0, WINDOW_LIMIT_S),
}


def _activation(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not set(value) <= set(_ACTIVATION):
        raise ValueError("must be a mapping of unit, command, health, window_s")
    found = {}
    for key, item in value.items():
        try:
            found[key] = _ACTIVATION[key](item)
        except ValueError as error:
            raise ValueError(f".{key} {error}") from None  # `parse` puts the outer key before it
    return found


_identifier = _matching(
    IDENTIFIER.pattern, "letters, digits, dot, underscore and dash, at most 128"
)

CHECKS: dict[str, Callable[[Any], Any]] = {
    "enrollment_token": _token,
    "api_base_url": lambda value: documents.base_url(
        _text(value), under_systemd=systemd.under_systemd()
    ),
    "org_id": _identifier,
    "project_id": _identifier,
    "environment_id": _identifier,
    "name": _matching(
        r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?",
        "one DNS label: letters, digits and dashes, at most 63",
    ),
    "ca_certificates": _pem,
    "proxy": _proxy,
    "no_proxy": _texts,
    "heartbeat_interval_s": _seconds(SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S),
    "seal": _one_of("auto", "host", "file"),
    "signing_keys": _keys,
    "signing_keys_trust": _one_of("chained", "tls"),
    "activation": _activation,
    "erase": _erase,
}
IMAGE_ONLY = frozenset({"seal", "signing_keys", "signing_keys_trust", "activation", "erase"})
CLEARABLE = frozenset({"ca_certificates", "signing_keys", "proxy"})  # by `null`, in the image's
PLACE = ("api_base_url", "org_id", "project_id", "environment_id")
ROUTING = frozenset({*PLACE, "ca_certificates", "proxy", "no_proxy"})


# -- One mapping


def parse(raw: Any, *, where: str, image: bool = False) -> dict[str, Any]:
    """Check one mapping; Invalid names `where`, the key and what is expected, never a value.

    `image`: it is ``/etc/byteor/firstboot.yaml``, which may hold more keys, and no secret.
    """
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise Invalid(f"{where} is not a mapping of settings", hint="write lines of KEY: VALUE")
    found = {}
    for key, value in raw.items():
        if key not in CHECKS:
            near = difflib.get_close_matches(key, CHECKS, n=1, cutoff=0.4)
            raise Invalid(
                f"{where} has an unknown key{_shown(key)}",
                hint=f"did you mean {near[0]}?" if near else f"the keys are {', '.join(CHECKS)}",
            )
        if key in IMAGE_ONLY and not image:
            raise Invalid(
                f"{where}: {key} may stand in /etc/byteor/firstboot.yaml only",
                hint="move it there: it decides what root does",
            )
        if key == "enrollment_token" and image:
            raise Invalid(
                f"{where}: a token never stands in the image's defaults",
                hint="put it into user data, or into /etc/byteor/enrollment-token",
            )
        if value is None and key in CLEARABLE and image:
            found[key] = () if key == "signing_keys" else None
            continue
        try:
            found[key] = CHECKS[key](value)
        except ValueError as error:
            inner = str(error).startswith(".")
            raise Invalid(
                f"{where}: {key}{'' if inner else ' '}{error}", hint=f"correct {key} in {where}"
            ) from None
    if image and has_password(found.get("proxy") or None):
        raise Invalid(
            f"{where}: proxy must not hold a password here: the file is readable by everybody",
            hint="give a proxy with a password beside the token",
        )
    return found


def require_complete(settings: Settings) -> None:
    """Raise Invalid, naming what is missing, for settings that cannot enroll."""
    missing = [key for key in PLACE if getattr(settings, key) is None]
    if missing:
        raise Invalid(
            f"settings are missing: {', '.join(missing)}",
            hint="set them beside the token (/run/byteor-firstboot/settings.yaml, 0600), or in "
            "/etc/byteor/firstboot.yaml: a bare token names no control plane",
        )
