"""The schema of contract 4.1: one mapping, wherever it stands; nearest-key errors, merge by rank, the one-source rule."""

from __future__ import annotations

import difflib
import enum
import re
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import urlsplit

import yaml

from firstboot import systemd
from firstboot.errors import Invalid
from firstboot.frozen import (
    IDENTIFIER,
    LONGEST_INTERVAL_S,
    SHORTEST_INTERVAL_S,
    Settings,
    base_url,
    freeze,
    thaw,
)
from firstboot.secret import Secret

__all__ = ["Rank", "Settings", "Source", "freeze", "load_yaml", "merge", "parse", "refreeze", "require_complete", "thaw"]

YAML_LIMIT = 1 << 20
DEPTH_LIMIT = 32
NODE_LIMIT = 20_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Rank(enum.IntEnum):
    """Where a setting may come from, the highest first (contract 4.2)."""

    TOKEN_FILE = 1
    CREDENTIAL = 2
    DROP_PLACE = 3
    USER_DATA = 4
    VENDOR_DATA = 5
    ETC_TOKEN = 6
    ENVIRONMENT = 7
    IMAGE = 8


@dataclass(frozen=True)
class Source:
    """One place that was read: its checked values without the token, and the token."""

    rank: Rank
    where: str
    values: Mapping[str, Any] = field(default_factory=dict)
    token: Optional[Secret] = None
    path: Optional[Path] = None


def compose(data: bytes, *, where: str) -> Optional[yaml.Node]:
    """Return the node tree of one YAML document (None when empty); Invalid, naming a line and never quoting one."""
    if len(data) > YAML_LIMIT:
        raise Invalid(f"{where} is larger than {YAML_LIMIT} bytes of YAML")
    try:
        text = data.decode("utf-8-sig")
        depth = 0
        # Before composing, which recurses: an event stream does not.
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH_LIMIT:
                raise Invalid(f"{where} is nested more than {DEPTH_LIMIT} levels deep")
        return yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError:
        raise Invalid(f"{where} is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        # `from None`: the library's message quotes the line, and the token may stand in it.
        raise Invalid(f"{where} is not YAML{line}", hint="byteor-firstboot check-userdata checks it offline") from None


def load_yaml(data: bytes, *, where: str) -> Any:
    """Return one YAML document as plain values; Invalid when it is broken, too deep, too large or names a key twice."""
    node = compose(data, where=where)
    return None if node is None else plain(node, where=where)


def plain(node: yaml.Node, *, where: str) -> Any:
    """Turn a node into plain values within a budget, so that no alias can blow it up."""
    budget = [NODE_LIMIT]
    return _plain(node, where, budget, 0)


def _plain(node: yaml.Node, where: str, budget: List[int], depth: int) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth > DEPTH_LIMIT:
        raise Invalid(f"{where} holds more than {NODE_LIMIT} values")
    if isinstance(node, yaml.MappingNode):
        found: Dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _plain(key_node, where, budget, depth + 1)
            if not isinstance(key, str):
                raise Invalid(f"{where} has a key that is not a text")
            if key in found:
                raise Invalid(f"{where} names {_shown(key)} twice")
            found[key] = _plain(value_node, where, budget, depth + 1)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where, budget, depth + 1) for item in node.value]
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        raise Invalid(f"{where} holds a value of a kind that is not plain YAML") from None


def _shown(key: str) -> str:
    """A key for a message: one that looks like a token's text is not quoted."""
    return key if re.fullmatch(r"[A-Za-z_.-]{1,40}", key) else "a key"


# -- the schema: key -> (check, ranks that may name it)


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
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=_text(value))
    except (ssl.SSLError, ValueError):
        raise ValueError("must be certificates in PEM form") from None
    return str(value)


def _proxy(value: Any) -> Secret:
    try:
        parts = urlsplit(_text(value))
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be a URL such as http://proxy.example:3128")
    return Secret(value)


def _texts(value: Any) -> Tuple[str, ...]:
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


def _keys(value: Any) -> Tuple[Mapping[str, str], ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of {kid, public_key}")
    for key in value:
        if not isinstance(key, dict) or set(key) != {"kid", "public_key"} or not all(map(_is_text, key.values())):
            raise ValueError("must be a list of {kid, public_key}")
    return tuple(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _activation(value: Any) -> Mapping[str, Any]:
    checks: Dict[str, Callable[[Any], Any]] = {"unit": _text, "command": _texts, "health": _texts, "window_s": _window}
    if not isinstance(value, dict) or not set(value) <= set(checks):
        raise ValueError("must be a mapping of unit, command, health, window_s")
    return {key: checks[key](item) for key, item in value.items()}


def _window(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 3600:
        raise ValueError("window_s must be from 0 to 3600 seconds")
    return float(value)


def _token(value: Any) -> Optional[Secret]:
    text = _text(value)
    if not re.fullmatch(r"[!-~]{16,4096}", text):
        raise ValueError("must be 16 to 4096 visible ASCII characters")
    return None if set(text) == {"x"} else Secret(text)  # all x is what erasing leaves behind


CHECKS: Dict[str, Callable[[Any], Any]] = {
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
IMAGE_ONLY = frozenset({"seal", "signing_keys", "signing_keys_trust", "activation"})
ROUTING = ("api_base_url", "org_id", "project_id", "environment_id", "ca_certificates", "proxy", "no_proxy")


def parse(raw: Any, *, where: str, rank: Rank) -> Dict[str, Any]:
    """Check one mapping; Invalid names `where`, the key and what is expected, never a value."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise Invalid(f"{where} is not a mapping of settings")
    found = {}
    for key, value in raw.items():
        if key not in CHECKS:
            near = difflib.get_close_matches(key, CHECKS, n=1, cutoff=0.4)
            raise Invalid(f"{where} has an unknown key {_shown(key)}", hint=f"did you mean {near[0]}?" if near else None)
        if key in IMAGE_ONLY and rank is not Rank.IMAGE:
            raise Invalid(f"{where}: {key} may stand in /etc/byteor/firstboot.yaml only")
        if key == "enrollment_token" and rank is Rank.IMAGE:
            raise Invalid(f"{where}: a token never stands in the image's defaults")
        try:
            found[key] = CHECKS[key](value)
        except ValueError as error:
            raise Invalid(f"{where}: {key} {error}") from None
    if rank is Rank.IMAGE and "proxy" in found and urlsplit(found["proxy"].reveal()).password is not None:
        raise Invalid(f"{where}: proxy must not hold a password here: the file is readable by everybody")
    return found


def merge(sources: Sequence[Source], *, chosen: Optional[Source]) -> Tuple[Settings, Tuple[str, ...]]:
    """Merge by rank; routing comes from `chosen` or from the environment and the image beneath it (one-source rule)."""
    values: Dict[str, Any] = {}
    warnings = []
    for source in sorted(sources, key=lambda source: source.rank):
        for key, value in source.values.items():
            routes = key in ROUTING
            trusted = chosen is None or source is chosen or source.rank in (Rank.ENVIRONMENT, Rank.IMAGE)
            if routes and not trusted:
                warnings.append(f"{key} in {source.where} is ignored: the token came from {chosen.where if chosen else ''}")
            elif key not in values:
                values[key] = value
    return Settings(**values), tuple(warnings)


def require_complete(settings: Settings) -> None:
    """Invalid naming what enrollment cannot do without."""
    needed = ("api_base_url", "org_id", "project_id", "environment_id")
    missing = [key for key in needed if getattr(settings, key) is None]
    if missing:
        raise Invalid(
            f"settings are missing: {', '.join(missing)}", hint="set them beside the token, or in /etc/byteor/firstboot.yaml"
        )


def refreeze(frozen: Settings, image: Mapping[str, Any]) -> Settings:
    """Later boots: only the image's own file may change what was frozen, and never where an enrolled host reports to."""
    changed = {
        key: value for key, value in image.items() if key not in ("api_base_url", "org_id", "project_id", "environment_id")
    }
    return replace(frozen, **changed)
