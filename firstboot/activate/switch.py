"""From a complete directory to one that is in force, or back: facts on disk, the next step, do it, look again.

    phase        tries   next
    activating   < 3     `current` to the new directory; activate; healthy: settled as active; else: restoring
    activating   3       restoring: it was interrupted three times
    restoring    < 3     report `failed`; none before: `current` goes, settled as failed; else `current` back, activate;
                         healthy: settled as rolled back; else: settled as failed, `rollback_failed`
    restoring    3       `current` back all the same, settled as failed, `rollback_failed`
    settled              report, record, remove the journal

Each phase is durable in the journal before it is begun, and `current` is replaced by rename: cut anywhere, it names the old
directory or the new one, and the next start takes the same table from the same facts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Callable

from firstboot.activate import directories
from firstboot.activate import journal as journals
from firstboot.activate.gate import Gate, Runtime
from firstboot.activate.journal import ACTIVATING, RESTORING, SETTLED, Journal
from firstboot.base import log
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.exchange import outcomes, verdicts
from firstboot.exchange.outcomes import Outcome, Report

MOST_TRIES = 3
ROLLBACK_FAILED = "rollback_failed"


@dataclass(frozen=True)
class Switch:
    """Finishes what the journal names."""

    layout: Layout
    runtime: Runtime
    clock: Clock

    def finish(self, journal: Journal) -> None:
        """Take step after step until nothing is in progress."""
        current: Journal | None = journal
        while current is not None:
            current = self._step(current)
        directories.prune(self.layout, previous=verdicts.load(self.layout).previous)

    def _step(self, journal: Journal) -> Journal | None:
        if journal.phase == SETTLED:
            self._settle(journal)
            return None
        if journal.phase == ACTIVATING:
            if journal.tries >= MOST_TRIES:
                return self._failed(
                    journal,
                    Gate("interrupted", f"interrupted {MOST_TRIES} times while it was activated"),
                )
            return self._activate(self._trying(journal))
        if not directories.is_usable(self.layout, journal.previous):
            directories.withdraw(self.layout)
            return self._settled(journal, verdicts.FAILED)
        if journal.tries >= MOST_TRIES:
            return self._given_up(journal)
        return self._restore(self._trying(journal))

    def _activate(self, journal: Journal) -> Journal:
        directories.point(self.layout, journal.target.directory)
        gate = self.runtime.activate()
        if not gate.healthy:
            return self._failed(journal, gate)
        settled = replace(journal, phase=SETTLED, verdict=verdicts.ACTIVE, code=gate.note)
        return journals.save(self.layout, settled)

    def _failed(self, journal: Journal, gate: Gate) -> Journal:
        """The new one is not to stay; why is durable, with what a person needs, before anything is undone."""
        log.warning(
            f"deployment {journal.target.directory} is not healthy: {gate.code}: {gate.reason}"
        )
        journals.use_reserve(self.layout)
        failed = journals.save(
            self.layout,
            replace(journal, phase=RESTORING, tries=0, code=gate.code, reason=gate.reason),
        )
        try:
            self._report_failure(failed, gate.output)
        except LocalFault as error:  # made up for at the end: the way back comes first
            log.warning(f"the failure is not reported yet: {error}")
        return failed

    def _restore(self, journal: Journal) -> Journal:
        directories.point(self.layout, str(journal.previous))
        gate = self.runtime.activate()
        if not gate.healthy:
            return self._not_restored(
                journal, f"{journal.previous} is not healthy either: {gate.code}: {gate.reason}"
            )
        return self._settled(journal, verdicts.ROLLED_BACK)

    def _given_up(self, journal: Journal) -> Journal:
        try:
            directories.point(self.layout, str(journal.previous))
        except LocalFault as error:
            log.error(str(error))
        return self._not_restored(
            journal, f"interrupted {MOST_TRIES} times while {journal.previous} was put back"
        )

    def _not_restored(self, journal: Journal, reason: str) -> Journal:
        log.error(
            f"deployment {journal.target.directory} failed, and so did the way back: {reason}"
        )
        return self._settled(replace(journal, note=reason), verdicts.FAILED)

    def _settled(self, journal: Journal, verdict: str) -> Journal:
        return journals.save(self.layout, replace(journal, phase=SETTLED, verdict=verdict))

    def _trying(self, journal: Journal) -> Journal:
        return journals.save(self.layout, replace(journal, tries=journal.tries + 1))

    def _settle(self, journal: Journal) -> None:
        """The books: the last report, the record, and no journal."""
        target, code, degraded = journal.target, journal.code, journal.note is not None
        if journal.verdict != verdicts.ACTIVE:
            self._report_failure(journal)
        if journal.verdict == verdicts.ACTIVE:
            self._report(journal, journal.success_id, "active", code)
        elif journal.verdict == verdicts.ROLLED_BACK:
            self._report(journal, journal.success_id, "rolled_back", code)
        elif degraded:
            self._report(journal, journal.success_id, "failed", ROLLBACK_FAILED)
        row = verdicts.Row(
            verdict=str(journal.verdict), at=self._now(), deployment_id=target.deployment_id, sequence=target.sequence,
            spec_hash=target.spec_hash, payload_sha256=target.payload_sha256, envelope_sha256=target.envelope_sha256,
            code=ROLLBACK_FAILED if degraded else code, reason=journal.note or journal.reason,
            keys_version=target.keys_version, report_id=journal.success_id,
        )  # fmt: skip
        known = verdicts.load(self.layout)
        state = "degraded" if degraded else "active"
        before = journal.previous if journal.verdict == verdicts.ACTIVE else known.previous
        known = replace(
            known.with_row(row), wanted=None, current=directories.in_force(self.layout, state=state),
            directory=directories.named(self.layout), previous=before,
        )  # fmt: skip
        verdicts.save(self.layout, known)
        journals.remove(self.layout)
        log.notice(f"deployment {target.directory}: {journal.verdict}", code=row.code)

    def _report_failure(self, journal: Journal, output: bytes = b"") -> None:
        gate = Gate(journal.code, journal.reason, output=output)
        diagnostic = functools.partial(self.runtime.diagnostic, gate)
        self._report(journal, journal.failure_id, "failed", gate.code, diagnostic=diagnostic)

    def _report(
        self,
        journal: Journal,
        report_id: str,
        status: str,
        reason: str | None,
        *,
        diagnostic: Callable[[], bytes] | None = None,
    ) -> None:
        target = journal.target
        report = Report(report_id, status, target.sequence, target.spec_hash, reason, self._now())
        outcomes.put(self.layout, Outcome(target.deployment_id, report), text=diagnostic)

    def _now(self) -> str:
        return rfc3339(self.clock.wall())
