"""``python -m tests.fleet``: run every trouble, print the table, draw the picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable

from tests.fleet import figures, host
from tests.fleet.fleet import PERIOD_S, Run
from tests.fleet.scenarios import AFTER_S, BEGINS, TROUBLES, Trouble

HEAD = (
    "",
    "peak 1 s",
    "100 ms",
    "load in it",
    "peak in it",
    "failed after",
    *(f"{p} % back" for p in figures.PERCENTILES),
)


def row(trouble: Trouble, run: Run) -> list[str]:
    """One line: multiples of the healthy mean; seconds until that many were back."""
    begins = 0.0 if trouble.boots else trouble.ends
    ends = begins + AFTER_S
    cells = [
        trouble.name,
        *(f"{figures.peak(run, begins, ends, width_s=width):.2f}" for width in (1.0, 0.1)),
    ]
    if trouble.boots:
        cells += ["", ""]
    else:
        cells += [
            f"{figures.load(run, BEGINS, trouble.ends):.2f}",
            f"{figures.peak(run, BEGINS, begins, width_s=1.0):.2f}",
        ]
    cells.append(str(figures.failed(run, begins, ends)))
    return [
        *cells,
        *(
            f"{seconds:.0f} s" if seconds < AFTER_S else "never"
            for seconds in figures.recovery(run)
        ),
    ]


def refused(seed: int, *, hosts: int = 200, hours: float = 6.0) -> str:
    """Return the most requests in any minute after the first, of hosts whose key is refused."""

    def most(attempts: Callable[..., list[float]]) -> int:
        runs = (attempts(seed=seed + n, until_s=hours * 3600.0) for n in range(hosts))
        return max(figures.most_in_a_minute(attempts, after_s=60.0) for attempts in runs)

    turns, loose = most(host.refused_attempts), most(host.loose_attempts)
    return (
        f"key refused permanently, all tasks, the fullest minute after the first: {turns} requests"
        f" (without turns: {loose})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--agents", type=int, default=10_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="draw arrivals over time (PNG, SVG or PDF by the suffix)",
    )
    chosen = parser.parse_args()
    runs = {
        trouble: trouble.run(agents=chosen.agents, seed=chosen.seed)
        for trouble in TROUBLES.values()
    }
    table = [list(HEAD), *(row(trouble, run) for trouble, run in runs.items())]
    print(
        f"{chosen.agents} agents, a beat each {PERIOD_S:.0f} s: {chosen.agents / PERIOD_S:.0f} a second are the mean = 1.00"
    )
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD))]
    for line in table:
        print(
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:])),
                ]
            )
        )
    print(refused(chosen.seed))
    if chosen.picture is not None:
        from tests.fleet.picture import draw

        draw(runs, chosen.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
