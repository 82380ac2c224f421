"""From a complete directory to one that is in force, or back: facts on disk, the next step, do it, look again.

    phase        tries   next
    activating   < 3     `current` to the new directory; activate; healthy: settled as active; else: restoring
    activating   3       restoring: it was interrupted three times
    restoring    < 3     report `failed`; none before: `current` goes, settled as failed; else `current` back, activate;
                         healthy: settled as rolled back; else: settled as failed, `rollback_failed`
    restoring    3       settled as failed, `rollback_failed`
    settled              report, record, remove the journal

Each phase is durable in the journal before it is begun, and `current` is replaced by rename: cut anywhere, it names the old
directory or the new one, and the next start takes the same table from the same facts.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Optional

from firstboot import files, log, trees
from firstboot.activate import journal as journals
from firstboot.activate import outcomes, record, unpack
from firstboot.activate.journal import ACTIVATING, RESTORING, SETTLED, Journal
from firstboot.activate.runtime import Gate, Runtime
from firstboot.clock import Clock, rfc3339
from firstboot.errors import LocalFault, Untrusted
from firstboot.layout import Layout

MOST_TRIES = 3
KEPT_DIRECTORIES = 3
ROLLBACK_FAILED = "rollback_failed"
_DIRECTORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}-\d{1,16}\Z")


@dataclass(frozen=True)
class Switch:
    """Finishes what the journal names."""

    layout: Layout
    runtime: Runtime
    clock: Clock

    def finish(self, journal: Journal) -> None:
        """Take step after step until nothing is in progress."""
        current: Optional[Journal] = journal
        while current is not None:
            current = self._step(current)
        prune(self.layout)

    def _step(self, journal: Journal) -> Optional[Journal]:
        if journal.phase == SETTLED:
            self._settle(journal)
            return None
        if journal.phase == ACTIVATING:
            if journal.tries >= MOST_TRIES:
                return self._failed(journal, Gate("interrupted", f"interrupted {MOST_TRIES} times while it was activated"))
            return self._activate(self._trying(journal))
        self._report_failure(journal)
        if journal.previous is None:
            files.remove(self.layout.current)
            return self._settled(journal, record.FAILED)
        if journal.tries >= MOST_TRIES:
            return self._not_restored(journal, f"interrupted {MOST_TRIES} times while {journal.previous} was put back")
        return self._restore(self._trying(journal))

    def _activate(self, journal: Journal) -> Journal:
        point(self.layout, journal.target.directory)
        gate = self.runtime.activate()
        if not gate.healthy:
            return self._failed(journal, gate)
        settled = replace(journal, phase=SETTLED, verdict=record.ACTIVE, code=gate.note)
        return journals.save(self.layout, settled)

    def _failed(self, journal: Journal, gate: Gate) -> Journal:
        """The new one is not to stay; why is durable, with what a person needs, before anything is undone."""
        log.warning(f"deployment {journal.target.directory} is not healthy: {gate.code}: {gate.reason}")
        failed = journals.save(self.layout, replace(journal, phase=RESTORING, tries=0, code=gate.code, reason=gate.reason))
        self._report_failure(failed, gate.output)
        return failed

    def _restore(self, journal: Journal) -> Journal:
        assert journal.previous is not None
        point(self.layout, journal.previous)
        gate = self.runtime.activate()
        if not gate.healthy:
            return self._not_restored(journal, f"{journal.previous} is not healthy either: {gate.code}: {gate.reason}")
        return self._settled(journal, record.ROLLED_BACK)

    def _not_restored(self, journal: Journal, reason: str) -> Journal:
        log.error(f"deployment {journal.target.directory} failed, and so did the way back: {reason}")
        return self._settled(replace(journal, code=ROLLBACK_FAILED, reason=reason), record.FAILED)

    def _settled(self, journal: Journal, verdict: str) -> Journal:
        return journals.save(self.layout, replace(journal, phase=SETTLED, verdict=verdict))

    def _trying(self, journal: Journal) -> Journal:
        return journals.save(self.layout, replace(journal, tries=journal.tries + 1))

    def _settle(self, journal: Journal) -> None:
        """The books: the last report, the record, and no journal."""
        target, code = journal.target, journal.code
        if journal.verdict == record.ACTIVE:
            self._report(journal, journal.success_id, "active", code)
        elif journal.verdict == record.ROLLED_BACK:
            self._report(journal, journal.success_id, "rolled_back", code)
        elif code == ROLLBACK_FAILED:
            self._report(journal, journal.success_id, "failed", ROLLBACK_FAILED)
        row = record.Row(
            verdict=str(journal.verdict), at=self._now(), deployment_id=target.deployment_id, sequence=target.sequence,
            spec_hash=target.spec_hash, payload_sha256=target.payload_sha256, envelope_sha256=target.envelope_sha256,
            code=code, reason=journal.reason, keys_version=target.keys_version,
        )  # fmt: skip
        known = record.load(self.layout)
        state = "degraded" if code == ROLLBACK_FAILED else "active"
        before = journal.previous if journal.verdict == record.ACTIVE else known.previous
        record.save(
            self.layout,
            replace(known.with_row(row), wanted=None, current=in_force(self.layout, state=state), previous=before),
        )
        journals.remove(self.layout)
        log.notice(f"deployment {target.directory}: {journal.verdict}", code=code)

    def _report_failure(self, journal: Journal, output: bytes = b"") -> None:
        gate = Gate(journal.code, journal.reason, output=output)
        diagnostic = functools.partial(self.runtime.diagnostic, gate)
        self._report(journal, journal.failure_id, "failed", gate.code, diagnostic=diagnostic)

    def _report(
        self,
        journal: Journal,
        report_id: str,
        status: str,
        reason: Optional[str],
        *,
        diagnostic: Optional[Callable[[], bytes]] = None,
    ) -> None:
        body: Dict[str, Any] = report(
            report_id, status, sequence=journal.target.sequence, spec_hash=journal.target.spec_hash,
            reason=reason, at=self._now(),
        )  # fmt: skip
        outcomes.put(self.layout, journal.target.deployment_id, body, diagnostic=diagnostic)

    def _now(self) -> str:
        return rfc3339(self.clock.wall())


def report(
    report_id: str, status: str, *, sequence: int, spec_hash: str, reason: Optional[str], at: str
) -> Dict[str, Any]:
    """The body of request 6 (contract 2.3). `reason` is a code, for programs; the sentence is in the record, for people."""
    what = {"status": status, "sequence": sequence, "spec_hash": spec_hash, "reason": reason}
    return {"report_id": report_id, **what, "occurred_at": at}


def point(layout: Layout, directory: str) -> None:
    """Put `directory` in force. Relative, so that a tree that is moved or mounted elsewhere keeps its deployment."""
    trees.point(layout.current, f"deployments/{directory}")


def named(layout: Layout) -> Optional[str]:
    """The directory that ``current`` names, None when it names none of ours."""
    try:
        target = os.readlink(layout.current)
    except OSError:
        return None
    above, _, directory = target.rpartition("/")
    ours = above == "deployments" and _DIRECTORY.match(directory) is not None
    return directory if ours and (layout.deployments / directory).is_dir() else None


def in_force(layout: Layout, *, state: str) -> Optional[Dict[str, Any]]:
    """What a heartbeat says of the deployment in force, from the directory itself."""
    directory = named(layout)
    if directory is None:
        return None
    deployment_id, _, sequence = directory.rpartition("-")
    try:
        spec_hash: Optional[str] = unpack.spec_hash(layout.deployments / directory)
    except (LocalFault, Untrusted):
        spec_hash = None
    return {"deployment_id": deployment_id, "sequence": int(sequence), "spec_hash": spec_hash, "state": state}


def prune(layout: Layout) -> None:
    """Keep the three newest directories, what is in force and what was before it; and no half-made one."""
    try:
        present = [path.name for path in layout.deployments.iterdir()]
    except OSError as error:
        files.fail("list", layout.deployments, error)
    numbered = {name: int(name.rpartition("-")[2]) for name in present if _DIRECTORY.match(name)}
    newest = sorted(numbered, key=lambda name: numbered[name])[-KEPT_DIRECTORIES:]
    kept = {*newest, named(layout), record.load(layout).previous}
    for name in present:
        if name not in kept:
            trees.remove(layout.deployments / name)
