"""Reports (contract 2.3): what became of deployments, told to the plane in order, each until it is accepted.

The activator leaves them numbered in ``outcomes/``; the number up to which the plane has them is ours, durable, and made so
after the plane's answer: a crash between the two repeats a report, which its `report_id` makes harmless. One that the plane
refuses for good is dropped, and said; the diagnostic beside a report goes to the spool before.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Callable

from firstboot.agent.artifacts import spool
from firstboot.agent.problems import Problem
from firstboot.api.answers import RequestRefused, check
from firstboot.api.client import PlaneApi
from firstboot.api.messages import HeartbeatReply
from firstboot.base import files, log
from firstboot.base.clock import Clock, from_rfc3339, rfc3339
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.exchange import outcomes
from firstboot.exchange.handover import Handover

DOING = "report"
PERIOD_S = 300.0
SHOWN_S = 86400.0  # a dropped report is a problem for so long, or until the next one is accepted
LARGEST_DIAGNOSTIC = 16 << 20


class ReportsLoop:
    """`run_once` delivers all that is there, and is False when there was nothing."""

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        api: PlaneApi,
        *,
        spooled: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._layout, self._handed, self._api, self._clock = layout, handed, api, clock
        self._spooled = spooled
        self._kept = layout.reports
        self._delivered: int | None = None
        self._dropped: dict[str, Any] | None = None

    def run_once(self) -> bool:
        """Deliver in order; raise what stops it, to go on there."""
        numbers = self._outstanding()
        for number in numbers:
            self._deliver(number)
        if numbers:
            self._api.rest()
        return bool(numbers)

    def problems(self) -> list[Problem]:
        """A report that was dropped lately."""
        dropped = self._dropped
        if dropped is None:
            return []
        try:
            age = self._clock.wall() - from_rfc3339(dropped["at"])
        except (ValueError, OverflowError):
            age = 0.0
        hint = "byteor-agent deployments shows what the plane was not told"
        return [Problem("report_dropped", dropped["detail"], hint)] if age < SHOWN_S else []

    def shown(self) -> dict[str, Any]:
        return {}

    def hinted(self, hints: HeartbeatReply) -> bool:
        return False

    def nudged(self) -> bool:
        """Whether the activator left something to report."""
        try:
            return bool(self._outstanding())
        except LocalFault:
            return True  # the attempt says it

    def _outstanding(self) -> list[int]:
        if self._delivered is None:
            self._load()
        present = outcomes.numbers(self._layout)
        if present and present[-1] < (self._delivered or 0):
            self._delivered = 0  # they were begun again: a repeat is harmless, a gap is not
        return [number for number in present if number > (self._delivered or 0)]

    def _load(self) -> None:
        try:
            stored = files.read_json(self._kept) or {}
        except Corrupt as error:
            log.warning(str(error), kept_as=files.set_aside(self._kept))
            stored = {}
        delivered, dropped = stored.get("delivered"), stored.get("dropped")
        if isinstance(dropped, dict) and all(
            isinstance(dropped.get(name), str) for name in ("at", "detail")
        ):
            self._dropped = dropped
        self._delivered = (
            delivered if isinstance(delivered, int) and not isinstance(delivered, bool) else 0
        )

    def _deliver(self, number: int) -> None:
        try:
            outcome = outcomes.read(self._layout, number)
        except Corrupt as error:
            self._drop(number, str(error))
            return
        self._spool(number, outcome)
        named, body = outcome.deployment_id, json.dumps(asdict(outcome.report), sort_keys=True)
        answer = self._api.report(self._handed.agent_id, self._handed.api_key, named, body.encode())
        try:
            check(answer, doing=DOING)
        except RequestRefused as error:
            if answer.status == 403:
                raise  # a scope that may be granted
            self._drop(number, f"the plane does not take the report on {named}: {error}")
            return
        self._keep(number, dropped=None)

    def _spool(self, number: int, outcome: outcomes.Outcome) -> None:
        """Before the report is marked, so that a crash does not lose it; the same content twice is one artifact."""
        try:
            text = outcomes.diagnostic(self._layout, number, limit=LARGEST_DIAGNOSTIC)
            if text:
                spool.add_text(
                    self._layout,
                    text,
                    kind="diagnostic",
                    deployment_id=outcome.deployment_id,
                    spec_hash=outcome.report.spec_hash,
                )
                self._spooled()
        except LocalFault as error:
            # The report matters more than what stands beside it; the activator keeps its own journal.
            log.warning(f"a diagnostic was not spooled: {error}", hint=error.hint)

    def _drop(self, number: int, detail: str) -> None:
        log.warning(detail)
        self._keep(number, dropped={"at": rfc3339(self._clock.wall()), "detail": detail})

    def _keep(self, number: int, *, dropped: dict[str, Any] | None) -> None:
        files.write_json(self._kept, {"v": 1, "delivered": number, "dropped": dropped})
        self._delivered, self._dropped = number, dropped
