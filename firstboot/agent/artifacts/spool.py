"""The artifacts on disk: waiting in the spool, or refused in quarantine.

    agent/spool/00000012-3f2a98…/       data, meta.json     waits; the lowest number is the oldest
    agent/quarantine/00000011-…/        and reason.json     refused; only `retry` sends it again
    agent/owner.json                                        the identity that all of this is of

An artifact's directory is whole or absent: it comes and goes by one rename. A name that begins
with a dot is what a power cut left half done. What is read may vanish meanwhile, and then counts as
absent. Only the agent's user writes here: the agent, and `upload` and `retry`, which become that
user first. The lock is held while something comes in; what leaves does so by one rename.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from firstboot.agent.artifacts import memory, packing
from firstboot.api.multipart import SPEC_HASH, ArtifactMetadata
from firstboot.base import documents, files, log, trees
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.documents import IDENTIFIER, lenient
from firstboot.base.errors import Corrupt, LocalFault, TryAgain
from firstboot.base.layout import ARTIFACT, REFUSAL, Layout
from firstboot.base.redaction import redact

# Spool and quarantine together: what is refused must not fill a disk either.
MOST_BYTES, MOST_ENTRIES = 512 << 20, 1000
MOST_SHOWN = 20  # quarantined artifacts in `status`
MOST_REPLACED = 200  # parts in meta.json; a bundle itself has the whole list
BESIDE_BYTES = 64 << 10  # room for what stands beside the data
LOCK_WAIT_S = 60.0  # another `upload` copies 64 MiB
EARLIEST = 946684800.0  # 2000-01-01: an older time comes from a clock without a battery
PREFIX = 16  # hex digits of the content's hash in a name
DATA = "data"
COMING = ".new"  # ends the name of what is not whole yet
NEW, WAITING, QUARANTINED, UPLOADED = "new", "waiting", "quarantined", "uploaded"
_NAME = re.compile(rf"\d{{8,12}}-[0-9a-f]{{{PREFIX}}}\Z")


class Full(LocalFault):
    """There is no room: the new artifact is refused, no old one is dropped."""


@dataclass(frozen=True)
class About:
    """An artifact's facts beside its content; `replaced` counts per part what was cut out."""

    kind: str
    name: str
    captured_at: float
    deployment_id: str | None = None
    spec_hash: str | None = None
    replaced: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Added:
    """The place of an artifact now: new, waiting, quarantined, or uploaded (as `artifact_id`)."""

    id: str
    state: str
    sha256: str
    artifact_id: str | None = None


@dataclass(frozen=True)
class Entry:
    """One artifact in spool or quarantine; `name` is what its file was called."""

    path: Path
    metadata: ArtifactMetadata
    name: str
    replaced: tuple[Mapping[str, Any], ...]

    @property
    def id(self) -> str:
        """Return the name of its directory."""
        return self.path.name

    @property
    def data(self) -> Path:
        """Return the file with its content."""
        return self.path / DATA


@dataclass(frozen=True)
class _Beside:
    name: str = lenient("")
    replaced: tuple[Mapping[str, Any], ...] = lenient(())


@dataclass(frozen=True)
class Census:
    """A count of artifacts, and the `bytes` of their contents."""

    pending: int = 0
    quarantined: int = 0
    bytes: int = 0

    def room_for(self, size: int) -> bool:
        """Return True when one more artifact of `size` bytes may come in."""
        return self.bytes + size <= MOST_BYTES and self.pending + self.quarantined < MOST_ENTRIES


@dataclass(frozen=True)
class Refusal:
    """``reason.json``: why an artifact is in quarantine; a member that is damaged is None."""

    status: Optional[int] = lenient()
    code: Optional[str] = lenient()
    detail: Optional[str] = lenient()
    at: Optional[str] = lenient()


# -- looking


def ids(directory: Path) -> list[str]:
    """Return the ids of the artifacts in a directory, oldest first; none when it is absent."""
    return sorted(filter(_NAME.match, files.names(directory)), key=number)


def number(artifact: str) -> int:
    """Return the place of an artifact in the order of all."""
    return int(artifact.split("-")[0])


def load(path: Path) -> Entry | None:
    """Read an artifact's metadata, None when it is absent; Corrupt when they are damaged."""
    stored = files.read_json(path / ARTIFACT)
    if stored is None:
        if path.is_dir():
            raise Corrupt(f"{path} is damaged: it has no {ARTIFACT}")
        return None
    try:
        metadata = ArtifactMetadata.parse(stored)
    except (ValueError, OverflowError) as error:
        raise Corrupt(f"{path} is damaged: {error}") from error
    return Entry(path, metadata, **vars(documents.parse(_Beside, stored)))


def size_of(path: Path) -> int:
    """Return the bytes of an artifact's content, 0 when it is absent."""
    try:
        return os.stat(path / DATA, follow_symlinks=False).st_size
    except OSError:
        return 0


def census(layout: Layout) -> Census:
    """Count what is there, without reading it."""
    waiting, kept = ids(layout.spool), ids(layout.quarantine)
    paths = [layout.spool / name for name in waiting] + [layout.quarantine / name for name in kept]
    return Census(len(waiting), len(kept), sum(map(size_of, paths)))


def quarantined(layout: Layout) -> list[dict[str, Any]]:
    """Return the newest in quarantine, each with its reason, as `status` shows them."""
    return [refusal(layout.quarantine / name) for name in ids(layout.quarantine)[-MOST_SHOWN:]]


def refusal(path: Path) -> dict[str, Any]:
    """Return why an artifact is in quarantine; a damaged member is None."""
    entry, reason = None, Refusal()
    try:
        reason = documents.read(path / REFUSAL, Refusal) or reason
        entry = load(path)
    except LocalFault:
        pass
    shown: dict[str, Any] = {"id": path.name, "kind": None, "size": None, "name": None}
    if entry is not None:
        shown.update(kind=entry.metadata.kind, size=entry.metadata.size, name=entry.name)
    return {**shown, **asdict(reason)}


# -- in


def prepare(layout: Layout) -> None:
    """Make the directories where no package has."""
    files.make_directory(layout.agent, 0o700)
    for directory in (layout.spool, layout.quarantine):
        files.make_directory(directory, 0o700)


def recover(layout: Layout) -> None:
    """Remove what a power cut left half done: for the agent's start, since it removes artifacts."""
    prepare(layout)
    for name in files.names(layout.spool):
        if name.startswith(".") and not name.endswith(COMING):
            with log.warned():  # it takes room, and nothing else
                trees.remove(layout.spool / name)
    # TryAgain: an `upload` is at work, which has swept before.
    with log.warned(), suppress(TryAgain), _alone(layout, wait_s=0.0):
        _sweep(layout)


def add(layout: Layout, source: int, about: About, *, wait_s: float = LOCK_WAIT_S) -> Added:
    """Put the content of the open file `source` into the spool, durably, once.

    LocalFault when it is empty, too large, or changes while it is read; Full when there is no room;
    TryAgain when another one comes in for longer than `wait_s` seconds.
    """
    prepare(layout)
    now = Clock().wall()
    size, sha256 = packing.digest(source, about.name)
    with _alone(layout, wait_s=wait_s):
        _sweep(layout)
        known = _known(layout, sha256, about.kind)
        if known is not None:
            return known
        _require_room(layout, size)
        is_possible = EARLIEST <= about.captured_at <= now
        metadata = ArtifactMetadata(
            about.kind,
            sha256,
            size,
            rfc3339(about.captured_at if is_possible else max(EARLIEST, now)),
            # As far as the control plane would accept them.
            about.deployment_id if IDENTIFIER.match(about.deployment_id or "") else None,
            about.spec_hash if SPEC_HASH.match(about.spec_hash or "") else None,
        )
        entry = f"{_next(layout):08d}-{sha256[:PREFIX]}"
        staging = layout.spool / f".{entry}{COMING}"
        files.make_directory(staging, 0o700)
        try:
            # Up to a byte more than there was: a file that grows is not what was hashed.
            if trees.copy(source, staging / DATA, limit=size + 1) != (size, sha256):
                raise packing.changed(about.name)
            said = {
                "name": about.name,
                "replaced": list(about.replaced[:MOST_REPLACED]),
                "spooled_at": rfc3339(now),
            }
            files.write_json(staging / ARTIFACT, {"v": 1, **asdict(metadata), **said})
            trees.complete(staging, layout.spool / entry)
        except BaseException:
            trees.remove(staging)
            raise
    return Added(entry, NEW, sha256)


def add_text(
    layout: Layout,
    text: bytes,
    *,
    kind: str = "diagnostic",
    name: str = "diagnostic",
    deployment_id: str | None = None,
    spec_hash: str | None = None,
    wait_s: float = LOCK_WAIT_S,
) -> Added:
    """Put a text into the spool, redacted; as `add`. Safe to repeat: equal text is there once."""
    clean, kinds = redact(text.decode("utf-8", "replace").encode())
    replaced = ({"part": name, "kinds": kinds},) if kinds else ()
    held = packing.hold(clean)
    try:
        about = About(kind, name, Clock().wall(), deployment_id, spec_hash, replaced)
        return add(layout, held, about, wait_s=wait_s)
    finally:
        os.close(held)


def _alone(layout: Layout, *, wait_s: float) -> AbstractContextManager[int]:
    busy = TryAgain("another upload is being put into the spool", hint="try again in a minute")
    return files.locked(layout.spool_lock, wait_s=wait_s, busy=lambda: busy)


def _sweep(layout: Layout) -> None:
    """Remove what is still coming in: with the lock held, it is a dead process's."""
    for name in files.names(layout.spool):
        if name.startswith(".") and name.endswith(COMING):
            trees.remove(layout.spool / name)


def _known(layout: Layout, sha256: str, kind: str) -> Added | None:
    """Return where this content is already; in quarantine only under the same kind."""
    for state, directory in ((WAITING, layout.spool), (QUARANTINED, layout.quarantine)):
        for name in ids(directory):
            if not name.endswith(sha256[:PREFIX]):
                continue
            try:
                entry = load(directory / name)
            except Corrupt:
                continue
            same = entry is not None and entry.metadata.sha256 == sha256
            # What is in quarantine may be accepted as another kind.
            if entry is not None and same and (state == WAITING or entry.metadata.kind == kind):
                return Added(name, state, sha256)
    # After the spool: the agent remembers an upload before it removes it.
    row = memory.recall(layout).get(sha256)
    return Added(row.id, UPLOADED, sha256, row.artifact_id) if row is not None else None


def _require_room(layout: Layout, size: int) -> None:
    there = census(layout)
    if not there.room_for(size):
        raise Full(
            f"the spool is full: it holds {there.pending} waiting and {there.quarantined} "
            f"quarantined artifacts, {there.bytes >> 20} MiB, and at most {MOST_ENTRIES} and "
            f"{MOST_BYTES >> 20} MiB",
            hint="byteor-agent status says why they are not uploaded; what is in quarantine may be "
            "removed by hand",
        )
    if trees.free_bytes(layout.spool) < size + BESIDE_BYTES:
        raise Full(
            f"the disk of {layout.spool} has no room for {size} bytes",
            hint="free some space on the disk",
        )


def _next(layout: Layout) -> int:
    there = ids(layout.spool)[-1:] + ids(layout.quarantine)[-1:]
    # The uploaded ones only so that people meet no number twice.
    there += [row.id for row in memory.recall(layout).values()][-1:]
    return 1 + max(map(number, there), default=0)


# -- out


def belong_to(layout: Layout, *, agent_id: str, api_base_url: str) -> None:
    """Bind the spool to an identity: what came under another one goes to quarantine.

    The other one may be another organisation's.
    """
    path = layout.spool_owner
    owner = {"v": 1, "agent_id": agent_id, "api_base_url": api_base_url}
    try:
        before = files.read_json(path)
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(path))
        before = {}
    if before == owner:
        return
    if before is not None:
        files.remove(layout.uploaded)
        detail = (
            "it was handed in under another identity of this host, and is not sent under this one "
            "unless you say so"
        )
        for name in ids(layout.spool):
            quarantine(layout, name, Refusal(code="another_identity", detail=detail))
    try:
        files.write_json(path, owner)
    except LocalFault as error:
        if before is not None:
            raise
        # A full disk: what is uploaded makes room.
        log.warning(f"the spool is not bound to this identity yet: {error}", hint=error.hint)


def drop(layout: Layout, artifact: str) -> None:
    """Remove an artifact that the control plane has."""
    trees.remove(layout.spool / artifact)


def quarantine(layout: Layout, artifact: str, reason: Refusal) -> None:
    """Move an artifact that was refused, with the reason, to where it is not sent again."""
    path = layout.spool / artifact
    said = {**asdict(reason), "at": rfc3339(Clock().wall())}
    files.write_json(path / REFUSAL, {"v": 1, **said})
    files.move_into(path, layout.quarantine)


def release(layout: Layout, artifact: str) -> bool:
    """Put an artifact from the quarantine back into the spool; False when none has that id."""
    if artifact not in ids(layout.quarantine):
        return False
    prepare(layout)
    with _alone(layout, wait_s=LOCK_WAIT_S):
        # First: once it is in the spool the agent may refuse it anew, and that reason is to stay.
        files.remove(layout.quarantine / artifact / REFUSAL)
        files.move_into(layout.quarantine / artifact, layout.spool)
    return True
