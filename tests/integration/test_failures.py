"""The table of failures: somebody who sees one output only knows the cause and what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.failures import FAILURES, Failure, Scene, Seen, scene, table
from tests.unit.test_pages import TOP

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a disk that is full")
ROWS = [pytest.param(row, id=row.name, marks=[pytest.mark.minutes] * row.slow) for row in FAILURES]


@pytest.mark.parametrize("row", ROWS)
def test_every_output_names_the_cause_and_the_action(
    row: Failure, tmp_path: Path, control_plane: Any
) -> None:
    """Both pages, the unit's line and the journal, which says it with the first attempt."""
    with scene(tmp_path, control_plane) as there:
        row.make(there)
        seen = _seen(there, row)
    human, document, journal = (
        " ".join(text.split()) for text in (seen.human, seen.document, seen.journal)
    )
    for text in (human, document):
        assert row.cause in text and row.action in text, text
    assert all(len(line) <= 100 for line in seen.human.splitlines() if "/" not in line), seen.human
    assert "None" not in human, human
    if not row.by_systemd:
        assert (row.unit or row.cause) in seen.unit, seen.unit
        assert row.cause in journal, journal
    if not row.slow:
        tries = [line for line in seen.journal.splitlines() if "attempt=1 " in line]
        assert row.action in " ".join(tries or journal.splitlines()), journal


def _seen(there: Scene, row: Failure) -> Seen:
    """Look; an agent tells its unit's line and the journal right after its page."""
    while True:
        seen = there.look()
        if not row.slow or row.by_systemd or (row.unit or row.cause) in seen.unit:
            return seen


def test_the_table_stands_in_the_runbook() -> None:
    """Word for word; ``python -m tests.integration.failures`` prints what the rows show."""
    assert table() in (TOP / ".github/RUNBOOK.md").read_text()
