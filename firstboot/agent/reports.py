"""Reports (contract 2.3): what became of deployments, told to the plane in order, each until it is accepted.

The activator leaves them numbered in ``outcomes/``; the number up to which the plane has them is ours, durable, and made so
after the plane's answer: a crash between the two repeats a report, which its `report_id` makes harmless. One that the plane
refuses for good is dropped, and said; the diagnostic beside a report goes to the spool before.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

from firstboot.agent.artifacts import spool
from firstboot.agent.problems import Problem
from firstboot.api.answers import RequestRefused, check
from firstboot.api.client import PlaneApi
from firstboot.api.messages import HeartbeatReply, report_body
from firstboot.base import files, log
from firstboot.base.clock import Clock, from_rfc3339, rfc3339
from firstboot.base.documents import IDENTIFIER
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.exchange.handover import Handover

DOING = "report"
PERIOD_S = 300.0
SHOWN_S = 86400.0  # a dropped report is a problem for so long, or until the next one is accepted
LARGEST_DIAGNOSTIC = 16 << 20
_NAME = re.compile(r"(\d{8})\.json\Z")


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
        outcomes = self._outstanding()
        for number, path in outcomes:
            self._deliver(number, path)
        if outcomes:
            self._api.rest()
        return bool(outcomes)

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

    def _outstanding(self) -> list[tuple[int, Path]]:
        if self._delivered is None:
            self._load()
        present = self._listed()
        if present and present[-1][0] < (self._delivered or 0):
            self._delivered = 0  # they were begun again: a repeat is harmless, a gap is not
        return [(number, path) for number, path in present if number > (self._delivered or 0)]

    def _listed(self) -> list[tuple[int, Path]]:
        directory = self._layout.outcomes
        try:
            found = [(_NAME.match(path.name), path) for path in directory.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            files.fail("list", directory, error)
        return sorted((int(match[1]), path) for match, path in found if match is not None)

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

    def _deliver(self, number: int, path: Path) -> None:
        try:
            deployment_id, spec_hash, body = _outcome(files.read_json(path))
        except Corrupt as error:
            self._drop(number, f"{error}")
            return
        except ValueError as error:
            self._drop(number, f"{self._layout.shown(path)} is damaged: {error}")
            return
        self._spool(path.with_suffix(".txt"), deployment_id, spec_hash)
        answer = self._api.report(self._handed.agent_id, self._handed.api_key, deployment_id, body)
        try:
            check(answer, doing=DOING)
        except RequestRefused as error:
            if answer.status == 403:
                raise  # a scope that may be granted
            self._drop(number, f"the plane does not take the report on {deployment_id}: {error}")
            return
        self._keep(number, dropped=None)

    def _spool(self, path: Path, deployment_id: str, spec_hash: str) -> None:
        """Before the report is marked, so that a crash does not lose it; the same content twice is one artifact."""
        try:
            text = files.read(path, limit=LARGEST_DIAGNOSTIC)
            if text:
                spool.add_text(
                    self._layout,
                    text,
                    kind="diagnostic",
                    deployment_id=deployment_id,
                    spec_hash=spec_hash,
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


def _outcome(stored: dict[str, Any] | None) -> tuple[str, str, bytes]:
    """The deployment, its spec and the body of its report; ValueError when it is not one of the activator's."""
    if stored is None:
        raise ValueError("it went away")
    named, body = stored.get("deployment_id"), report_body(stored.get("report"))
    if not isinstance(named, str) or not IDENTIFIER.match(named):
        raise ValueError("it names no deployment")
    return named, stored["report"]["spec_hash"], body
