"""What is read off a run: peaks in bins of a second and a tenth, recovery percentiles, load in an
outage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from tests.fleet.fleet import Run

PERCENTILES = (50, 90, 99, 100)


def per_bin(times: Sequence[float], begins: float, ends: float, *, width_s: float) -> list[int]:
    """How many of `times` fall into each bin from `begins` to `ends`."""
    edges = numpy.linspace(begins, ends, round((ends - begins) / width_s) + 1)
    return [int(count) for count in numpy.histogram(numpy.asarray(times), edges)[0]]


def peak(run: Run, begins: float, ends: float, *, width_s: float) -> float:
    """The fullest bin as a multiple of the healthy mean."""
    return max(per_bin(run.arrivals, begins, ends, width_s=width_s)) / (run.mean_per_s * width_s)


def load(run: Run, begins: float, ends: float) -> float:
    """Arrivals from `begins` to `ends` as a multiple of what a healthy fleet sends in that time."""
    return per_bin(run.arrivals, begins, ends, width_s=ends - begins)[0] / (
        run.mean_per_s * (ends - begins)
    )


def recovery(run: Run) -> list[float]:
    """Seconds after the end of the trouble until 50, 90, 99 and 100 % of all agents had an answer;
    inf: not in this run.
    """
    back = sorted(run.back.values())
    ranks = [math.ceil(run.agents * percent / 100) for percent in PERCENTILES]
    return [back[rank - 1] if rank <= len(back) else math.inf for rank in ranks]


def failed(run: Run, begins: float, ends: float) -> int:
    """Requests that came to nothing from `begins` to `ends`."""
    return sum(begins <= at < ends for at in run.failed)


def most_in_a_minute(times: Sequence[float], *, after_s: float) -> int:
    """The most of `times` (ascending, from `after_s` on) within any sixty seconds."""
    late = [at for at in times if at >= after_s]
    return max((sum(begins <= at < begins + 60.0 for at in late) for begins in late), default=0)
