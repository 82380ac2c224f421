"""The spool's changes: an artifact comes in durably and once, leaves when the plane has it, or goes to the quarantine.

Only the agent's user writes here: the agent, and `upload` and `retry`, which become that user first. ``spool/lock`` is
held while something comes in; what leaves does so by one rename. `stock` has the layout and looks at it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firstboot.agent.artifacts import stock
from firstboot.agent.artifacts.stock import MOST_BYTES, MOST_ENTRIES, PREFIX, Entry, Uploaded
from firstboot.api.multipart import LARGEST, SPEC_HASH, ArtifactMetadata
from firstboot.base import files, log, trees
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.documents import IDENTIFIER
from firstboot.base.errors import Corrupt, LocalFault, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.redaction import redact

MOST_REMEMBERED = 200  # uploads
MOST_REPLACED = 200  # parts in meta.json; a bundle itself has the whole list
BESIDE_BYTES = 64 << 10  # room for what stands beside the data
LOCK_WAIT_S = 60.0  # another `upload` copies 64 MiB
EARLIEST = 946684800.0  # 2000-01-01: no artifact is older; a clock without a battery says so
COMING = ".new"  # ends the name of what is not whole yet
NEW, WAITING, QUARANTINED, UPLOADED = "new", "waiting", "quarantined", "uploaded"


class Full(LocalFault):
    """There is no room: the new artifact is refused, no old one is dropped."""


@dataclass(frozen=True)
class About:
    """What is said of an artifact beside its content. `replaced`: per part, what kinds of secrets were taken out."""

    kind: str
    name: str
    captured_at: float
    deployment_id: str | None = None
    spec_hash: str | None = None
    replaced: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Added:
    """Where an artifact is now: new, waiting, quarantined, or uploaded (as `artifact_id`)."""

    id: str
    state: str
    sha256: str
    artifact_id: str | None = None


def prepare(layout: Layout) -> None:
    """Make the directories where no package has."""
    files.make_directory(layout.agent, 0o700)
    for directory in (layout.spool, layout.quarantine):
        files.make_directory(directory, 0o700)


def recover(layout: Layout) -> None:
    """Remove what a power cut left half done: for the agent when it starts, since nobody else removes artifacts."""
    prepare(layout)
    for name in stock.listed(layout.spool):
        if name.startswith(".") and not name.endswith(COMING):
            try:
                trees.remove(layout.spool / name)
            except LocalFault as error:
                log.warning(
                    str(error), hint=error.hint
                )  # it only takes room, and must not stop what waits
    try:
        with _alone(layout, wait_s=0.0):
            _sweep(layout)
    except TryAgain:
        pass  # an `upload` is at work, which has swept before
    except LocalFault as error:
        log.warning(str(error), hint=error.hint)


def add(layout: Layout, source: int, about: About) -> Added:
    """Put the content of the open file `source` into the spool, durably, once.

    LocalFault when it is empty, too large, or changes while it is read; Full when there is no room.
    """
    prepare(layout)
    now = Clock().wall()
    size, sha256 = _digest(source, about.name)
    with _alone(layout, wait_s=LOCK_WAIT_S):
        _sweep(layout)
        known = _known(layout, sha256, about.kind)
        if known is not None:
            return known
        _require_room(layout, size)
        captured = rfc3339(
            about.captured_at if EARLIEST <= about.captured_at <= now else max(EARLIEST, now)
        )
        metadata = ArtifactMetadata(about.kind, sha256, size, captured, *_in_force(about))
        entry = f"{_next(layout):08d}-{sha256[:PREFIX]}"
        staging = layout.spool / f".{entry}{COMING}"
        files.make_directory(staging, 0o700)
        try:
            # Up to a byte more than there was: a file that grows is not what was hashed.
            if trees.copy(source, staging / "data", limit=size + 1) != (size, sha256):
                raise changed(about.name)
            said = {
                "name": about.name,
                "replaced": list(about.replaced[:MOST_REPLACED]),
                "spooled_at": rfc3339(now),
            }
            files.write_json(staging / "meta.json", {"v": 1, **asdict(metadata), **said})
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
) -> Added:
    """Put a text into the spool, redacted; as `add`. Safe to repeat: equal text is there once."""
    clean, kinds = redact(text.decode("utf-8", "replace").encode())
    replaced = ({"part": name, "kinds": kinds},) if kinds else ()
    held = hold(clean)
    try:
        return add(
            layout, held, About(kind, name, Clock().wall(), deployment_id, spec_hash, replaced)
        )
    finally:
        os.close(held)


def hold(data: bytes) -> int:
    """An open file without a name that holds `data`; the caller closes it."""
    fd = os.memfd_create("artifact", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as stream:
            stream.write(data)
    except OSError as error:
        os.close(fd)
        raise LocalFault("there is no memory for the artifact") from error
    return fd


def remember(layout: Layout, entry: Entry, artifact_id: str) -> None:
    """Note, before it is removed, that the plane has it: for `upload --wait`, and for who uploads it once more."""
    try:
        rows = stock.uploaded(layout)
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(layout.uploaded))
        rows = []
    said = entry.metadata
    row = Uploaded(
        entry.id, said.sha256, said.kind, said.size, artifact_id, rfc3339(Clock().wall())
    )
    rows = [*(other for other in rows if other.sha256 != said.sha256), row][-MOST_REMEMBERED:]
    files.write_json(layout.uploaded, {"v": 1, "uploaded": [asdict(each) for each in rows]})


def belong_to(layout: Layout, *, agent_id: str, api_base_url: str) -> None:
    """Bind the spool to an identity: what came under another, perhaps another organisation's, is not sent by itself."""
    path, owner = (
        layout.spool_owner,
        {"v": 1, "agent_id": agent_id, "api_base_url": api_base_url},
    )
    try:
        before = files.read_json(path)
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(path))
        before = {}
    if before == owner:
        return
    if before is not None:
        files.remove(layout.uploaded)
        detail = "it was handed in under another identity of this host, and is not sent under this one unless you say so"
        for entry_id in stock.ids(layout.spool):
            quarantine(
                layout, entry_id, {"status": None, "code": "another_identity", "detail": detail}
            )
    try:
        files.write_json(path, owner)
    except LocalFault as error:
        if before is not None:
            raise
        log.warning(
            f"the spool is not bound to this identity yet: {error}"
        )  # a full disk: what goes makes room


def drop(layout: Layout, entry_id: str) -> None:
    """Remove an artifact that the plane has."""
    trees.remove(layout.spool / entry_id)


def quarantine(layout: Layout, entry_id: str, reason: Mapping[str, Any]) -> None:
    """Keep an artifact that was refused, with `reason` (`status`, `code`, `detail`), where it is not sent again."""
    path = layout.spool / entry_id
    files.write_json(path / "reason.json", {"v": 1, "at": rfc3339(Clock().wall()), **reason})
    files.move_into(path, layout.quarantine)


def release(layout: Layout, entry_id: str) -> bool:
    """Put an artifact from the quarantine back into the spool; False when there is none of that id."""
    if entry_id not in stock.ids(layout.quarantine):
        return False
    prepare(layout)
    with _alone(layout, wait_s=LOCK_WAIT_S):
        # In this order: once it is in the spool the agent may refuse it anew, and that reason is to stay.
        files.remove(layout.quarantine / entry_id / "reason.json")
        files.move_into(layout.quarantine / entry_id, layout.spool)
    return True


def _in_force(about: About) -> tuple[str | None, str | None]:
    """What is said of the deployment, as far as the plane would accept it."""
    named, spec = about.deployment_id, about.spec_hash
    return named if IDENTIFIER.match(named or "") else None, spec if SPEC_HASH.match(
        spec or ""
    ) else None


def _alone(layout: Layout, *, wait_s: float) -> AbstractContextManager[int]:
    busy = TryAgain("another upload is being put into the spool", hint="try again in a minute")
    return files.locked(layout.spool_lock, wait_s=wait_s, busy=lambda: busy)


def _sweep(layout: Layout) -> None:
    """With the lock held, whatever is still coming in is a dead process's."""
    for name in stock.listed(layout.spool):
        if name.startswith(".") and name.endswith(COMING):
            trees.remove(layout.spool / name)


def _digest(source: int, name: str) -> tuple[int, str]:
    """Size and hash of an open file; LocalFault for what is never an artifact, before a byte of it is copied."""
    try:
        announced = os.fstat(source).st_size
        if announced > LARGEST:
            raise LocalFault(
                f"{name} is larger than {LARGEST >> 20} MiB", hint="an artifact has at most 64 MiB"
            )
        digest, size = hashlib.sha256(), 0
        while True:
            piece = os.pread(source, trees.PIECE, size)
            size += len(piece)
            if not piece or size > announced:
                break
            digest.update(piece)
    except OSError as error:
        files.fail("read", Path(name), error)
    if size != announced:
        raise changed(name)
    if not size:
        raise LocalFault(f"{name} is empty")
    return size, digest.hexdigest()


def changed(name: str) -> LocalFault:
    """The error for a file that somebody writes to while it is read."""
    return LocalFault(
        f"{name} changed while it was read", hint="upload a copy that nobody writes to"
    )


def _known(layout: Layout, sha256: str, kind: str) -> Added | None:
    """Where this content is already. In quarantine it stands only as that kind: as another it may be accepted."""
    for state, directory in ((WAITING, layout.spool), (QUARANTINED, layout.quarantine)):
        for name in stock.ids(directory):
            if name.endswith(sha256[:PREFIX]):
                entry = _loaded(directory / name)
                same = entry is not None and entry.metadata.sha256 == sha256
                if entry is not None and same and (state == WAITING or entry.metadata.kind == kind):
                    return Added(name, state, sha256)
    try:
        rows = stock.uploaded(layout)
    except Corrupt:
        return None
    # After the spool: the agent notes an upload before it removes it.
    return next(
        (Added(row.id, UPLOADED, sha256, row.artifact_id) for row in rows if row.sha256 == sha256),
        None,
    )


def _loaded(path: Path) -> Entry | None:
    try:
        return stock.load(path)
    except Corrupt:
        return None


def _require_room(layout: Layout, size: int) -> None:
    there = stock.census(layout)
    if not there.room_for(size):
        held = f"{there.pending} waiting and {there.quarantined} quarantined artifacts, {there.bytes >> 20} MiB"
        raise Full(
            f"the spool is full: it holds {held}, and at most {MOST_ENTRIES} and {MOST_BYTES >> 20} MiB",
            hint="byteor-agent status says why they are not uploaded; what is in quarantine may be removed by hand",
        )
    try:
        facts = os.statvfs(layout.spool)
    except OSError as error:
        files.fail("look at", layout.spool, error)
    if facts.f_bavail * facts.f_frsize < size + BESIDE_BYTES:
        raise Full(
            f"the disk of {layout.spool} has no room for {size} bytes",
            hint="free some space on the disk",
        )


def _next(layout: Layout) -> int:
    there = stock.ids(layout.spool)[-1:] + stock.ids(layout.quarantine)[-1:]
    try:
        there += [
            row.id for row in stock.uploaded(layout)[-1:]
        ]  # only so that people meet no number twice
    except Corrupt:
        pass
    return 1 + max(map(stock.number, there), default=0)
