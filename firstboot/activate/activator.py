"""One run of the activator: finish what was interrupted, take the agent's key sets, judge its envelope, activate.

    journal.json                                     finish it (`switch`)
    a request that was not answered, or a retry      take key sets; then, of the envelope:
      not signed, not for us, replayed, expired …    refused
      no trusted clock                               waiting
      its payload was dealt with                     nothing
      its bundle is not here                         wanted: the agent is to bring it
      the bundle is not what was signed              refused
      else                                           unpack, complete, `switch`

Facts are read again after each step, so that a request which came meanwhile is answered by the same run. The agent may be
an attacker: its inbox only ever offers, and what it offers is judged by keys, numbers and clocks of root's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from firstboot.activate import again, directories, journal, keyring, replay, switch, unpack
from firstboot.activate.admission import Deployment, Untimely, admit, approve, wanted
from firstboot.activate.chain import Ring
from firstboot.activate.gate import Runtime
from firstboot.activate.intake import Inbox
from firstboot.activate.signatures import APPROVAL_LIMIT
from firstboot.base import files, log, systemd, trees
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import Corrupt, LocalFault, TryAgain, Untrusted
from firstboot.base.layout import Layout
from firstboot.exchange import outcomes, verdicts
from firstboot.exchange.inbox import Request
from firstboot.exchange.outcomes import Outcome, Report
from firstboot.exchange.settings import Settings
from firstboot.exchange.verdicts import Answered

LOCK_WAIT_S = 600.0  # another activator may be gating
AT_ONCE = 8  # rounds; what is left is asked for again
CLOCK_TOLERANCE_S = 300.0  # contract 3
SYNCHRONIZED = "/run/systemd/timesync/synchronized"  # made by systemd-timesyncd
CLOCK = "clock_not_trusted"
OF_TIME = (CLOCK, "expired", "not_yet_valid")
SIGNING_KEYS = "signing_keys.json"


def run(layout: Layout, settings: Settings) -> int:
    """What ``byteor-agent activate`` does; 0 also for what is refused, LocalFault when this host cannot do its part."""
    for directory, mode in (
        (layout.activation, 0o755),
        (layout.outcomes, 0o750),
        (layout.deployments, 0o755),
    ):
        files.make_directory(directory, mode)
    with locked(layout):
        Activator(layout, settings, Clock()).work()
    return 0


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
        switching = switch.Switch(
            self.layout, Runtime.configured(self.layout, self.settings.activation), self.clock
        )
        self._clear()  # what a kill left
        for _ in range(AT_ONCE):
            begun, retried = journal.load(self.layout), again.asked(self.layout)
            if begun is not None:
                if retried == begun.target.payload_sha256:
                    again.forget(self.layout)  # this is the try that was asked for
                switching.finish(begun)
                continue
            with Inbox(self.layout) as inbox:
                request = inbox.request()
                if (
                    request.request in (None, verdicts.load(self.layout).request)
                    and retried is None
                ):
                    break
                self._answer(inbox, request, retried)
            if (
                retried is not None
                and again.asked(self.layout) == retried
                and journal.load(self.layout) is None
            ):
                break  # it waits, for a clock or a bundle: that is the agent's to bring
        outcomes.prune(self.layout)
        if not (self.layout.is_host and systemd.booted()):
            link_spec(self.layout)

    def _answer(self, inbox: Inbox, request: Request, retried: str | None) -> None:
        """One request: key sets first, since the envelope may be signed by a new one."""
        place = keyring.place_of(self.settings)
        known = replace(verdicts.load(self.layout), answered=Answered(request.request), wanted=None)
        if (
            directories.named(self.layout) != known.directory
        ):  # somebody moved the link: say what is true
            known = replace(known, current=directories.in_force(self.layout, state="active"))
        now = self._trusted_now(request)
        raw = offered = None
        try:
            offered, raw = inbox.keysets(), inbox.envelope()
        except Corrupt as error:
            log.warning(f"the agent's inbox is not as it should be: {error}")
        if offered is not None:
            keyring.offer(self.layout, self.settings, offered, now=now)
        if raw is None:
            verdicts.save(self.layout, known)
            again.forget(self.layout)
            return
        digest = hashlib.sha256(raw).hexdigest()
        known = replace(known, answered=Answered(request.request, digest))
        decided, highest = known.of_envelope(digest), replay.load(self.layout, place)
        payload = decided.payload_sha256 if decided is not None else None
        if (
            payload is not None
            and highest is not None
            and payload == highest.payload_sha256
            and payload != retried
        ):
            # The newest, dealt with when it was new: later ends of keys and times take nothing back.
            verdicts.save(self.layout, known)
            again.forget(self.layout)
            return
        ring = keyring.current(self.layout, self.settings)
        blank = verdicts.Row(
            verdict=verdicts.REFUSED,
            at=self._now(),
            envelope_sha256=digest,
            keys_version=ring.version,
        )
        try:
            deployment = admit(raw, ring=ring, place=place, highest=highest, now=now)
        except (Untimely, Untrusted) as error:
            verdicts.save(
                self.layout, self._not_admitted(known, error, blank=blank, retried=retried)
            )
            if isinstance(error, Untrusted):
                again.forget(self.layout)
            return
        replay.raise_to(self.layout, place, deployment)
        self._admitted(
            inbox,
            known,
            deployment,
            blank=_of(blank, deployment),
            ring=ring,
            now=now,
            retried=retried,
        )

    def _not_admitted(
        self,
        known: verdicts.Record,
        error: Untimely | Untrusted,
        *,
        blank: verdicts.Row,
        retried: str | None,
    ) -> verdicts.Record:
        deployment, code = getattr(error, "deployment", None), getattr(error, "code", CLOCK)
        if deployment is not None:
            before = known.of_payload(deployment.payload_sha256)
            if before is not None and deployment.payload_sha256 != retried and code in OF_TIME:
                # Dealt with when its time was; what is active stays active.
                return known.with_row(_again(before, blank))
            # Without the payload's hash: nothing was tried that would have to be remembered.
            blank = replace(_of(blank, deployment), payload_sha256=None)
        if code == CLOCK:
            return known.with_row(
                replace(blank, verdict=verdicts.WAITING, code=code, reason=str(error))
            )
        log.warning(f"a deployment is refused: {code}: {error}")
        return known.with_row(replace(blank, code=code, reason=str(error)))

    def _admitted(
        self,
        inbox: Inbox,
        known: verdicts.Record,
        deployment: Deployment,
        *,
        blank: verdicts.Row,
        ring: Ring,
        now: float | None,
        retried: str | None,
    ) -> None:
        """The plane means this for us, now: bring it into force, unless that was done or tried."""
        before = known.of_payload(deployment.payload_sha256)
        if before is not None and retried != deployment.payload_sha256:
            verdicts.save(self.layout, known.with_row(_again(before, blank)))
            again.forget(self.layout)
            return
        if os.path.lexists(self.layout.current) and not self.layout.current.is_symlink():
            here = self.layout.shown(self.layout.current)
            raise LocalFault(
                f"{here} is not a symbolic link, and is not replaced", hint=f"move {here} away"
            )
        name = directories.chosen(self.layout, deployment, previous=known.previous)
        made = directories.read(self.layout, name)
        try:
            if made is not None and made.payload_sha256 == deployment.payload_sha256:
                self._approved(self.layout.deployments / name, deployment, ring=ring, now=now)
            elif not self._unpacked(inbox, deployment, name=name, ring=ring, now=now):
                verdicts.save(self.layout, replace(known, wanted=wanted(deployment)))
                return
        except Untrusted as error:
            log.warning(f"deployment {name} is refused: {error.code}: {error}")
            self._tell(deployment, error)
            verdicts.save(
                self.layout, known.with_row(replace(blank, code=error.code, reason=str(error)))
            )
            again.forget(self.layout)
            return
        # What was healthy last, if this one is in force already: a run that lost its journal put it there.
        now_in_force = directories.named(self.layout)
        previous = known.directory if now_in_force == name else now_in_force
        begun = journal.begin(
            deployment, envelope_sha256=known.envelope_sha256 or "", keys_version=ring.version, directory=name,
            previous=previous if previous != name else None,
        )  # fmt: skip
        journal.reserve(self.layout)
        journal.save(self.layout, begun)
        verdicts.save(self.layout, known)
        again.forget(self.layout)

    def _unpacked(
        self, inbox: Inbox, deployment: Deployment, *, name: str, ring: Ring, now: float | None
    ) -> bool:
        """Make the complete directory of a deployment; False when its bundle is not in the inbox, Untrusted if it is wrong."""
        copied, staging = self._copy, self._staging
        final = self.layout.deployments / name
        try:
            with inbox.bundle(deployment.bundle.sha256, deployment.bundle.size) as source:
                if source is None:
                    return False
                # Our own copy: what the agent does to its file from here on changes nothing.
                trees.require_room(self.layout.activation, deployment.bundle.size)
                size, digest = trees.copy(source, copied, limit=deployment.bundle.size + 1)
            if size != deployment.bundle.size:
                raise Untrusted(
                    "bundle_size", f"the bundle has {size} bytes, not {deployment.bundle.size}"
                )
            if digest != deployment.bundle.sha256:
                raise Untrusted("bundle_digest", "the bundle is not the one that was signed")
            trees.remove(staging)
            unpack.unpack(
                copied, staging, packed_size=size, ours={directories.MARKER: directories.marking(deployment)},
                unless_brought={SIGNING_KEYS: json.dumps(keyring.public(ring), sort_keys=True, indent=1).encode() + b"\n"},
            )  # fmt: skip
            if unpack.spec_hash(staging) != deployment.spec_hash:
                raise Untrusted("spec_hash", "spec.kv is not the one that was signed")
            self._approved(staging, deployment, ring=ring, now=now)
            trees.remove(final)  # another environment's, or what nobody vouches for
            trees.complete(staging, final)
            return True
        finally:
            self._clear()

    @property
    def _copy(self) -> Path:
        return self.layout.wanted_bundle

    @property
    def _staging(self) -> Path:
        return self.layout.deployments / directories.STAGING

    def _clear(self) -> None:
        files.remove(self._copy)
        trees.remove(self._staging)

    def _approved(
        self, directory: Path, deployment: Deployment, *, ring: Ring, now: float | None
    ) -> None:
        approval = unpack.read_member(directory, "approval.cred", limit=APPROVAL_LIMIT)
        approve(approval, deployment, ring=ring, now=now)

    def _tell(self, deployment: Deployment, error: Untrusted) -> None:
        """The plane's own deployment, refused for what only this host could see: it is told why, as `failed`."""
        # An id of the deployment's own: the same refusal after a crash is the same report.
        report_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{deployment.payload_sha256}:{error.code}")
        report = Report(
            str(report_id),
            verdicts.FAILED,
            deployment.sequence,
            deployment.spec_hash,
            error.code,
            self._now(),
        )
        outcomes.put(self.layout, Outcome(deployment.deployment_id, report))

    def _trusted_now(self, request: Request) -> float | None:
        """The time if this host's clock is to be believed (contract 3), else None.

        The agent's word counts, if it was given since this host booted: it can only lie about a clock that is wrong, and
        then merely be judged by that clock.
        """
        now, offset, at = self.clock.wall(), request.clock_offset_s, request.written_at
        booted = now - self.clock.uptime() - CLOCK_TOLERANCE_S
        fresh = at is not None and booted <= at <= now + CLOCK_TOLERANCE_S
        agrees = fresh and offset is not None and abs(offset) <= CLOCK_TOLERANCE_S
        return now if agrees or (self.layout.is_host and os.path.exists(SYNCHRONIZED)) else None

    def _now(self) -> str:
        return rfc3339(self.clock.wall())


def _again(before: verdicts.Row, blank: verdicts.Row) -> verdicts.Row:
    """The verdict on a payload that came in another envelope, signed anew."""
    return replace(before, envelope_sha256=blank.envelope_sha256, at=blank.at)


def _of(blank: verdicts.Row, deployment: Deployment) -> verdicts.Row:
    return replace(
        blank, deployment_id=deployment.deployment_id, sequence=deployment.sequence, spec_hash=deployment.spec_hash,
        payload_sha256=deployment.payload_sha256,
    )  # fmt: skip


def link_spec(layout: Layout) -> None:
    """The vendor's documented path, where no tmpfiles makes it; what somebody put there is never replaced."""
    path = layout.spec
    try:
        if not os.path.lexists(path):
            files.make_directory(path.parent, 0o755)
            trees.point(path, "/var/lib/byteor/current/spec.kv")
    except (
        LocalFault
    ) as error:  # a container's /etc may be read-only; what is deployed is in force all the same
        log.warning(str(error))
