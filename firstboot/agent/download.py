"""Fetch one bundle, hashed as it is written, over many attempts.

    bundle.json    which bundle `bundle.part` is to become, and the tag that its bytes came with
    bundle.part    what is there of it; the next attempt goes on at its end
    DIGEST.bundle  all of it: renamed when it is durable, under the digest that was signed

Whole means: as many bytes as were signed, with their hash. What comes whole and wrong is fetched
once more from its first byte; the second time it is handed on all the same, since refusing it is
the activator's to do (and to report).
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from firstboot.agent.schedule import Ask, Schedule
from firstboot.agent.worker import Context, Work
from firstboot.api.answers import check
from firstboot.api.bundles import Coming, StartOver
from firstboot.api.client import Answer
from firstboot.base import documents, files, trees
from firstboot.base.documents import lenient
from firstboot.base.errors import Corrupt, LocalFault, TryAgain
from firstboot.base.layout import BUNDLE, PARTIAL, PARTIAL_RECORD
from firstboot.exchange.verdicts import Wanted

DOING = "bundle"
PERIOD_S = 60.0
# On the disk beside the bundle itself: the activator's own copy, and a guess at what comes out of
# it (a gzip'd tar of programs takes three times its packed size; the activator looks for itself).
COPIES, UNPACKED = 1, 3
RESERVE_BYTES = 32 << 20
PUBLISH_S = 5.0
MIB = 1 << 20
NO_CEILING = 1 << 62  # the bytes are counted here
# An attempt that brought so much more than any before was no failure, however it ended: the next
# one continues it, and comes soon.
WORTH_BYTES = 1 << 20
BLOCK_BYTES = 1 << 20  # read at a time
# Made durable so often: a power cut costs no more than this, and no single fsync takes minutes on
# a slow card.
SYNC_BYTES = 64 << 20


class GaveWay(Exception):
    """The bundle that is being fetched is no longer wanted."""


@dataclass(frozen=True)
class _Record:
    sha256: Optional[str] = lenient()
    size: Optional[int] = lenient()
    etag: Optional[str] = lenient()


@dataclass
class Download(Work):
    """Bring the bundle that was last wanted.

    `run_once` is for one thread, the rest for any. `wake` makes the transfer thread run it,
    `brought` is called when the bundle is there.
    """

    context: Context
    schedule: Schedule
    alive: Callable[[], None]
    changed: Callable[[], None]
    wake: Callable[[Ask], None]
    brought: Callable[[], None]
    # The bundle on its way: `deployment_id`, `bytes`, `size`.
    progress: dict[str, Any] | None = None
    _told: bool = False
    _wanted: Wanted | None = None
    _published_at: float = 0.0
    _most: int = 0  # bytes of it that an attempt ever ended with
    # The bundle whose first byte this process wrote: what was there before may have been through a
    # power cut.
    _own: str | None = None
    _wrong: str | None = None

    def __post_init__(self) -> None:
        self._inbox = self.context.layout.inbox
        self._part, self._record = self._inbox / PARTIAL, self._inbox / PARTIAL_RECORD

    def want(self, wanted: Wanted | None) -> None:
        """Make `wanted` the bundle to bring; give up any other."""
        changed = not self._told or wanted != self._wanted
        self._told, self._wanted = True, wanted
        if changed:
            self._most = 0
            self.wake(Ask.ANEW)
        elif wanted is not None and not self.is_here(wanted):
            self.wake(Ask.HINT)  # a failed attempt keeps its pause

    def is_here(self, wanted: Wanted) -> bool:
        """Return True when its bundle was brought."""
        return os.path.lexists(self._bundle(wanted))

    def run_once(self) -> bool:
        """Make one attempt; False when there is nothing to bring.

        What came before it raised is kept.
        """
        wanted = self._wanted
        if not self._told:
            return False
        self._tidy(wanted)
        if wanted is None or self.is_here(wanted):
            return False
        try:
            self._bring(wanted)
        except GaveWay:
            return True  # `want` has asked for the next attempt
        finally:
            self.context.api.rest()
        self.brought()
        return True

    def _tidy(self, wanted: Wanted | None) -> None:
        """Remove what nobody wants any more."""
        for path in self._inbox.glob(f"*{BUNDLE}"):
            if wanted is None or path != self._bundle(wanted):
                files.remove(path)
        if wanted is None or self._recorded(wanted) is None:
            self.progress = None
            files.remove(self._part)
            files.remove(self._record)

    def _bring(self, wanted: Wanted) -> None:
        recorded = self._recorded(wanted)
        if recorded is None:
            self._record_now(wanted, None)
        tag = recorded.etag if recorded is not None else None
        with Partial(self._part, alive=self.alive) as part:
            part.take_up()
            if part.size > wanted.size or (tag is None and part.size < wanted.size):
                part.start_over()
            if part.size < wanted.size:
                self._require_room(wanted, part.size)
                self._fetch(wanted, part, tag)
            self._judge(wanted, part)
            part.complete(self._bundle(wanted))
        files.remove(self._record)
        self.progress = None

    def _bundle(self, wanted: Wanted) -> Path:
        return self._inbox / f"{wanted.sha256}{BUNDLE}"

    def _fetch(self, wanted: Wanted, part: Partial, tag: str | None) -> None:
        self._show(wanted, part.size, at_once=True)
        before, size = part.size, wanted.size
        coming = self.context.api.bundle(
            *self.context.who, wanted.deployment_id, have=before, tag=tag, size=size
        )
        try:
            with coming as answer:
                if isinstance(answer, Answer):
                    check(answer, doing=DOING)
                    raise TryAgain(
                        f"{DOING}: the control plane answered {answer.status} without a bundle"
                    )
                self._take(wanted, part, answer)
        except StartOver:
            part.start_over()
            raise
        except TryAgain:
            recorded = self._recorded(wanted)
            is_kept = recorded is not None and recorded.etag is not None
            if is_kept and part.size - max(before, self._most) >= WORTH_BYTES:
                self.schedule.failures = 0
            self._most = max(part.size, self._most)
            raise

    def _take(self, wanted: Wanted, part: Partial, coming: Coming) -> None:
        """Write what comes, and one byte too many as proof."""
        if coming.start == 0 and part.size:
            part.start_over()
        if part.size == 0:
            self._own = wanted.sha256
            self._record_now(wanted, coming.tag)
        for piece in coming.stream.pieces(NO_CEILING):
            part.add(piece[: wanted.size + 1 - part.size])
            self._show(wanted, part.size)
            if part.size > wanted.size:
                return
            if self._wanted != wanted:
                raise GaveWay
        if part.size < wanted.size and (coming.total is None or part.size < coming.total):
            raise TryAgain(f"{DOING}: it ended after {part.size} of {wanted.size} bytes")

    def _judge(self, wanted: Wanted, part: Partial) -> None:
        """Return if it was signed, or was wrong before; else remove it."""
        if part.size == wanted.size and part.digest.hexdigest() == wanted.sha256:
            self._wrong = None
        elif self._wrong != wanted.sha256:
            if self._own == wanted.sha256:
                self._wrong = wanted.sha256
            part.start_over()
            raise TryAgain(
                f"{DOING}: what came is not the bundle that was signed; it is fetched once more",
                hint="a mirror or an object store that changes files does this",
            )

    def _require_room(self, wanted: Wanted, have: int) -> None:
        needed = wanted.size - have + (COPIES + UNPACKED) * wanted.size + RESERVE_BYTES
        free = trees.free_bytes(self._inbox)
        if free < needed:
            raise LocalFault(
                f"no room for the bundle of {wanted.deployment_id}: {free // MIB} MiB are free"
                f" and it takes {needed // MIB}",
                hint=f"free {(needed - free) // MIB + 1} MiB on the disk of {self._inbox}",
            )

    def _recorded(self, wanted: Wanted) -> _Record | None:
        """Return the record of what is there, if of these bytes."""
        try:
            stored = documents.read(self._record, _Record)
        except Corrupt:
            return None
        same = stored is not None and (stored.sha256, stored.size) == (wanted.sha256, wanted.size)
        return stored if same else None

    def _record_now(self, wanted: Wanted, tag: str | None) -> None:
        record = {"v": 1, "deployment_id": wanted.deployment_id, "size": wanted.size}
        files.write_json(self._record, {**record, "sha256": wanted.sha256, "etag": tag})

    def _show(self, wanted: Wanted, size: int, *, at_once: bool = False) -> None:
        here = min(size, wanted.size)
        self.progress = {"deployment_id": wanted.deployment_id, "bytes": here, "size": wanted.size}
        now = self.context.clock.monotonic()
        if at_once or now - self._published_at >= PUBLISH_S:
            self._published_at = now
            self.changed()


class Partial:
    """A private file that grows over many attempts.

    It is closed by the ``with``. `size` bytes are there, `digest` is theirs. `alive` is called
    after each block. OSErrors become LocalFault.
    """

    def __init__(self, path: Path, *, alive: Callable[[], None]) -> None:
        self._path, self._alive = path, alive
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with files.attempt("open", self._path):
            self._fd = os.open(path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise Corrupt(f"{path} is not a regular file")
        self.size = self._synced = 0
        self.digest = hashlib.sha256()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def take_up(self) -> None:
        """Hash what is there, so that writing goes on at its end."""
        with files.attempt("read", self._path):
            while block := os.pread(self._fd, BLOCK_BYTES, self.size):
                self.digest.update(block)
                self.size += len(block)
                self._alive()
        self._synced = self.size

    def start_over(self) -> None:
        """Forget what is there."""
        with files.attempt("empty", self._path):
            os.ftruncate(self._fd, 0)
        self.size, self._synced, self.digest = 0, 0, hashlib.sha256()

    def add(self, piece: bytes) -> None:
        """Write at the end."""
        left = memoryview(piece)
        with files.attempt("write", self._path):
            while left:
                written = os.pwrite(self._fd, left, self.size)
                self.digest.update(left[:written])
                self.size += written
                left = left[written:]
            if self.size - self._synced >= SYNC_BYTES:
                os.fdatasync(self._fd)
                self._synced = self.size
        self._alive()

    def complete(self, target: Path) -> None:
        """Make it durable and rename it to `target`."""
        with files.attempt("complete", self._path):
            os.fsync(self._fd)
            os.rename(self._path, target)
            files.sync_directory(target.parent)
