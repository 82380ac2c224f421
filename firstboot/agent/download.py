"""One bundle, fetched: room first, then its bytes, hashed as they are written, over as many attempts as it takes.

    bundle.json    which bundle `bundle.part` is to become, and the tag that its bytes came with
    bundle.part    what is there of it; the next attempt goes on at its end
    DIGEST.bundle  all of it: renamed when it is durable, under the digest that was signed

Whole means: as many bytes as were signed, with their hash. What comes whole and wrong is fetched once more from its first
byte; the second time it is handed on all the same, since refusing it is the activator's to do (and to report).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

from firstboot.agent.partial import Partial
from firstboot.api.answers import check
from firstboot.api.bundles import Coming, StartOver
from firstboot.api.client import Answer, PlaneApi
from firstboot.base import files
from firstboot.base.clock import Clock
from firstboot.base.errors import Corrupt, LocalFault, TryAgain
from firstboot.base.layout import BUNDLE, Layout
from firstboot.exchange.handover import Handover
from firstboot.exchange.verdicts import Wanted

DOING = "bundle"
# On the disk beside the bundle itself: the activator's own copy, and a guess at what comes out of it (a gzip'd tar of
# programs takes three times its packed size; the activator looks for itself).
COPIES, UNPACKED = 1, 3
RESERVE_BYTES = 32 << 20
PUBLISH_S = 5.0
MIB = 1 << 20
NO_CEILING = 1 << 62  # the bytes are counted here


class GaveWay(Exception):
    """What was being fetched is no longer the newest."""


class Download:
    """`bring` makes one attempt; for one thread. `shown` is for any."""

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        api: PlaneApi,
        *,
        alive: Callable[[], None],
        changed: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._handed, self._api, self._clock = handed, api, clock
        self._alive, self._changed = alive, changed
        self._inbox = layout.inbox
        self._part, self._record = layout.inbox / "bundle.part", layout.inbox / "bundle.json"
        self._progress: dict[str, Any] | None = None
        self._published_at = 0.0
        # Whose first byte this process wrote: what was there before may have been through a power cut.
        self._own: str | None = None
        self._wrong: str | None = None
        self._giving_way = False
        self.gained = 0

    def shown(self) -> dict[str, Any] | None:
        """The bundle that is on its way: `deployment_id`, `bytes`, `size`; else None."""
        return self._progress

    def give_way(self) -> None:
        """Stop after the piece that is coming: there is something newer. For any thread."""
        self._giving_way = True

    def is_here(self, wanted: Wanted) -> bool:
        """Whether its bundle was brought."""
        return os.path.lexists(self._bundle(wanted))

    def tidy(self, wanted: Wanted | None) -> None:
        """Remove what nobody wants any more."""
        for path in self._brought():
            if wanted is None or path != self._bundle(wanted):
                files.remove(path)
        if wanted is None or not self._recorded(wanted)[0]:
            self._progress = None
            files.remove(self._part)
            files.remove(self._record)

    def bring(self, wanted: Wanted) -> None:
        """One attempt; returns when the bundle is there. GaveWay, TryAgain, LocalFault and what `answers.check` raises.

        What came before it raised is kept; `gained` says how much that was.
        """
        self.tidy(wanted)
        self._giving_way = False
        same, tag = self._recorded(wanted)
        if not same:
            self._record_now(wanted, None)
        with Partial(self._part, alive=self._alive) as part:
            part.take_up()
            if part.size > wanted.size or (tag is None and part.size < wanted.size):
                part.start_over()
            before, self.gained = part.size, 0
            if part.size < wanted.size:
                self._require_room(wanted, part.size)
                try:
                    self._fetch(wanted, part, tag)
                finally:
                    self.gained = part.size - before
            self._judge(wanted, part)
            part.complete(self._bundle(wanted))
        files.remove(self._record)
        self._progress = None

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
                    raise TryAgain(f"{DOING}: the plane answered {answer.status} without a bundle")
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
            if self._giving_way:
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
        """Whether what is there was begun for these bytes, and the tag that it came with."""
        try:
            stored = files.read_json(self._record) or {}
        except Corrupt:
            stored = {}
        same = (stored.get("sha256"), stored.get("size")) == (wanted.sha256, wanted.size)
        tag = stored.get("etag")
        return same, tag if same and isinstance(tag, str) else None

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
        self._progress = {
            "deployment_id": wanted.deployment_id,
            "bytes": min(size, wanted.size),
            "size": wanted.size,
        }
        now = self._clock.monotonic()
        if at_once or now - self._published_at >= PUBLISH_S:
            self._published_at = now
            self._changed()
