"""``deployments/`` and ``current``: which directory is which deployment, which one is in force, which ones stay.

Each complete directory carries a marker of ours that names the payload it was made from, so that no name alone is ever
believed: ids and sequences of two environments may be the same. It is written before the directory is complete, and never
after. What is not ours in there (an operator's files, ``lost+found``) is left alone.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass

from firstboot.activate.admission import Deployment
from firstboot.base import files, trees
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.exchange.verdicts import Current

MARKER = ".deployment.json"
STAGING = ".incoming"
KEPT = 3
VERSION = 1
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})-(\d{1,16})(\.[0-9a-f]{12})?\Z")
_HALF_DONE = re.compile(
    r"\.incoming\Z|\..*\.gone\Z"
)  # what a power cut leaves of ours and of `trees.remove`
# Where `current` may lead: our own link is relative, an operator's may be absolute.
_PLACES = ("deployments", "/var/lib/byteor/deployments")


@dataclass(frozen=True)
class Marker:
    """What a directory was made from."""

    deployment_id: str
    sequence: int
    spec_hash: str
    payload_sha256: str


def marking(deployment: Deployment) -> bytes:
    """The marker's bytes for a directory that is being made."""
    made = Marker(
        deployment.deployment_id,
        deployment.sequence,
        deployment.spec_hash,
        deployment.payload_sha256,
    )
    return json.dumps({"v": VERSION, **asdict(made)}, sort_keys=True).encode() + b"\n"


def is_name(name: object) -> bool:
    """True for the name of a directory of ours."""
    return isinstance(name, str) and _NAME.match(name) is not None


def read(layout: Layout, name: str) -> Marker | None:
    """The marker of a complete directory; None when there is none, or no marker that can be read."""
    try:
        stored = files.read_json(layout.deployments / name / MARKER) or {}
        texts = [stored.get(key) for key in ("deployment_id", "spec_hash", "payload_sha256")]
        sequence = stored.get("sequence")
    except LocalFault:
        return None
    if not all(isinstance(text, str) for text in texts) or type(sequence) is not int:
        return None
    return Marker(str(texts[0]), sequence, str(texts[1]), str(texts[2]))


def chosen(layout: Layout, deployment: Deployment, *, previous: str | None) -> str:
    """The name for a deployment's directory: its id and sequence, unless another environment's of that name is still kept."""
    name, made = deployment.name, read(layout, deployment.name)
    taken = os.path.lexists(layout.deployments / name) and (
        made is None or made.payload_sha256 != deployment.payload_sha256
    )
    return (
        f"{name}.{deployment.payload_sha256[:12]}"
        if taken and name in (named(layout), previous)
        else name
    )


def named(layout: Layout) -> str | None:
    """The directory that ``current`` names, None when it names none of ours."""
    try:
        target = os.readlink(layout.current)
    except OSError:
        return None
    above, _, name = target.rstrip("/").rpartition("/")
    return name if above in _PLACES and is_usable(layout, name) else None


def is_usable(layout: Layout, name: str | None) -> bool:
    """True when there is such a directory."""
    return name is not None and is_name(name) and (layout.deployments / name).is_dir()


def point(layout: Layout, name: str) -> None:
    """Put a directory in force. Relative, so that a tree that is moved or mounted elsewhere keeps its deployment."""
    trees.point(layout.current, f"deployments/{name}")


def withdraw(layout: Layout) -> None:
    """Nothing is in force any more. A file that somebody put in the link's place is theirs."""
    if layout.current.is_symlink():
        files.remove(layout.current)


def in_force(layout: Layout, *, state: str) -> Current | None:
    """Return what a heartbeat says of the deployment in force, from the directory itself."""
    name = named(layout)
    match = _NAME.match(name) if name is not None else None
    if name is None or match is None:
        return None
    made = read(layout, name) or Marker(match[1], int(match[2]), "", "")
    return Current(made.deployment_id, made.sequence, made.spec_hash or None, state)


def prune(layout: Layout, *, previous: str | None) -> None:
    """Keep the three newest directories, what is in force and what was before it; remove others of ours and half-made ones."""
    try:
        present = [(path.lstat().st_mtime_ns, path.name) for path in layout.deployments.iterdir()]
    except OSError as error:
        files.fail("list", layout.deployments, error)
    ours = [name for _, name in sorted(present) if is_name(name)]
    kept = {*ours[-KEPT:], named(layout), previous}
    for _, name in present:
        if _HALF_DONE.match(name) or (is_name(name) and name not in kept):
            trees.remove(layout.deployments / name)
