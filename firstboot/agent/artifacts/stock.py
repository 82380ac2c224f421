"""What is in the spool, in quarantine, and known to be uploaded: looked at here, changed by `spool` alone.

    agent/spool/00000012-3f2a98…/       data, meta.json     waits; the lowest number is the oldest
    agent/quarantine/00000011-…/        and reason.json     refused: sent again only by `retry`, never deleted by us
    agent/uploaded.json                                     the newest that the plane has

A directory there is whole or not there: it comes and goes by one rename. A name that begins with a dot is what a power cut
left half done. Whatever is read may vanish meanwhile: then it is as if it had not been there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstboot.api.multipart import ArtifactMetadata
from firstboot.base import files
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout

# Both together: what is refused must not fill a disk either.
MOST_BYTES, MOST_ENTRIES = 512 << 20, 1000
MOST_SHOWN = 20  # quarantined artifacts in `status`
PREFIX = 16  # hex digits of the content's hash in a name
_NAME = re.compile(rf"\d{{8,12}}-[0-9a-f]{{{PREFIX}}}\Z")


@dataclass(frozen=True)
class Entry:
    """One artifact in spool or quarantine; `name` is what its file was called, `replaced` what was taken out of it."""

    id: str
    path: Path
    metadata: ArtifactMetadata
    name: str
    replaced: tuple[Mapping[str, Any], ...]

    @property
    def data(self) -> Path:
        return self.path / "data"


@dataclass(frozen=True)
class Census:
    """How many there are, and the `bytes` of their contents."""

    pending: int = 0
    quarantined: int = 0
    bytes: int = 0

    def room_for(self, size: int) -> bool:
        return self.bytes + size <= MOST_BYTES and self.pending + self.quarantined < MOST_ENTRIES


@dataclass(frozen=True)
class Uploaded:
    """One line of the memory: the plane has this content under `artifact_id`."""

    id: str
    sha256: str
    kind: str
    size: int
    artifact_id: str
    at: str


def ids(directory: Path) -> list[str]:
    """The names of the artifacts in a directory, oldest first; none when it is not there."""
    return sorted(filter(_NAME.match, listed(directory)), key=number)


def listed(directory: Path) -> list[str]:
    """All names in a directory, in no order; none when it is not there."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        files.fail("look into", directory, error)


def number(name: str) -> int:
    """The place of an artifact in the order of all."""
    return int(name.split("-")[0])


def load(path: Path) -> Entry | None:
    """Read what is said of an artifact, None when it is not there; Corrupt when it is damaged."""
    stored = files.read_json(path / "meta.json")
    if stored is None:
        if path.is_dir():
            raise Corrupt(f"{path} is damaged: it has no meta.json")
        return None
    replaced, name = stored.get("replaced"), stored.get("name")
    try:
        metadata = ArtifactMetadata.parse(stored)
    except (ValueError, OverflowError) as error:
        raise Corrupt(f"{path} is damaged: {error}") from error
    rows = (
        tuple(row for row in replaced if isinstance(row, dict))
        if isinstance(replaced, list)
        else ()
    )
    return Entry(path.name, path, metadata, name if isinstance(name, str) else "", rows)


def census(layout: Layout) -> Census:
    """Count what is there, without reading it."""
    waiting, kept = ids(layout.spool), ids(layout.quarantine)
    paths = [layout.spool / name for name in waiting] + [layout.quarantine / name for name in kept]
    return Census(len(waiting), len(kept), sum(map(_size, paths)))


def _size(path: Path) -> int:
    try:
        return os.stat(path / "data", follow_symlinks=False).st_size
    except OSError:
        return 0


def quarantined(layout: Layout) -> list[dict[str, Any]]:
    """The newest in quarantine, each with the reason, as `status` shows them."""
    return [refusal(layout.quarantine / name) for name in ids(layout.quarantine)[-MOST_SHOWN:]]


def refusal(path: Path) -> dict[str, Any]:
    """Why an artifact is in quarantine; what is damaged is None."""
    said: dict[str, Any] = {}
    entry = None
    try:
        said = files.read_json(path / "reason.json") or {}
        entry = load(path)
    except LocalFault:
        pass
    found: dict[str, Any] = {"id": path.name, "kind": None, "size": None, "name": None}
    if entry is not None:
        found.update(kind=entry.metadata.kind, size=entry.metadata.size, name=entry.name)
    texts = {
        name: said.get(name) if isinstance(said.get(name), str) else None
        for name in ("code", "detail", "at")
    }
    return {
        **found,
        **texts,
        "status": said.get("status") if isinstance(said.get("status"), int) else None,
    }


def uploaded(layout: Layout) -> list[Uploaded]:
    """The newest uploads, oldest first; Corrupt when the file is damaged."""
    rows = (files.read_json(layout.uploaded) or {}).get("uploaded")
    try:
        found = [
            Uploaded(**{name: row[name] for name in Uploaded.__dataclass_fields__})
            for row in rows or ()
        ]
        return [row for row in found if _NAME.match(row.id)]
    except (TypeError, KeyError) as error:
        raise Corrupt(f"{layout.uploaded} is damaged") from error
