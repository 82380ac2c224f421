"""One run of the activator: finish what was interrupted, take key sets, judge, activate.

    journal.json                                     finish it (`switch`)
    a request that was not answered, or a retry      take key sets; then, of the envelope:
      none, any more                                 nothing is awaited
      not signed, not for us, replayed, expired …    refused
      no trusted clock, or not due yet               waiting
      its payload was dealt with                     nothing
      its bundle is not here                         wanted: the agent is to fetch it
      the bundle is not what was signed              refused
      the disk cannot hold it                        failed, no_room: tried again when it can
      else                                           unpack, complete, `switch`

Facts are read again after each step, so that a request which came meanwhile is answered by the same
run. The agent may be an attacker: its inbox only ever offers, and what it offers is judged by keys,
numbers and clocks of root's own.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import Callable

from firstboot.activate import directories, journal, keyring, replay, staging, switch
from firstboot.activate.admission import EXPIRED, Deployment, Untimely, admit, wanted
from firstboot.activate.chain import Ring
from firstboot.activate.gate import Runtime
from firstboot.activate.intake import Inbox
from firstboot.base import files, log, systemd, trees
from firstboot.base.clock import Clock, monotonic, rfc3339
from firstboot.base.errors import Corrupt, NoRoom, TryAgain, Untrusted
from firstboot.base.layout import SPEC, Layout
from firstboot.exchange import faults, outcomes, verdicts
from firstboot.exchange.inbox import Request
from firstboot.exchange.settings import Settings
from firstboot.exchange.verdicts import Answered, Record, Row

UNIT = "byteor-activate.service"
LOCK_WAIT_S = 600.0  # another activator may be gating
POLL_S = 5.0
AT_ONCE = 8  # rounds; what is left is asked for again
CLOCK_TOLERANCE_S = 300.0  # contract 3
SYNCHRONIZED = "/run/systemd/timesync/synchronized"  # made by systemd-timesyncd


def run(layout: Layout, settings: Callable[[], Settings]) -> int:
    """Do what ``byteor-agent activate`` does; 0 also for what is refused.

    LocalFault when this host cannot do its part; that is noted for others to show.
    """
    clock = Clock()
    if systemd.inside(UNIT):
        _pause(layout, clock)
    with faults.noted(layout, clock):
        files.make_directory(layout.activation, 0o755)
        files.make_directory(layout.outcomes, 0o750)
        files.make_directory(layout.deployments, 0o755)
        with locked(layout):
            Activator(layout, settings(), clock).work()
    return 0


def _pause(layout: Layout, clock: Clock) -> None:
    """Let the pause pass that a fault makes due; a retry, or a run by hand that went well, ends it.

    In here, since systemd's own pauses between restarts do not grow before version 254.
    """
    end = monotonic() + faults.pause_s(layout, clock.wall())
    while monotonic() < end and faults.pause_s(layout, clock.wall()):
        if layout.retry.exists():
            return
        Event().wait(min(POLL_S, end - monotonic()))


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the activation directory's lock; TryAgain (exit 6) when another activator keeps it."""
    busy = TryAgain("another activation is in progress", hint="byteor-agent deployments shows it")
    with files.locked(layout.activation_lock, wait_s=LOCK_WAIT_S, busy=lambda: busy):
        yield


@dataclass
class Activator:
    """The facts of this run that do not change."""

    layout: Layout
    settings: Settings
    clock: Clock

    def work(self) -> None:
        """Go on until nothing is left to do."""
        runtime = Runtime.configured(self.layout, self.settings.activation)
        switching = switch.Switch(self.layout, runtime, self.clock)
        staging.clear(self.layout)  # what a kill left
        for _ in range(AT_ONCE):
            begun, again = journal.load(self.layout), journal.asked_again(self.layout)
            if begun is not None:
                # This is the try that was asked for, if one was.
                journal.forget_asking(self.layout, begun.target.payload_sha256)
                switching.finish(begun)
                continue
            with Inbox(self.layout) as inbox:
                request = inbox.request()
                answered = verdicts.load(self.layout).answered.request
                if request.request in (None, answered) and again is None:
                    break
                waits = self._answer(inbox, request, again)
            if waits:
                if again is not None and journal.asked_again(self.layout) == again:
                    break  # for a clock, a bundle or room: that is the agent's to see to
            else:
                journal.forget_asking(self.layout, again)
        with log.warned():
            outcomes.prune(self.layout)
        if not (self.layout.is_host and systemd.booted()):
            link_spec(self.layout)

    def _answer(self, inbox: Inbox, request: Request, again: str | None) -> bool:
        """Answer one request; True when the envelope waits for something.

        Key sets first, since the envelope may be signed by a new key.
        """
        record = verdicts.load(self.layout)
        if directories.named(self.layout) != record.directory:
            # Somebody moved the link: say what is true.
            record = replace(record, current=directories.in_force(self.layout, state="active"))
        now = self._trusted_now(request)
        # The time first: an answer that comes in between is looked at once more.
        fetched_at = inbox.keysets_stamp()
        offered, raw = _unless_damaged(inbox.keysets), _unless_damaged(inbox.envelope)
        if offered is not None:
            keyring.offer(self.layout, self.settings, offered, fetched_at=fetched_at, now=now)
        digest = hashlib.sha256(raw).hexdigest() if raw is not None else None
        record = replace(record, answered=Answered(request.request, digest))
        if raw is None:
            verdicts.save(self.layout, replace(record, wanted=None))
            return False
        return self._judge(inbox, raw, record, now=now, again=again)

    def _judge(
        self, inbox: Inbox, raw: bytes, record: Record, *, now: float | None, again: str | None
    ) -> bool:
        """Decide about the envelope that is in the inbox, and record it; True when it waits."""
        place = keyring.place_of(self.settings)
        known = record.of_envelope(record.answered.envelope_sha256)
        highest = replay.load(self.layout, place)
        if (
            known is not None
            and highest is not None
            and known.payload_sha256 == highest.payload_sha256
            and self._is_settled(known, again)
        ):
            # The newest, dealt with when it was new: later ends of keys and times undo nothing.
            verdicts.save(self.layout, _without_bundle(record, known))
            return False
        ring = keyring.current(self.layout, self.settings)
        row = Row(
            verdicts.REFUSED,
            rfc3339(self.clock.wall()),
            envelope_sha256=record.answered.envelope_sha256,
            keys_version=ring.version,
        )
        try:
            deployment = admit(raw, ring=ring, place=place, highest=highest, now=now)
        except (Untimely, Untrusted) as error:
            return self._not_admitted(record, error, row, again)
        replay.raise_to(self.layout, deployment)
        row = replace(row, **deployment.facts)
        if self._was_settled(record, deployment, row, again):
            return False
        assert now is not None  # else it was not admitted
        return self._begin(inbox, record, deployment, row, ring, now)

    def _is_settled(self, row: Row, again: str | None) -> bool:
        """Return True when nothing is to be tried any more for the payload of this verdict."""
        if row.payload_sha256 in (None, again):
            return False
        if row.code != verdicts.NO_ROOM or row.due is None:
            return True
        if faults.left_s(row.due, self.clock.wall()):
            return True
        return trees.free_bytes(self.layout.deployments) < (row.needed or 0)

    def _was_settled(
        self, record: Record, deployment: Deployment, row: Row, again: str | None
    ) -> bool:
        """Record a payload that was dealt with, and came in another envelope, signed anew."""
        before = record.of_payload(deployment.payload_sha256)
        if before is None or not self._is_settled(before, again):
            return False
        self._save(record, replace(before, envelope_sha256=row.envelope_sha256, at=row.at))
        return True

    def _not_admitted(
        self, record: Record, error: Untimely | Untrusted, row: Row, again: str | None
    ) -> bool:
        deployment: Deployment | None = getattr(error, "deployment", None)
        waits, due = isinstance(error, Untimely), getattr(error, "due", None)
        if deployment is not None:
            is_late = waits or error.code == EXPIRED
            # Dealt with when its time was; what is active stays active.
            if is_late and self._was_settled(record, deployment, row, again):
                return False
            # Without the payload's hash: nothing was tried that would have to be remembered.
            row = replace(row, **{**deployment.facts, "payload_sha256": None})
        if not waits:
            log.warning(f"a deployment is refused: {error.code}: {error}")
        verdict = verdicts.WAITING if waits else verdicts.REFUSED
        row = replace(row, verdict=verdict, code=error.code, reason=str(error), due=due)
        self._save(record, row)
        return waits

    def _begin(
        self, inbox: Inbox, record: Record, deployment: Deployment, row: Row, ring: Ring, now: float
    ) -> bool:
        """Prepare the directory and begin the activation; True when it waits for bundle or room."""
        trees.require_link(self.layout.current)
        name = directories.chosen(self.layout, deployment)
        try:
            if not staging.prepare(self.layout, inbox, deployment, name=name, ring=ring, now=now):
                verdicts.save(self.layout, replace(record, wanted=wanted(deployment)))
                return True
            journal.reserve(self.layout)
        except Untrusted as error:
            log.warning(f"deployment {name} is refused: {error.code}: {error}")
            self._tell(deployment, error.code)
            self._save(record, replace(row, code=error.code, reason=str(error)))
            return False
        except NoRoom as error:
            self._no_room(record, deployment, row, error.needed)
            return False
        # What was healthy last, if this one is active already: a run lost its journal then.
        active = directories.named(self.layout)
        previous = record.directory if active == name else active
        target = journal.Target(
            **deployment.facts,
            envelope_sha256=record.answered.envelope_sha256 or "",
            keys_version=ring.version,
            directory=name,
        )
        journal.save(self.layout, journal.begun(target, previous if previous != name else None))
        verdicts.save(self.layout, replace(record, wanted=None))
        return False

    def _no_room(self, record: Record, deployment: Deployment, row: Row, needed: int) -> None:
        """Record what the disk lacks; the bundle stays wanted, so that the agent keeps it."""
        free = trees.free_bytes(self.layout.deployments)
        needed = max(needed, journal.RESERVED_BYTES)
        before = record.of_payload(deployment.payload_sha256)
        if before is None or before.code != verdicts.NO_ROOM:
            self._tell(deployment, verdicts.NO_ROOM)
        tries = (before.tries or 0) + 1 if before is not None else 1
        due = rfc3339(self.clock.wall() + faults.next_pause(tries))
        reason = f"the disk is too full: {needed} bytes are needed, {free} are free"
        log.warning(f"deployment {deployment.deployment_id} waits for room: {reason}")
        row = replace(row, verdict=verdicts.FAILED, code=verdicts.NO_ROOM, reason=reason)
        row = replace(row, needed=needed, tries=tries, due=due)
        self._save(replace(record, wanted=wanted(deployment)), row)

    def _save(self, record: Record, row: Row) -> None:
        verdicts.save(self.layout, _without_bundle(record.with_row(row), row))

    def _tell(self, deployment: Deployment, code: str) -> None:
        """Report `failed`: the deployment was signed for us, and only this host could see why not.

        The report's id is the deployment's own: the same refusal after a crash is the same report.
        """
        report_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{deployment.payload_sha256}:{code}")
        switch.report(self.layout, self.clock, deployment, str(report_id), verdicts.FAILED, code)

    def _trusted_now(self, request: Request) -> float | None:
        """Return the time if this host's clock is to be believed (contract 3), else None.

        The agent's word counts, if it was given since this host booted: it can only lie about a
        clock that is wrong, and then merely be judged by that clock.
        """
        now, offset, at = self.clock.wall(), request.clock_offset_s, request.written_at
        booted = now - self.clock.uptime() - CLOCK_TOLERANCE_S
        fresh = at is not None and booted <= at <= now + CLOCK_TOLERANCE_S
        agrees = fresh and offset is not None and abs(offset) <= CLOCK_TOLERANCE_S
        return now if agrees or (self.layout.is_host and os.path.exists(SYNCHRONIZED)) else None


def _unless_damaged(read: Callable[[], bytes | None]) -> bytes | None:
    try:
        return read()
    except Corrupt as error:
        log.warning(f"the agent's inbox is damaged: {error}")
        return None


def _without_bundle(record: Record, row: Row) -> Record:
    """Want no bundle; only what waits for room still wants its own, so that the agent keeps it."""
    return record if row.code == verdicts.NO_ROOM else replace(record, wanted=None)


def link_spec(layout: Layout) -> None:
    """Make the vendor's documented path, where no tmpfiles does; never replace what is there."""
    # A container's /etc may be read-only; what is deployed is active all the same.
    with log.warned():
        path = layout.spec
        if not os.path.lexists(path):
            files.make_directory(path.parent, 0o755)
            trees.point(path, layout.shown(layout.current / SPEC))
