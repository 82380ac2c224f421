"""Memory and wake-ups beside peers, and ratios beside shell, curl and openssl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from tests.bench.rows import Row

IDLE = (("RSS", "MiB of memory"), ("wake-ups a minute", "context switches a minute"))
OURS, THEIRS = "tab:blue", "0.7"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture; its form follows the suffix."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (memory, wakes, ratios) = pyplot.subplots(1, 3, figsize=(13, 3.6))
    for axes, (work, title) in zip((memory, wakes), IDLE):
        found = [row for row in rows if row.work.endswith(f"idle: {work}")]
        found += [row for row in rows if row.work.endswith(f"deployed: {work}")]
        _bars(axes, sorted(found, key=lambda row: -row.median), title)
    wakes.set_xscale("symlog", linthresh=1)
    beside = [row for row in rows if row.unit == "x" and "beside" in row.work]
    _bars(ratios, beside[::-1], "times what the other needs (red: to reach)")
    ratios.axvline(1.0, color="black", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(axes: object, rows: Sequence[Row], title: str) -> None:
    """Draw medians with their spread; a red mark where there is something to reach."""
    for at, row in enumerate(rows):
        ours = row.reach is not None or row.who in ("venv", "Debian")
        spread = [[row.median - min(row.values)], [max(row.values) - row.median]]
        axes.barh(at, row.median, xerr=spread, color=OURS if ours else THEIRS, height=0.7)  # type: ignore[attr-defined]
        if row.reach is not None:
            axes.plot([row.reach] * 2, [at - 0.4, at + 0.4], color="tab:red")  # type: ignore[attr-defined]
    names = [f"{row.work}, {row.who}" if row.unit == "x" else _name(row) for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)  # type: ignore[attr-defined]
    axes.set_title(title, fontsize=8)  # type: ignore[attr-defined]


def _name(row: Row) -> str:
    return f"byteor-agent ({row.who})" if row.who in ("venv", "Debian") else row.who
