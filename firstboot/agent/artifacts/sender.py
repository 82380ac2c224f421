"""Upload what is in the spool, oldest first, until it is stored or refused (contract 2.4).

An answer is remembered until the disk shows it, so that a full or read-only disk makes nothing
travel twice. An attempt ends with the first failure that may be everybody's; next time what failed
comes last. What fails again while others pass waits by itself, and holds up nobody.

An attempt is paid for by what it sent: after one that failed with more than 1 MiB sent, nothing
larger than that is sent for a while, whatever the answer was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Callable

from firstboot.agent.artifacts import memory, spool
from firstboot.agent.artifacts.memory import Progress
from firstboot.agent.artifacts.spool import Census, Entry, Refusal
from firstboot.agent.problems import Problem
from firstboot.agent.worker import Context, Work
from firstboot.api.answers import NotThePlane, RequestRefused, check
from firstboot.api.multipart import WrongContent
from firstboot.base import files, log
from firstboot.base.clock import Chance, rng
from firstboot.base.errors import ByteorError, Corrupt, LocalFault, Refused, TryAgain
from firstboot.base.secret import Secret

SCOPE = "agent:artifact_upload"
TOO_LARGE = 413
# With a JSON body: about this artifact, and sending it again changes nothing.
FINAL = (TOO_LARGE, 415, 422)
STRIKES = 2
COSTLY = 1 << 20  # bytes sent in vain
# The pause after the n-th failure ends between half and all of base x 2^n: with full jitter alone
# a third of all hosts would send 63 MiB more than three times in a quarter of an hour.
ALONE_BASE_S, BASE_S_PER_MIB, CAP_S = 30.0, 5.0, 3600.0
PROGRESS_S = 0.5
LONGEST_PERIOD_S = 60.0
SCAN_BYTES = 256 << 10


@dataclass
class Wait:
    """A pause that grows with each failure; `due` is monotonic, `error` the latest failure."""

    error: ByteorError
    due: float = 0.0
    failures: int = 0

    def grow(self, error: ByteorError, base_s: float, now: float, chance: Chance) -> None:
        """Begin the next pause, at least as long as the control plane asked for."""
        ceiling = min(CAP_S, base_s * 2.0 ** min(self.failures, 32))
        asked = error.retry_after if isinstance(error, TryAgain) else None
        pause = max(chance.uniform(ceiling / 2, ceiling), min(asked or 0.0, CAP_S))
        self.error, self.due, self.failures = error, now + pause, self.failures + 1


class Sender(Work):
    """`run_once` uploads what is due; `alive` is told that a long upload makes progress.

    `gives_way`: asked after each upload; True leaves the others to a later attempt.
    """

    def __init__(
        self,
        context: Context,
        alive: Callable[[], None],
        *,
        gives_way: Callable[[], bool] = bool,
        chance: Chance | None = None,
    ) -> None:
        self._gives_way = gives_way
        self._layout, self._handed, self._api = context.layout, context.handed, context.api
        self._who = context.who
        self._clock, self._alive, self._chance = context.clock, alive, chance or rng()
        self._prepared = self._asked = False
        self._sent = 0  # bytes of the latest attempt
        self._status: int | None = None  # of the latest answer
        # Answered, and perhaps still in the spool: the id there, or why it was refused.
        self._stored: dict[str, str] = {}
        self._refused: dict[str, Refusal] = {}
        self._strikes: dict[str, int] = {}
        self._alone: dict[str, Wait] = {}  # what fails by itself
        self._costly: Wait | None = None  # for whatever is large
        self._seen = Census()

    def nudged(self) -> bool:
        """Return True when there is something to send now."""
        try:
            return bool(self._due(spool.ids(self._layout.spool)))
        except LocalFault:
            return True  # the attempt says it

    def run_once(self) -> bool:
        """Upload all that is due, False for nothing; raise what stops it, or still stops it."""
        if not self._prepared:
            self._start()
        self._asked, passed, too_large, fault = False, False, False, None
        names = spool.ids(self._layout.spool)
        for gone in {*self._alone, *self._strikes}.difference(names):
            self._alone.pop(gone, None)
            self._strikes.pop(gone, None)
        for name in self._due(names):
            if passed and self._gives_way():
                break
            if self._is_resting(name):
                continue
            self._sent, self._status = 0, None
            try:
                passed = self._one(name) or passed
            except (TryAgain, Refused) as error:
                alone = self._concerns_it_alone(name, error, passed)
                # What fails by itself again holds up nobody.
                if self._sent > COSTLY and not (alone and name in self._alone):
                    self._costly = self._costly or Wait(error)
                    self._costly.grow(error, self._base_s(), self._clock.monotonic(), self._chance)
                if alone:
                    self._postpone(name, error)
                if not alone or (too_large and self._status == TOO_LARGE):
                    raise  # next time others come first, and tell whose fault it is
                too_large = too_large or self._status == TOO_LARGE
            except LocalFault as error:
                fault = fault or error
        if fault is not None:
            raise fault
        if self._costly is not None and any(map(self._is_resting, spool.ids(self._layout.spool))):
            # It still stands, for this task alone: nothing was asked.
            kind = RequestRefused if isinstance(self._costly.error, Refused) else TryAgain
            raise kind(str(self._costly.error), hint=self._costly.error.hint)
        if self._asked:
            self._api.rest()
        return self._asked

    def problems(self) -> list[Problem]:
        """Return what failed by itself; `problems.of_the_spool` tells of the rest."""
        found = []
        for name, wait in list(self._alone.items()):
            detail = f"artifact {name} fails by itself, and waits: {wait.error}"
            found.append(Problem("artifact_failing", detail, wait.error.hint))
        return found

    def shown(self) -> dict[str, Any]:
        """Return `spool` of `status.json`; counts as last seen where the disk cannot be read."""
        rows: list[dict[str, Any]] = []
        try:
            self._seen = spool.census(self._layout)
            if self._seen.quarantined:
                rows = spool.quarantined(self._layout)
        except LocalFault:
            pass
        return {**vars(self._seen), "quarantine": rows}

    def _due(self, names: list[str]) -> list[str]:
        """Return the oldest first, then what failed, then one that fails by itself.

        For any thread.
        """
        now = self._clock.monotonic()
        alone, strikes = dict(self._alone), dict(self._strikes)
        again = [name for name in names if name in alone and alone[name].due <= now]
        others = [name for name in names if name not in alone and not self._is_resting(name)]
        return [
            *sorted(others, key=lambda name: strikes.get(name, 0)),
            *sorted(again, key=lambda name: alone[name].due)[:1],
        ]

    def _is_resting(self, name: str) -> bool:
        """Return True for a large artifact while none may be sent; one that is answered may go."""
        costly = self._costly
        if costly is None or costly.due <= self._clock.monotonic() or name in self._alone:
            return False
        is_answered = name in self._stored or name in self._refused
        return not is_answered and spool.size_of(self._layout.spool / name) > COSTLY

    def _base_s(self) -> float:
        return BASE_S_PER_MIB * max(1, self._sent >> 20)

    def _start(self) -> None:
        spool.recover(self._layout)
        spool.belong_to(
            self._layout, agent_id=self._handed.agent_id, api_base_url=self._handed.api_base_url
        )
        try:
            # A crash between the answer and the removal.
            rows = memory.read(self._layout).values()
            self._stored = {row.id: row.artifact_id for row in rows}
        except Corrupt as error:
            log.warning(str(error), hint=error.hint)
        self._prepared = True

    def _one(self, name: str) -> bool:
        """Bring one artifact to its end; True when the control plane took it."""
        if name not in self._stored and name not in self._refused:
            try:
                entry = spool.load(self._layout.spool / name)
                if entry is None:
                    return False  # it went
                self._send(entry)
            except Corrupt as error:
                self._refuse(name, Refusal(code="damaged", detail=str(error)))
            except LocalFault as error:
                self._postpone(name, error)
                return False
        self._strikes.pop(name, None)
        self._alone.pop(name, None)
        if name in self._refused:
            spool.quarantine(self._layout, name, self._refused[name])
            del self._refused[name]
            return False
        if self._sent > COSTLY:
            self._costly = None
        spool.drop(self._layout, name)
        del self._stored[name]
        return True

    def _send(self, entry: Entry) -> None:
        """Make one request; its final answer is in `_stored` or `_refused` afterwards."""
        self._status = None
        fd = _open(entry)
        try:
            if holds(fd, self._handed.api_key):
                # Redaction knows forms, and the key only where root hands in: this is the last net.
                detail = "it holds this host's own runtime key, and is not sent"
                self._refuse(entry.id, Refusal(code="holds_runtime_key", detail=detail))
                return
            self._asked = True
            self._alive()  # the way there takes up to a minute, as the answer before did
            answer = self._api.upload_artifact(
                *self._who, entry.metadata, fd, each=self._progress(entry)
            )
        finally:
            os.close(fd)
            if self._sent >= COSTLY:
                memory.show(self._layout, None)
        self._status = answer.status
        if answer.status in FINAL and answer.is_json:
            code, said = None, None
            if answer.problem is not None:
                code, said = answer.problem.code, answer.problem.said()
            self._refuse(entry.id, Refusal(status=answer.status, code=code, detail=said))
            return
        check(answer, doing="artifact upload", scope=SCOPE)
        if answer.artifact is None:
            said = answer.complaint or f"{answer.status} without a body"
            raise TryAgain(f"artifact upload: the answer is not complete: {said}")
        self._stored[entry.id] = answer.artifact.artifact_id
        log.notice(
            "artifact uploaded",
            id=entry.id,
            artifact_id=answer.artifact.artifact_id,
            bytes=entry.metadata.size,
        )
        try:
            memory.remember(self._layout, entry.id, entry.metadata, self._stored[entry.id])
        except LocalFault as error:
            log.warning(f"an upload is not remembered: {error}", hint=error.hint)

    def _progress(self, entry: Entry) -> Callable[[int], None]:
        """Return what feeds the watchdog during a long upload, and shows how far it is."""
        shown_at = float("-inf")

        def each(sent: int) -> None:
            nonlocal shown_at
            self._alive()
            self._sent, now = sent, self._clock.monotonic()
            # What is smaller is there before anybody looks.
            if entry.metadata.size >= COSTLY and now >= shown_at + PROGRESS_S:
                shown_at = now
                memory.show(self._layout, Progress(entry.id, sent, entry.metadata.size))

        return each

    def _refuse(self, name: str, why: Refusal) -> None:
        self._refused[name] = why
        log.warning(
            f"artifact {name} goes to quarantine",
            status=why.status,
            detail=why.detail or why.code,
            hint=f"byteor-agent retry {name}",
        )

    def _concerns_it_alone(self, name: str, error: ByteorError, passed: bool) -> bool:
        """Return True when the failure is likely to be this artifact's own.

        It is, if it is too large for something on the way; or if it was sent, failed before, others
        pass, and it is not that uploads lack something.
        """
        if self._status == TOO_LARGE:
            return True
        unsent = isinstance(error, TryAgain) and not error.maybe_arrived
        if unsent or (self._status in (403, 429) and not isinstance(error, NotThePlane)):
            return False
        self._strikes[name] = self._strikes.get(name, 0) + 1
        return passed and self._strikes[name] >= STRIKES

    def _postpone(self, name: str, error: ByteorError) -> None:
        wait = self._alone.setdefault(name, Wait(error))
        base_s = max(ALONE_BASE_S, self._base_s())
        wait.grow(error, base_s, self._clock.monotonic(), self._chance)


def _open(entry: Entry) -> int:
    try:
        fd = os.open(entry.data, files.READ)
    except OSError as error:
        raise WrongContent(
            f"{entry.data} cannot be read: {os.strerror(error.errno or 0).lower()}"
        ) from error
    if os.fstat(fd).st_size != entry.metadata.size:
        os.close(fd)
        raise WrongContent(f"{entry.data} is not as long as it was")
    return fd


def holds(fd: int, secret: Secret) -> bool:
    """Search the bytes of an open file for `secret`; WrongContent when they cannot be read.

    What is packed or encoded is not looked into.
    """
    needle, offset, tail = secret.reveal().encode(), 0, b""
    while True:
        try:
            piece = os.pread(fd, SCAN_BYTES, offset)
        except OSError as error:
            # Not an OSError: a bad sector under one artifact must not end the loop.
            reason = os.strerror(error.errno or 0).lower()
            raise WrongContent(f"the artifact cannot be read: {reason}") from error
        if not piece or needle in tail + piece:
            return bool(piece)
        offset, tail = offset + len(piece), piece[-len(needle) :]
