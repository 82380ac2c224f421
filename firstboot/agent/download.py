"""Fetch one bundle: room first, then its bytes, hashed as they are written, over many attempts.

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
from typing import Any, Callable, NoReturn, Optional

from firstboot.agent.schedule import Ask, Schedule
from firstboot.agent.worker import Work
from firstboot.api.answers import check
from firstboot.api.bundles import Coming, StartOver
from firstboot.api.client import Answer, PlaneApi
from firstboot.base import documents, files
from firstboot.base.clock import Clock
from firstboot.base.documents import lenient
from firstboot.base.errors import Corrupt, LocalFault, TryAgain
from firstboot.base.layout import BUNDLE, PARTIAL, PARTIAL_RECORD, Layout
from firstboot.exchange.handover import Handover
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
# An attempt that brought so much was no failure, however it ended: the next one comes soon.
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


class Download(Work):
    """Bring the bundle that was last wanted; `run_once` for one thread, the rest for any.

    `wake` makes the transfer thread run it, `brought` is called when the bundle is there.
    """

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        api: PlaneApi,
        *,
        schedule: Schedule,
        alive: Callable[[], None],
        changed: Callable[[], None],
        wake: Callable[[Ask], None],
        brought: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._handed, self._api, self._clock = handed, api, clock
        self._alive, self._changed, self._wake, self._tell = alive, changed, wake, brought
        self.schedule = schedule
        self._inbox = layout.inbox
        self._part, self._record = layout.inbox / PARTIAL, layout.inbox / PARTIAL_RECORD
        self._told = False
        self._wanted: Wanted | None = None
        # The bundle on its way: `deployment_id`, `bytes`, `size`.
        self.progress: dict[str, Any] | None = None
        self._published_at = 0.0
        # The bundle whose first byte this process wrote: what was there before may have been
        # through a power cut.
        self._own: str | None = None
        self._wrong: str | None = None
        self.gained = 0

    def want(self, wanted: Wanted | None) -> None:
        """Make `wanted` the bundle to bring, None for none; another one under way is given up."""
        changed = not self._told or wanted != self._wanted
        self._told, self._wanted = True, wanted
        if changed:
            self._wake(Ask.ANEW)
        elif wanted is not None and not self.is_here(wanted):
            self._wake(Ask.HINT)  # a failed attempt keeps its pause

    def is_here(self, wanted: Wanted) -> bool:
        """Return True when its bundle was brought."""
        return os.path.lexists(self._bundle(wanted))

    def run_once(self) -> bool:
        """Make one attempt at what is wanted; False when there is nothing to bring.

        What came before it raised is kept; `gained` says how much that was.
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
        except TryAgain:
            if self.gained >= WORTH_BYTES:
                self.schedule.failures = 0
            raise
        finally:
            self._api.rest()
        self._tell()
        return True

    def _tidy(self, wanted: Wanted | None) -> None:
        """Remove what nobody wants any more."""
        for path in self._brought():
            if wanted is None or path != self._bundle(wanted):
                files.remove(path)
        if wanted is None or not self._recorded(wanted)[0]:
            self.progress = None
            files.remove(self._part)
            files.remove(self._record)

    def _bring(self, wanted: Wanted) -> None:
        self.gained = 0
        same, tag = self._recorded(wanted)
        if not same:
            self._record_now(wanted, None)
        with Partial(self._part, alive=self._alive) as part:
            part.take_up()
            if part.size > wanted.size or (tag is None and part.size < wanted.size):
                part.start_over()
            before = part.size
            if part.size < wanted.size:
                self._require_room(wanted, part.size)
                try:
                    self._fetch(wanted, part, tag)
                finally:
                    self.gained = part.size - before
            self._judge(wanted, part)
            part.complete(self._bundle(wanted))
        files.remove(self._record)
        self.progress = None

    def _bundle(self, wanted: Wanted) -> Path:
        return self._inbox / f"{wanted.sha256}{BUNDLE}"

    def _brought(self) -> list[Path]:
        try:
            return [path for path in self._inbox.iterdir() if path.name.endswith(BUNDLE)]
        except FileNotFoundError:
            return []
        except OSError as error:
            files.fail("list", self._inbox, error)

    def _fetch(self, wanted: Wanted, part: Partial, tag: str | None) -> None:
        self._show(wanted, part.size, at_once=True)
        coming = self._api.bundle(
            self._handed.agent_id,
            self._handed.api_key,
            wanted.deployment_id,
            have=part.size,
            tag=tag,
            size=wanted.size,
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

    def _take(self, wanted: Wanted, part: Partial, coming: Coming) -> None:
        """Write what comes, and at most one byte more than was signed: it proves that theirs is longer."""
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
        """Return if it is what was signed, or if it was wrong before as well; else throw it away."""
        if part.size == wanted.size and part.digest.hexdigest() == wanted.sha256:
            self._wrong = None
            return
        if self._wrong == wanted.sha256:
            return
        if self._own == wanted.sha256:
            self._wrong = wanted.sha256
        part.start_over()
        raise TryAgain(
            f"{DOING}: what came is not the bundle that was signed; it is fetched once more",
            hint="a mirror or an object store that changes files does this",
        )

    def _require_room(self, wanted: Wanted, have: int) -> None:
        needed = wanted.size - have + (COPIES + UNPACKED) * wanted.size + RESERVE_BYTES
        try:
            facts = os.statvfs(self._inbox)
        except OSError as error:
            files.fail("look at the room in", self._inbox, error)
        free = facts.f_bavail * facts.f_frsize
        if free < needed:
            raise LocalFault(
                f"no room for the bundle of {wanted.deployment_id}: {free // MIB} MiB are free and it takes {needed // MIB}",
                hint=f"free {(needed - free) // MIB + 1} MiB on the disk of {self._inbox}",
            )

    def _recorded(self, wanted: Wanted) -> tuple[bool, str | None]:
        """Return whether what is there was begun for these bytes, and the tag that it came with."""
        try:
            stored = documents.read(self._record, _Record) or _Record()
        except Corrupt:
            stored = _Record()
        same = (stored.sha256, stored.size) == (wanted.sha256, wanted.size)
        return same, stored.etag if same else None

    def _record_now(self, wanted: Wanted, tag: str | None) -> None:
        document = {
            "v": 1,
            "deployment_id": wanted.deployment_id,
            "sha256": wanted.sha256,
            "size": wanted.size,
            "etag": tag,
        }
        files.write_json(self._record, document)

    def _show(self, wanted: Wanted, size: int, *, at_once: bool = False) -> None:
        self.progress = {
            "deployment_id": wanted.deployment_id,
            "bytes": min(size, wanted.size),
            "size": wanted.size,
        }
        now = self._clock.monotonic()
        if at_once or now - self._published_at >= PUBLISH_S:
            self._published_at = now
            self._changed()


class Partial:
    """A file that grows over many attempts, hashed as it grows; private, closed by the ``with``.

    `size` bytes are there, `digest` is theirs. `alive` is called after each block. OSErrors become
    LocalFault.
    """

    def __init__(self, path: Path, *, alive: Callable[[], None]) -> None:
        self._path, self._alive = path, alive
        self._fd = self._open()
        self.size, self.digest = 0, hashlib.sha256()
        self._synced = 0

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            self._fail("open", error)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Corrupt(f"{self._path} is not a regular file")
        return fd

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def take_up(self) -> None:
        """Hash what is there, so that writing goes on at its end."""
        try:
            while True:
                block = os.pread(self._fd, BLOCK_BYTES, self.size)
                if not block:
                    break
                self.digest.update(block)
                self.size += len(block)
                self._alive()
        except OSError as error:
            self._fail("read", error)
        self._synced = self.size

    def start_over(self) -> None:
        """Forget what is there."""
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            self._fail("empty", error)
        self.size, self._synced, self.digest = 0, 0, hashlib.sha256()

    def add(self, piece: bytes) -> None:
        """Write at the end."""
        left = memoryview(piece)
        try:
            while left:
                written = os.pwrite(self._fd, left, self.size)
                self.digest.update(left[:written])
                self.size += written
                left = left[written:]
            if self.size - self._synced >= SYNC_BYTES:
                os.fdatasync(self._fd)
                self._synced = self.size
        except OSError as error:
            self._fail("write", error)
        self._alive()

    def complete(self, target: Path) -> None:
        """Make it durable and rename it to `target`."""
        try:
            os.fsync(self._fd)
            os.rename(self._path, target)
            files.sync_directory(target.parent)
        except OSError as error:
            self._fail("complete", error)

    def _fail(self, doing: str, error: OSError) -> NoReturn:
        files.fail(doing, self._path, error)
