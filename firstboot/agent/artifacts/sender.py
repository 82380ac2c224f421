"""Uploads what is in the spool: oldest first, one at a time, until the plane has it or refuses it for good (contract 2.4).

What the plane answered stays known until the disk shows it, so that a full or read-only disk makes nothing travel twice.
Whoever failed comes after those that did not, and an attempt ends with the first failure that may be everybody's. One that
fails again while others pass fails by itself: it waits, ever longer, and holds up nobody.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Callable

from firstboot.agent.artifacts import spool, stock
from firstboot.agent.artifacts.ownkey import holds
from firstboot.agent.artifacts.stock import Census, Entry
from firstboot.agent.problems import Problem
from firstboot.api.answers import NotThePlane, RequestRefused, check
from firstboot.api.client import PlaneApi
from firstboot.api.messages import HeartbeatReply
from firstboot.api.multipart import WrongContent
from firstboot.base import files, log
from firstboot.base.clock import Backoff, Clock, rng
from firstboot.base.errors import ByteorError, Corrupt, LocalFault, TryAgain
from firstboot.base.layout import Layout
from firstboot.exchange.handover import Handover

SCOPE = "agent:artifact_upload"
# With a JSON body: the plane's word on this artifact, which sending it again does not change.
FINAL = (413, 415, 422)
STRIKES = 2
LATER_BASE_S, LATER_CAP_S = 30.0, 900.0
PROGRESS_S, PROGRESS_FROM = 0.5, 1 << 20  # bytes: what is smaller is there before anybody looks
LONGEST_PERIOD_S = 60.0


@dataclass
class _Late:
    """An artifact that fails by itself."""

    backoff: Backoff
    due: float  # monotonic
    said: str


class ArtifactsLoop:
    """`run_once` uploads what is due; `alive` is told that a long upload makes progress."""

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        api: PlaneApi,
        *,
        clock: Clock,
        alive: Callable[[], None],
    ) -> None:
        self._layout, self._handed, self._api, self._clock, self._alive = (
            layout,
            handed,
            api,
            clock,
            alive,
        )
        self._chance = rng()
        self._prepared = self._asked = False
        self._status: int | None = None  # of the latest answer
        # Answered by the plane, and perhaps still in the spool: the id there, or why it was refused.
        self._stored: dict[str, str] = {}
        self._refused: dict[str, dict[str, Any]] = {}
        self._strikes: dict[str, int] = {}
        self._late: dict[str, _Late] = {}
        self._seen = Census()

    def nudged(self) -> bool:
        """Whether there is anything to send now."""
        try:
            return bool(self._due())
        except LocalFault:
            return True  # the attempt says it

    def run_once(self) -> bool:
        """Upload all that is due, False for nothing; raise what stops it: TryAgain, or what `answers.check` raises."""
        if not self._prepared:
            self._start()
        self._asked = False
        passed, fault = False, None
        for gone in {*self._late, *self._strikes}.difference(stock.ids(self._layout.spool)):
            self._late.pop(gone, None)
            self._strikes.pop(gone, None)
        for name in self._due():
            try:
                passed = self._one(name) or passed
            except (TryAgain, RequestRefused) as error:
                if not self._by_itself(name, error) or not passed:
                    raise  # next time others come first, and tell whose fault it is
                self._postpone(name, error)
            except LocalFault as error:
                fault = fault or error
        if fault is not None:
            raise fault
        if self._asked:
            self._api.rest()
        return self._asked

    def problems(self) -> list[Problem]:
        """What failed by itself, and a spool that takes nothing more."""
        found = []
        for name, late in list(self._late.items()):
            detail = f"artifact {name} fails by itself, and waits: {late.said}"
            found.append(Problem("artifact_failing", detail, "it is tried again, ever more rarely"))
        there = self._census()
        if there.quarantined:
            detail = f"the plane refused {there.quarantined} artifact{'s' if there.quarantined > 1 else ''}, kept in quarantine"
            found.append(
                Problem(
                    "artifact_quarantined",
                    detail,
                    "byteor-agent status says why; retry ID, or remove them",
                )
            )
        if not there.room_for(1):
            found.append(
                Problem(
                    "spool_full",
                    "the spool is full: new artifacts are refused",
                    "byteor-agent status",
                )
            )
        return found

    def shown(self) -> dict[str, Any]:
        """Return `spool` of `status.json`."""
        there = self._census()
        try:
            rows = stock.quarantined(self._layout) if there.quarantined else []
        except LocalFault:
            rows = []
        return {
            "pending": there.pending,
            "quarantined": there.quarantined,
            "bytes": there.bytes,
            "quarantine": rows,
        }

    def hinted(self, hints: HeartbeatReply) -> bool:
        """No hint of the plane concerns artifacts."""
        return False

    def _census(self) -> Census:
        """As it was last seen where the disk cannot be read: whoever shows it must not end by that."""
        try:
            self._seen = stock.census(self._layout)
        except LocalFault:
            pass
        return self._seen

    def _due(self) -> list[str]:
        """Oldest first, after it what failed; last one of those that fail by themselves, however many. For any thread."""
        names, now = stock.ids(self._layout.spool), self._clock.monotonic()
        late, strikes = dict(self._late), dict(self._strikes)
        again = sorted(
            (name for name in names if name in late and late[name].due <= now),
            key=lambda name: late[name].due,
        )
        return (
            sorted(
                (name for name in names if name not in late), key=lambda name: strikes.get(name, 0)
            )
            + again[:1]
        )

    def _start(self) -> None:
        spool.recover(self._layout)
        spool.belong_to(
            self._layout, agent_id=self._handed.agent_id, api_base_url=self._handed.api_base_url
        )
        try:
            # A crash between the plane's word and the removal.
            self._stored = {row.id: row.artifact_id for row in stock.uploaded(self._layout)}
        except Corrupt as error:
            log.warning(str(error))
        self._prepared = True

    def _one(self, name: str) -> bool:
        """Bring one artifact to its end; True when the plane took it."""
        if name not in self._stored and name not in self._refused:
            try:
                entry = self._load(name)
                if entry is None:
                    return False
                self._send(entry)
            except Corrupt as error:
                self._refuse(name, None, "damaged", str(error))
        self._strikes.pop(name, None)
        self._late.pop(name, None)
        if name in self._refused:
            spool.quarantine(self._layout, name, self._refused[name])
            del self._refused[name]
            return False
        spool.drop(self._layout, name)
        del self._stored[name]
        return True

    def _load(self, name: str) -> Entry | None:
        """Read what is said of it; None for one that went, or that this user may not read."""
        try:
            return stock.load(self._layout.spool / name)
        except Corrupt:
            raise
        except LocalFault as error:
            self._postpone(name, error)
            return None

    def _send(self, entry: Entry) -> None:
        """One request; what the plane says for good is in `_stored` or `_refused` afterwards."""
        self._status = None
        fd = _open(entry)
        try:
            if holds(fd, self._handed.api_key):
                # Redaction knows shapes, and the key itself only where root hands in: this net is the last, for all kinds.
                self._refuse(
                    entry.id,
                    None,
                    "holds_runtime_key",
                    "it holds this host's own runtime key, and is not sent",
                )
                return
            self._asked = True
            answer = self._api.upload_artifact(
                self._handed.agent_id,
                self._handed.api_key,
                entry.metadata,
                fd,
                each=_Progress(self, entry),
            )
        finally:
            os.close(fd)
        self._status = answer.status
        if answer.status in FINAL and answer.is_json:
            problem = answer.problem
            self._refuse(
                entry.id,
                answer.status,
                problem.code if problem else None,
                problem.said() if problem else None,
            )
            return
        check(answer, doing="artifact upload", scope=SCOPE)
        if answer.artifact is None:
            raise TryAgain(
                f"artifact upload: {answer.complaint or f'the plane answered {answer.status} without a word'}"
            )
        self._stored[entry.id] = answer.artifact.artifact_id
        log.notice(
            "artifact uploaded",
            id=entry.id,
            artifact_id=answer.artifact.artifact_id,
            bytes=entry.metadata.size,
        )
        try:
            spool.remember(self._layout, entry, answer.artifact.artifact_id)
        except LocalFault as error:
            log.warning(f"an upload is not remembered: {error}", hint=error.hint)

    def _refuse(self, name: str, status: int | None, code: str | None, detail: str | None) -> None:
        self._refused[name] = {"status": status, "code": code, "detail": detail}
        log.warning(
            f"artifact {name} goes to quarantine",
            status=status,
            detail=detail,
            hint=f"byteor-agent retry {name}",
        )

    def _by_itself(self, name: str, error: ByteorError) -> bool:
        """Whether it may be this artifact's fault: it failed before, was sent, and it is not that uploads lack something."""
        unsent = isinstance(error, TryAgain) and not error.maybe_arrived
        if unsent or (self._status in (403, 429) and not isinstance(error, NotThePlane)):
            return False
        self._strikes[name] = self._strikes.get(name, 0) + 1
        return self._strikes[name] >= STRIKES

    def _postpone(self, name: str, error: ByteorError) -> None:
        late = self._late.setdefault(name, _Late(Backoff(LATER_BASE_S, LATER_CAP_S), 0.0, ""))
        late.said = str(error)
        asked = error.retry_after if isinstance(error, TryAgain) else None
        late.due = self._clock.monotonic() + late.backoff.next_delay(self._chance, asked)


class _Progress:
    """Keeps the watchdog fed during a long upload, and shows `upload --wait` how far it is."""

    def __init__(self, loop: ArtifactsLoop, entry: Entry) -> None:
        self._loop, self._entry = loop, entry
        self._written = float("-inf")

    def __call__(self, sent: int) -> None:
        loop, now = self._loop, self._loop._clock.monotonic()
        loop._alive()
        if self._entry.metadata.size < PROGRESS_FROM or now < self._written + PROGRESS_S:
            return
        self._written = now
        document = {"v": 1, "id": self._entry.id, "sent": sent, "size": self._entry.metadata.size}
        try:
            files.write_json(loop._layout.upload_progress, document, mode=0o644, durable=False)
        except LocalFault:
            pass  # a full /run must not stop an upload


def _open(entry: Entry) -> int:
    try:
        fd = os.open(entry.data, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise WrongContent(
            f"{entry.data} cannot be read: {os.strerror(error.errno or 0).lower()}"
        ) from error
    if os.fstat(fd).st_size != entry.metadata.size:
        os.close(fd)
        raise WrongContent(f"{entry.data} is not as long as it was")
    return fd
