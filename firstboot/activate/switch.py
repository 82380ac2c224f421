"""From a complete directory to an active one, or back: look at the facts, take a step, look again.

    phase        tries   next
    activating   < 3     `current` to the new directory; activate; healthy: settled as active;
                         else: restoring
    activating   3       restoring: it was interrupted three times
    restoring    < 3     report `failed`; none before: `current` goes, settled as failed; else
                         `current` back, activate; healthy: settled as rolled back; else: settled
                         as failed, `rollback_failed`
    restoring    3       `current` back all the same, settled as failed, `rollback_failed`
    settled              report, record, remove the journal

Each phase is durable in the journal before it is begun, and `current` is replaced by rename: cut
anywhere, it names the old directory or the new one, and the next start takes the same table from
the same facts.
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
        while journal.phase != SETTLED:
            journal = self._step(journal)
        self._settle(journal)
        directories.prune(self.layout, previous=verdicts.load(self.layout).previous)

    def _step(self, journal: Journal) -> Journal:
        cut = journal.tries >= MOST_TRIES
        if journal.phase == ACTIVATING:
            if cut:
                why = f"interrupted {MOST_TRIES} times while it was activated"
                return self._failed(journal, Gate("interrupted", why))
            return self._activate(self._saved(journal, tries=journal.tries + 1))
        if not directories.is_usable(self.layout, journal.previous):
            directories.withdraw(self.layout)
            return self._saved(journal, phase=SETTLED, verdict=verdicts.FAILED)
        if cut:
            return self._given_up(journal)
        return self._restore(self._saved(journal, tries=journal.tries + 1))

    def _activate(self, journal: Journal) -> Journal:
        directories.point(self.layout, journal.target.directory)
        gate = self.runtime.activate()
        if not gate.healthy:
            return self._failed(journal, gate)
        return self._saved(journal, phase=SETTLED, verdict=verdicts.ACTIVE, code=gate.note)

    def _failed(self, journal: Journal, gate: Gate) -> Journal:
        """The new one is not to stay: why is durable, and reported, before anything is undone."""
        named = journal.target.directory
        log.warning(f"deployment {named} is not healthy: {gate.code}: {gate.reason}")
        journals.use_reserve(self.layout)
        failed = self._saved(journal, phase=RESTORING, tries=0, code=gate.code, reason=gate.reason)
        # Made up for at the end: the way back comes first.
        with log.warned("the failure is not reported yet"):
            self._report_failure(failed, gate.output)
        return failed

    def _restore(self, journal: Journal) -> Journal:
        directories.point(self.layout, str(journal.previous))
        gate = self.runtime.activate()
        if gate.healthy:
            return self._saved(journal, phase=SETTLED, verdict=verdicts.ROLLED_BACK)
        why = f"{journal.previous} is not healthy either: {gate.code}: {gate.reason}"
        return self._not_restored(journal, why)

    def _given_up(self, journal: Journal) -> Journal:
        try:
            directories.point(self.layout, str(journal.previous))
        except LocalFault as error:
            log.error(str(error))
        why = f"interrupted {MOST_TRIES} times while {journal.previous} was put back"
        return self._not_restored(journal, why)

    def _not_restored(self, journal: Journal, why: str) -> Journal:
        named = journal.target.directory
        log.error(f"deployment {named} failed, and so did the way back: {why}")
        return self._saved(journal, phase=SETTLED, verdict=verdicts.FAILED, note=why)

    def _saved(self, journal: Journal, **changes: object) -> Journal:
        return journals.save(self.layout, replace(journal, **changes))  # type: ignore[arg-type]

    def _settle(self, journal: Journal) -> None:
        """Write the last report and the record, and remove the journal."""
        target, code, degraded = journal.target, journal.code, journal.note is not None
        if journal.verdict != verdicts.ACTIVE:
            self._report_failure(journal)
        if journal.verdict != verdicts.FAILED:
            self._report(journal, journal.success_id, str(journal.verdict), code)
        elif degraded:
            self._report(journal, journal.success_id, verdicts.FAILED, ROLLBACK_FAILED)
        row = verdicts.Row(
            verdict=str(journal.verdict),
            at=rfc3339(self.clock.wall()),
            code=ROLLBACK_FAILED if degraded else code,
            reason=journal.note or journal.reason,
            report_id=journal.success_id,
            **{name: value for name, value in vars(target).items() if name != "directory"},
        )
        known = verdicts.load(self.layout)
        state = "degraded" if degraded else "active"
        record = replace(
            known.with_row(row),
            wanted=None,
            current=directories.in_force(self.layout, state=state),
            directory=directories.named(self.layout),
            previous=journal.previous if journal.verdict == verdicts.ACTIVE else known.previous,
        )
        verdicts.save(self.layout, record)
        journals.remove(self.layout)
        log.notice(f"deployment {target.directory}: {journal.verdict}", code=row.code)

    def _report_failure(self, journal: Journal, output: bytes = b"") -> None:
        gate = Gate(journal.code, journal.reason, output=output)
        text = functools.partial(self.runtime.diagnostic, gate)
        self._report(journal, journal.failure_id, verdicts.FAILED, gate.code, text=text)

    def _report(
        self,
        journal: Journal,
        report_id: str,
        status: str,
        code: str | None,
        *,
        text: Callable[[], bytes] | None = None,
    ) -> None:
        target, at = journal.target, rfc3339(self.clock.wall())
        report = Report(report_id, status, target.sequence, target.spec_hash, code, at)
        outcomes.put(self.layout, Outcome(target.deployment_id, report), text=text)
