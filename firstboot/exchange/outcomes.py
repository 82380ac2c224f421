"""``activation/outcomes/``: what the agent is to report to the plane, numbered in the order in which it happened.

Kept until the agent says that the plane has them. The agent cannot write here, and its word only ever removes what it was
to report itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

from firstboot.base import files, log
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout

VERSION = 1
_NAME = re.compile(r"(\d{8})\.json\Z")
# A plane that never takes reports must not fill the disk.
MOST_KEPT = 1000


def put(
    layout: Layout,
    deployment_id: str,
    report: dict[str, Any],
    *,
    diagnostic: Callable[[], bytes] | None = None,
) -> None:
    """Add one report, durably; one that is there already (by `report_id`) stays as it is. `diagnostic` is asked once."""
    present = _listed(layout)
    for _, path in reversed(present[-4:]):
        try:
            stored = files.read_json(path) or {}
        except LocalFault:
            continue
        if (stored.get("report") or {}).get("report_id") == report["report_id"]:
            return
    number = present[-1][0] + 1 if present else 1
    path = layout.outcomes / f"{number:08d}.json"
    if diagnostic is not None:
        try:
            files.write(path.with_suffix(".txt"), diagnostic(), mode=0o644)
        except LocalFault as error:  # the report matters more, and the way back most
            log.warning(f"there is no diagnostic: {error}")
    files.write_json(
        path, {"v": VERSION, "deployment_id": deployment_id, "report": report}, mode=0o644
    )


def prune(layout: Layout) -> None:
    """Remove what the agent has delivered. The newest stays: the next number follows from it."""
    try:
        delivered = (files.read_json(layout.reports) or {}).get("delivered")
    except LocalFault:
        return  # the agent's file: whatever it is, nothing is lost by waiting
    through = delivered if isinstance(delivered, int) else 0
    present = _listed(layout)
    surplus = present[: max(0, len(present) - MOST_KEPT)]
    for number, path in present[:-1]:
        if number <= through or (number, path) in surplus:
            files.remove(path.with_suffix(".txt"))
            files.remove(path)


def _listed(layout: Layout) -> list[tuple[int, Path]]:
    try:
        found = [(_NAME.match(path.name), path) for path in layout.outcomes.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        files.fail("list", layout.outcomes, error)
    return sorted((int(match[1]), path) for match, path in found if match is not None)
