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
from firstboot.activate.admission import Deployment
from firstboot.activate.gate import Gate, Runtime
from firstboot.activate.journal import ACTIVATING, RESTORING, SETTLED, Journal, Target
from firstboot.base import log
from firstboot.base.clock import Clock, rfc3339
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
        directories.prune(self.layout)

    def _step(self, journal: Journal) -> Journal:
        cut, is_new = journal.tries >= MOST_TRIES, journal.phase == ACTIVATING
        if not is_new and not directories.is_usable(self.layout, journal.previous):
            directories.withdraw(self.layout)
            return self._saved(journal, phase=SETTLED, verdict=verdicts.FAILED)
        if not cut:
            journal = self._saved(journal, tries=journal.tries + 1)
        return self._activate(journal, cut) if is_new else self._restore(journal, cut)

    def _pointed(self, directory: str) -> Gate:
        directories.point(self.layout, directory)
        return self.runtime.activate()

    def _activate(self, journal: Journal, cut: bool) -> Journal:
        """Take the new one; not to stay: why is durable, and reported, before it is undone."""
        named = journal.target.directory
        why = f"interrupted {MOST_TRIES} times while it was activated"
        gate = Gate("interrupted", why) if cut else self._pointed(named)
        if gate.healthy:
            return self._saved(journal, phase=SETTLED, verdict=verdicts.ACTIVE, code=gate.note)
        log.warning(f"deployment {named} is not healthy: {gate.code}: {gate.reason}")
        journals.use_reserve(self.layout)
        failed = self._saved(journal, phase=RESTORING, tries=0, code=gate.code, reason=gate.reason)
        # Made up for at the end: the way back comes first.
        with log.warned("the failure is not reported yet"):
            self._report_failure(failed, gate.output)
        return failed

    def _restore(self, journal: Journal, cut: bool) -> Journal:
        previous = str(journal.previous)
        if cut:
            with log.warned():
                directories.point(self.layout, previous)
            why = f"interrupted {MOST_TRIES} times while {previous} was put back"
        else:
            gate = self._pointed(previous)
            if gate.healthy:
                return self._saved(journal, phase=SETTLED, verdict=verdicts.ROLLED_BACK)
            why = f"{previous} is not healthy either: {gate.code}: {gate.reason}"
        named = journal.target.directory
        log.error(f"deployment {named} failed, and so did the way back: {why}")
        return self._saved(journal, phase=SETTLED, verdict=verdicts.FAILED, note=why)

    def _saved(self, journal: Journal, **changes: object) -> Journal:
        return journals.save(self.layout, replace(journal, **changes))  # type: ignore[arg-type]

    def _settle(self, journal: Journal) -> None:
        """Write the last report and the record, and remove the journal."""
        target, verdict = journal.target, str(journal.verdict)
        degraded = journal.note is not None
        code = ROLLBACK_FAILED if degraded else journal.code
        if verdict != verdicts.ACTIVE:
            self._report_failure(journal)
        if verdict != verdicts.FAILED or degraded:
            report(self.layout, self.clock, target, journal.success_id, verdict, code)
        row = verdicts.Row(
            verdict=verdict,
            at=rfc3339(self.clock.wall()),
            code=code,
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
            previous=journal.previous if verdict == verdicts.ACTIVE else known.previous,
        )
        verdicts.save(self.layout, record)
        journals.remove(self.layout)
        log.notice(f"deployment {target.directory}: {verdict}", code=code)

    def _report_failure(self, journal: Journal, output: bytes = b"") -> None:
        gate = Gate(journal.code, journal.reason, output=output)
        text = functools.partial(self.runtime.diagnostic, gate)
        report(
            self.layout,
            self.clock,
            journal.target,
            journal.failure_id,
            verdicts.FAILED,
            gate.code,
            text=text,
        )


def report(
    layout: Layout,
    clock: Clock,
    about: Target | Deployment,
    report_id: str,
    status: str,
    code: str | None,
    *,
    text: Callable[[], bytes] | None = None,
) -> None:
    """Leave a report for the control plane; `text` makes its diagnostic."""
    at = rfc3339(clock.wall())
    said = Report(report_id, status, about.sequence, about.spec_hash, code, at)
    outcomes.put(layout, Outcome(about.deployment_id, said), text=text)
