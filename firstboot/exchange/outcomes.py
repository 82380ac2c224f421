"""Reports for the control plane, in ``activation/outcomes/``, numbered in their order.

Each is kept until the agent says that it was delivered. The agent cannot write here.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Optional

from firstboot.base import documents, files, log
from firstboot.base.documents import Identifier, Line
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout

VERSION = 1
MOST_KEPT = 1000  # a control plane that never takes reports must not fill the disk
_NUMBERED = re.compile(r"(\d{8})\.json\Z")


@dataclass(frozen=True)
class Report:
    """The body of request 6 (contract 2.3). `reason` is a code, for programs.

    A repeat is harmless: the control plane knows a report by its `report_id`.
    """

    report_id: Line
    status: Line
    sequence: int
    spec_hash: Line
    reason: Optional[Line]
    occurred_at: Line


@dataclass(frozen=True)
class Outcome:
    """One report, and the deployment that it is about."""

    deployment_id: Identifier
    report: Report


def put(layout: Layout, outcome: Outcome, *, text: Callable[[], bytes] | None = None) -> None:
    """Add one report, durably, unless it is there already. `text` makes its diagnostic."""
    present = numbers(layout)
    for number in reversed(present[-4:]):
        try:
            if read(layout, number).report.report_id == outcome.report.report_id:
                return
        except LocalFault:
            continue
    path = _numbered(layout, present[-1] + 1 if present else 1)
    if text is not None:
        # The report matters more, and the way back most.
        with log.warned("there is no diagnostic"):
            files.write(path.with_suffix(".txt"), text(), mode=0o644)
    files.write_json(path, {"v": VERSION, **asdict(outcome)}, mode=0o644)


def numbers(layout: Layout) -> list[int]:
    """Return the numbers of the reports that are kept, in the order in which they happened."""
    found = map(_NUMBERED.match, files.names(layout.outcomes))
    return sorted(int(match[1]) for match in found if match is not None)


def read(layout: Layout, number: int) -> Outcome:
    """Return one report; Corrupt when it is damaged or went away."""
    path = _numbered(layout, number)
    found = documents.read(path, Outcome)
    if found is None:
        raise Corrupt(f"{layout.shown(path)} went away")
    return found


def diagnostic(layout: Layout, number: int, *, limit: int) -> bytes | None:
    """Return the text that stands beside a report, None when there is none."""
    return files.read(_numbered(layout, number).with_suffix(".txt"), limit=limit)


def prune(layout: Layout) -> None:
    """Remove what the agent says that it delivered. The newest stays: its number is counted on.

    The agent's word only ever removes what it was to report itself.
    """
    try:
        delivered = (files.read_json(layout.reports) or {}).get("delivered")
    except LocalFault:
        return  # the agent's file: whatever it is, nothing is lost by waiting
    through = delivered if isinstance(delivered, int) else 0
    present = numbers(layout)
    surplus = present[: max(0, len(present) - MOST_KEPT)]
    for number in present[:-1]:
        if number <= through or number in surplus:
            files.remove(_numbered(layout, number).with_suffix(".txt"))
            files.remove(_numbered(layout, number))


def _numbered(layout: Layout, number: int) -> Path:
    return layout.outcomes / f"{number:08d}.json"
