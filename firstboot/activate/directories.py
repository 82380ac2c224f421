"""``deployments/`` and ``current``: which directory is which deployment, and which ones stay.

Each complete directory carries a marker of ours that names the payload it was made from, so that no
name alone is ever believed: ids and sequences of two environments may be the same. It is written
before the directory is complete, and never after. What is not ours in there (an operator's files,
``lost+found``) is left alone.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Annotated

from firstboot.activate.admission import Deployment
from firstboot.base import documents, files, log, trees
from firstboot.base.documents import Digest, Identifier, Line, Rule
from firstboot.base.errors import LocalFault
from firstboot.base.layout import DEPLOYMENT_MARKER, Layout
from firstboot.exchange import verdicts
from firstboot.exchange.verdicts import Current

STAGING = ".incoming"
KEPT = 3
VERSION = 1
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})-(\d{1,16})(\.[0-9a-f]{12})?\Z")
# What a power cut leaves of ours and of `trees.remove`.
_HALF_DONE = re.compile(r"\.incoming\Z|\..*\.gone\Z")
# Where `current` may lead: our own link is relative, an operator's may be absolute.
_PLACES = ("deployments", Layout.deployments.absolute)

Name = Annotated[str, Rule(lambda name: _NAME.match(name) is not None, "a directory of ours")]


@dataclass(frozen=True)
class Marker:
    """The envelope and bundle that a directory was made from."""

    deployment_id: Identifier
    sequence: int
    spec_hash: Line
    payload_sha256: Digest


def marking(deployment: Deployment) -> bytes:
    """Return the marker's bytes for a directory that is being made."""
    return json.dumps({"v": VERSION, **deployment.facts}, sort_keys=True).encode() + b"\n"


def read(layout: Layout, name: str | None) -> Marker | None:
    """Return the marker of a complete directory; None when there is none that can be read."""
    try:
        path = layout.deployments / name / DEPLOYMENT_MARKER if name is not None else None
        return documents.read(path, Marker) if path is not None else None
    except LocalFault:
        return None


def holds(layout: Layout, name: str, deployment: Deployment) -> bool:
    """Return True when a complete directory was made from this payload."""
    made = read(layout, name)
    return made is not None and made.payload_sha256 == deployment.payload_sha256


def chosen(layout: Layout, deployment: Deployment) -> str:
    """Return the name for a deployment's directory.

    Its own, unless another environment's directory of that name is still kept.
    """
    name = deployment.name
    taken = os.path.lexists(layout.deployments / name) and not holds(layout, name, deployment)
    kept = name in (named(layout), verdicts.load(layout).previous)
    return f"{name}.{deployment.payload_sha256[:12]}" if taken and kept else name


def named(layout: Layout) -> str | None:
    """Return the directory that ``current`` names, None when it names none of ours."""
    try:
        target = os.readlink(layout.current)
    except OSError:
        return None
    above, _, name = target.rstrip("/").rpartition("/")
    return name if above in _PLACES and is_usable(layout, name) else None


def is_usable(layout: Layout, name: str | None) -> bool:
    """Return True when there is such a directory of ours."""
    return _NAME.match(name or "") is not None and (layout.deployments / str(name)).is_dir()


def point(layout: Layout, name: str) -> None:
    """Make a directory the active one.

    The link is relative, so that a tree that is moved or mounted elsewhere keeps its deployment.
    """
    trees.point(layout.current, f"deployments/{name}")


def withdraw(layout: Layout) -> None:
    """Make nothing active. A file that somebody put in the link's place is theirs."""
    if layout.current.is_symlink():
        files.remove(layout.current)


def in_force(layout: Layout, *, state: str) -> Current | None:
    """Return what a heartbeat says of the active deployment, from the directory itself."""
    name = named(layout)
    match = _NAME.match(name) if name is not None else None
    if match is None:
        return None
    made = read(layout, name)
    if made is None:
        return Current(match[1], int(match[2]), None, state)
    return Current(made.deployment_id, made.sequence, made.spec_hash, state)


def prune(layout: Layout, *, newest: int = KEPT) -> None:
    """Remove all but the `newest` directories, the active one and its predecessor.

    Half-made ones go too; what is not ours stays. Housekeeping: what cannot be removed is a
    warning.
    """
    present: list[tuple[int, str]] = []
    with log.warned(), files.attempt("look into", layout.deployments):
        present += [(path.lstat().st_mtime_ns, path.name) for path in layout.deployments.iterdir()]
    ours = [name for _, name in sorted(present) if _NAME.match(name)]
    kept = {*ours[max(0, len(ours) - newest) :], named(layout), verdicts.load(layout).previous}
    for _, name in present:
        if _HALF_DONE.match(name) or (name in ours and name not in kept):
            with log.warned():
                trees.remove(layout.deployments / name)
