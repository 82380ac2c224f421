"""Arrivals over time, one strip for each trouble."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

from tests.fleet import figures
from tests.fleet.fleet import Run
from tests.fleet.scenarios import BEGINS, Trouble


def draw(runs: Mapping[Trouble, Run], path: Path) -> None:
    """Write the picture; its form follows the suffix."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, strips = pyplot.subplots(
        len(runs), 1, figsize=(11, 1.6 * len(runs)), sharex=True, squeeze=False
    )
    for axes, (trouble, run) in zip(strips[:, 0], runs.items()):
        counts = figures.per_bin(run.arrivals, 0.0, run.until_s, width_s=1.0)
        axes.plot(range(len(counts)), [count / run.mean_per_s for count in counts], linewidth=0.7)
        axes.axhline(1.0, color="0.6", linewidth=0.6)
        axes.axhline(1.5, color="tab:red", linewidth=0.6, linestyle=":")
        if not trouble.boots:
            axes.axvspan(BEGINS, trouble.ends, color="0.9")
        axes.set_title(trouble.name, fontsize=8, loc="left")
        axes.set_ylim(0, None)
    strips[-1, 0].set_xlabel("seconds; arrivals in each, as multiples of the healthy mean")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
