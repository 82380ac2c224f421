"""The schema of contract 4.1: one mapping, wherever it stands; nearest-key errors, merge by rank, the one-source rule."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from firstboot.base.errors import Invalid
from firstboot.base.secret import Secret
from firstboot.exchange.settings import Settings, freeze, has_password, thaw
from firstboot.provision.shapes import CHECKS

__all__ = [
    "CHECKS",
    "Rank",
    "Settings",
    "Source",
    "freeze",
    "load_yaml",
    "merge",
    "parse",
    "refreeze",
    "require_complete",
    "thaw",
]

YAML_LIMIT = 1 << 20
DEPTH_LIMIT = 32
NODE_LIMIT = 20_000
LONGEST_NUMBER = 64  # characters; a longer one takes quadratic time
COLLECTIONS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
SCALARS = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "timestamp")
)
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
    token: Secret | None = None
    path: Path | None = None


def compose(data: bytes, *, where: str) -> yaml.Node | None:
    """Return the node tree of one YAML document (None when empty); Invalid, naming a line and never quoting one."""
    if len(data) > YAML_LIMIT:
        raise Invalid(f"{where} is larger than {YAML_LIMIT} bytes of YAML")
    try:
        text = data.decode("utf-8-sig")
        depth = 0
        # Before composing, which recurses: an event stream does not.
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                event, yaml.CollectionEndEvent
            )
            if depth > DEPTH_LIMIT:
                raise Invalid(f"{where} is nested more than {DEPTH_LIMIT} levels deep")
        return yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError:
        raise Invalid(f"{where} is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        # `from None`: the library's message quotes the line, and the token may stand in it.
        stored = where.startswith(("user data", "vendor data"))
        hint = f"byteor-firstboot {'check-userdata checks it offline' if stored else 'preflight reads it again'}"
        raise Invalid(f"{where} is not YAML{line}", hint=hint) from None


def load_yaml(data: bytes, *, where: str) -> Any:
    """Return one YAML document as plain values; Invalid when it is broken, too deep, too large or names a key twice."""
    node = compose(data, where=where)
    return None if node is None else plain(node, where=where)


def plain(node: yaml.Node, *, where: str) -> Any:
    """Turn a node into plain values within a budget, so that no alias can blow it up."""
    budget = [NODE_LIMIT]
    return _plain(node, where, budget, 0)


def _plain(node: yaml.Node, where: str, budget: list[int], depth: int) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth > DEPTH_LIMIT:
        raise Invalid(f"{where} holds more than {NODE_LIMIT} values")
    if isinstance(node, yaml.CollectionNode) and node.tag not in COLLECTIONS:
        raise Invalid(f"{where} holds a value of a kind that is not plain YAML")
    if isinstance(node, yaml.MappingNode):
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _plain(key_node, where, budget, depth + 1)
            if not isinstance(key, str):
                raise Invalid(f"{where} has a key that is not a text")
            if key in found:
                raise Invalid(f"{where} names a key twice:{_shown(key)}")
            found[key] = _plain(value_node, where, budget, depth + 1)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where, budget, depth + 1) for item in node.value]
    return _scalar(node, where)


def _scalar(node: yaml.Node, where: str) -> Any:
    if node.tag == "tag:yaml.org,2002:str":
        return node.value
    if node.tag in SCALARS and len(node.value) <= LONGEST_NUMBER:
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError):
            pass  # `!!bool maybe` is a KeyError in there, an empty `!!int` an IndexError, `!!timestamp x` an AttributeError
    raise Invalid(f"{where} holds a value of a kind that is not plain YAML")


def _shown(key: str) -> str:
    """A key for a message, or why it is not there: one that may be a token's text (long, and no words) is not quoted."""
    words = re.fullmatch(r"[a-z]{1,14}(?:[_.-][a-z]{1,14})*", key) and len(key) <= 40
    return (
        f" {key}"
        if words or re.fullmatch(r"[A-Za-z_.-]{1,15}", key)
        else " (not shown: it may be a secret)"
    )


IMAGE_ONLY = frozenset({"seal", "signing_keys", "signing_keys_trust", "activation"})
ROUTING = (
    "api_base_url",
    "org_id",
    "project_id",
    "environment_id",
    "ca_certificates",
    "proxy",
    "no_proxy",
)


def parse(raw: Any, *, where: str, rank: Rank) -> dict[str, Any]:
    """Check one mapping; Invalid names `where`, the key and what is expected, never a value."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise Invalid(f"{where} is not a mapping of settings")
    found = {}
    for key, value in raw.items():
        if key not in CHECKS:
            near = difflib.get_close_matches(key, CHECKS, n=1, cutoff=0.4)
            raise Invalid(
                f"{where} has an unknown key{_shown(key)}",
                hint=f"did you mean {near[0]}?" if near else None,
            )
        if key in IMAGE_ONLY and rank is not Rank.IMAGE:
            raise Invalid(f"{where}: {key} may stand in /etc/byteor/firstboot.yaml only")
        if key == "enrollment_token" and rank is Rank.IMAGE:
            raise Invalid(f"{where}: a token never stands in the image's defaults")
        try:
            found[key] = CHECKS[key](value)
        except ValueError as error:
            inner = str(error).startswith(".")
            raise Invalid(f"{where}: {key}{'' if inner else ' '}{error}") from None
    if rank is Rank.IMAGE and has_password(found.get("proxy")):
        raise Invalid(
            f"{where}: proxy must not hold a password here: the file is readable by everybody"
        )
    return found


def merge(sources: Sequence[Source], *, chosen: Source | None) -> tuple[Settings, tuple[str, ...]]:
    """Merge by rank; routing comes from `chosen` or from the environment and the image beneath it (one-source rule)."""
    values: dict[str, Any] = {}
    given: dict[str, Rank] = {}
    ignored: list[tuple[str, Source]] = []
    for source in sorted(sources, key=lambda source: source.rank):
        # By rank and not by identity: the two systemd credentials are one source.
        trusted = chosen is None or source.rank in (chosen.rank, Rank.ENVIRONMENT, Rank.IMAGE)
        for key, value in source.values.items():
            if key in ROUTING and not trusted:
                ignored.append((key, source))
            elif key not in values:
                values[key], given[key] = value, source.rank
    pinned = tuple(sorted(key for key, rank in given.items() if rank is not Rank.IMAGE))
    because = f"the token came from {chosen.where}" if chosen is not None else ""
    warnings = tuple(
        # What says the same misleads nobody: write_files is read from the drop place and from user data.
        f"{key} in {source.where} is ignored: {because}"
        for key, source in ignored
        if source.values[key] != values.get(key)
    )
    return Settings(**values, pinned=pinned), warnings


def require_complete(settings: Settings) -> None:
    """Invalid naming what enrollment cannot do without."""
    needed = ("api_base_url", "org_id", "project_id", "environment_id")
    missing = [key for key in needed if getattr(settings, key) is None]
    if missing:
        raise Invalid(
            f"settings are missing: {', '.join(missing)}",
            hint="set them beside the token, or in /etc/byteor/firstboot.yaml",
        )


def refreeze(frozen: Settings, image: Mapping[str, Any]) -> Settings:
    """Later boots: only the image's own file changes what was frozen: never where an enrolled host reports to, nor what
    a source above the image gave (else the first hand-off would undo it). A key that the file no longer names stays."""
    kept = {"api_base_url", "org_id", "project_id", "environment_id", *frozen.pinned}
    return replace(frozen, **{key: value for key, value in image.items() if key not in kept})
