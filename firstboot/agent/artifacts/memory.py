"""Remember the newest uploads (``uploaded.json``) and the progress of the current one.

An upload is recorded before its artifact is removed: after a crash in between it is not sent again,
`upload --wait` learns the id, and content that is handed in again is known.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from firstboot.api.multipart import ArtifactMetadata
from firstboot.base import documents, files, log
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.documents import Digest, Identifier
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout

MOST = 200  # uploads


@dataclass(frozen=True)
class Uploaded:
    """The control plane has this content under `artifact_id`; `id` was the spool's."""

    id: Identifier
    sha256: Digest
    kind: str
    size: int
    artifact_id: Identifier
    at: str


@dataclass(frozen=True)
class _Memory:
    uploaded: tuple[Uploaded, ...] = ()


@dataclass(frozen=True)
class Progress:
    """``upload.json`` on tmpfs: how many bytes of an artifact were sent."""

    id: str
    sent: int
    size: int


def progress(layout: Layout) -> Progress | None:
    """Return how far the upload under way is; None when there is none, or nothing sensible."""
    try:
        said = documents.read(layout.upload_progress, Progress)
    except LocalFault:
        return None
    return said if said is not None and said.size > 0 and said.sent <= said.size else None


def show(layout: Layout, now: Progress | None) -> None:
    """Publish the progress, or that nothing is under way; a full /run must not stop an upload."""
    path = layout.upload_progress
    try:
        if now is None:
            files.remove(path)
        else:
            files.write_json(path, {"v": 1, **asdict(now)}, mode=0o644, durable=False)
    except LocalFault:
        pass


def read(layout: Layout) -> dict[str, Uploaded]:
    """Return the uploads by the hash of their content, oldest first; Corrupt when damaged."""
    found = documents.read(layout.uploaded, _Memory) or _Memory()
    return {row.sha256: row for row in found.uploaded}


def recall(layout: Layout) -> dict[str, Uploaded]:
    """Return the same, nothing when the file is damaged: the next upload sets that aside."""
    try:
        return read(layout)
    except Corrupt:
        return {}


def remember(layout: Layout, artifact: str, said: ArtifactMetadata, artifact_id: str) -> None:
    """Record one upload."""
    try:
        rows = read(layout)
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(layout.uploaded))
        rows = {}
    rows.pop(said.sha256, None)
    at = rfc3339(Clock().wall())
    row = Uploaded(artifact, said.sha256, said.kind, said.size, artifact_id, at)
    kept = [*rows.values(), row][-MOST:]
    files.write_json(layout.uploaded, {"v": 1, "uploaded": [asdict(each) for each in kept]})
