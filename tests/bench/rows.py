"""The table: rows with their values, printed as they are measured, and kept for JSON and picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One work of one program. `values`: one for each run or minute, in `unit`.

    `unit` is ``x`` where the values are ratios, each to the baseline's run beside it. `reach` is
    the largest good value (the smallest where `least`), None where the row is there to compare.
    """

    work: str
    who: str
    values: tuple[float, ...]
    unit: str
    digits: int = 2
    reach: float | None = None
    least: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        shown = [f"{value:.{self.digits}f}" for value in (min(self.values), max(self.values))]
        spread = f" ({'–'.join(shown)})" if len(self.values) > 1 else ""
        reach, met = "", ""
        if self.reach is not None:
            reach = f"{'>=' if self.least else '<='} {self.reach:g}"
            shown_as = round(self.median, self.digits)
            kept = shown_as >= self.reach if self.least else shown_as <= self.reach
            met = "" if kept else "  MISSED"
        return (
            f"{self.work:<44} {self.who:<19} {self.median:>8.{self.digits}f} {self.unit:<5}"
            f"{spread:<20} {reach:>9}{met}"
        )


@dataclass
class Table:
    """All rows of a run, and on what they were measured."""

    interpreters: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: str = f"{platform.platform()}, {os.cpu_count()} CPUs"

    def head(self) -> None:
        print(f"{self.machine}, load {os.getloadavg()[0]:.1f}")
        for name, said in self.interpreters.items():
            print(f"  {name}: {said}")
        print(f"{'WORK':<44} {'WHO':<19} {'MEDIAN':>8} {'UNIT':<5}{' (SPREAD)':<20} {'REACH':>9}")

    def add(
        self,
        work: str,
        who: str,
        values: Sequence[float],
        unit: str,
        digits: int = 2,
        **reach: float,
    ) -> None:
        """Print and keep one row; `reach`: ``most=`` or ``least=``."""
        bound = reach.get("most", reach.get("least"))
        row = Row(work, who, tuple(values), unit, digits, bound, "least" in reach)
        self.rows.append(row)
        print(row, flush=True)

    def note(self, text: str) -> None:
        """Say what could not be measured, and why."""
        self.notes.append(text)
        print(f"SKIPPED: {text}", flush=True)

    def save(self, path: Path) -> None:
        """Write everything as one JSON document."""
        rows = [{**asdict(row), "median": row.median} for row in self.rows]
        path.write_text(json.dumps({**vars(self), "rows": rows}, indent=1, ensure_ascii=False))
