"""Report the outcome of deployments, in order, each until accepted.

The activator leaves them numbered in ``outcomes/``; the number up to which the control plane has
them is ours, and made durable after its answer: a crash between the two repeats a report, which its
`report_id` makes harmless. What happened in another environment is not told to this one.
One that is refused permanently is dropped, and said; the diagnostic beside a report goes to the
spool before.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Callable, Optional

from firstboot.agent.artifacts import spool
from firstboot.agent.problems import Problem
from firstboot.agent.worker import Context, Work
from firstboot.api.answers import RequestRefused, check
from firstboot.base import documents, files, log
from firstboot.base.clock import from_rfc3339, rfc3339
from firstboot.base.documents import Time, lenient
from firstboot.base.errors import ByteorError, Corrupt, LocalFault
from firstboot.exchange import outcomes
from firstboot.exchange.outcomes import Outcome

DOING = "report"
PERIOD_S = 300.0
SHOWN_S = 86400.0  # a dropped report is a problem for so long, or until the next one is accepted
LARGEST_DIAGNOSTIC = 16 << 20
SPOOL_WAIT_S = 2.0  # neither a report nor a beat waits for an upload that comes in


@dataclass(frozen=True)
class _Dropped:
    at: Time
    detail: str


@dataclass(frozen=True)
class _Kept:
    delivered: int = lenient(0)
    dropped: Optional[_Dropped] = lenient()
    place: Optional[str] = lenient()  # the environment; older versions named none


@dataclass
class Reports(Work):
    """Deliver one report in each attempt.

    `more` is called when others wait behind it, `spooled` when a diagnostic came into the spool.
    """

    context: Context
    spooled: Callable[[], None]
    more: Callable[[], None]
    _kept: _Kept | None = None

    def run_once(self) -> bool:
        """Deliver the oldest one; False when there is none."""
        outstanding = self._outstanding()
        if outstanding:
            self._deliver(outstanding[0])
        if outstanding[1:]:
            self.more()
        return bool(outstanding)

    def problems(self) -> list[Problem]:
        """Return the problem of a report that was dropped lately."""
        dropped = self._kept.dropped if self._kept is not None else None
        if dropped is None or self.context.clock.wall() - from_rfc3339(dropped.at) >= SHOWN_S:
            return []
        hint = "byteor-agent deployments shows what the control plane was not told"
        return [Problem("report_dropped", dropped.detail, hint)]

    def nudged(self) -> bool:
        """Return True when the activator left something to report."""
        try:
            return bool(self._outstanding())
        except LocalFault:
            return True  # the attempt says it

    def _outstanding(self) -> list[int]:
        if self._kept is None:
            self._kept = self._load()
        delivered, present = self._kept.delivered, outcomes.numbers(self.context.layout)
        if present and present[-1] < delivered:
            delivered = 0  # they were begun again: a repeat is harmless, a gap is not
        return [number for number in present if number > delivered]

    def _load(self) -> _Kept:
        path, place = self.context.layout.reports, self._place()
        kept = documents.read_or_set_aside(path, _Kept) or _Kept()
        if kept.place not in (None, place):
            kept = _Kept(max([kept.delivered, *outcomes.numbers(self.context.layout)]))
        if kept.place != place:
            self._keep(kept)
        return replace(kept, place=place)

    def _place(self) -> str:
        handed = self.context.handed
        ids = (handed.org_id, handed.project_id, handed.environment_id)
        return json.dumps([handed.api_base_url, *ids])

    def _deliver(self, number: int) -> None:
        try:
            outcome = outcomes.read(self.context.layout, number)
        except Corrupt as error:
            self._drop(number, str(error))
            return
        self._spool(number, outcome)
        named, body = outcome.deployment_id, json.dumps(asdict(outcome.report), sort_keys=True)
        answer = self.context.api.report(*self.context.who, named, body.encode())
        try:
            check(answer, doing=DOING)
        except RequestRefused as error:
            if answer.status == 403:
                raise  # a scope that may be granted
            self._drop(number, f"the control plane rejects the report on {named}: {error}")
            return
        self._keep(_Kept(number))

    def _spool(self, number: int, outcome: Outcome) -> None:
        """Spool the diagnostic before its report is marked, against a crash."""
        try:
            text = outcomes.diagnostic(self.context.layout, number, limit=LARGEST_DIAGNOSTIC)
            if text:
                spool.add_text(
                    self.context.layout,
                    text,
                    kind="diagnostic",
                    deployment_id=outcome.deployment_id,
                    spec_hash=outcome.report.spec_hash,
                    wait_s=SPOOL_WAIT_S,
                )
                self.spooled()
        except ByteorError as error:
            # The report matters more than what stands beside it; the activator has its own journal.
            log.warning(f"a diagnostic was not spooled: {error}", hint=error.hint)

    def _drop(self, number: int, detail: str) -> None:
        log.warning(detail)
        self._keep(_Kept(number, _Dropped(rfc3339(self.context.clock.wall()), detail)))

    def _keep(self, kept: _Kept) -> None:
        kept = replace(kept, place=self._place())
        files.write_json(self.context.layout.reports, {"v": 1, **asdict(kept)})
        self._kept = kept
