"""The figures of issue 5 at a smaller size: a fleet of a thousand on a virtual clock, bounds with
room for its noise.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from firstboot.agent.schedule import Schedule
from tests.fleet import figures, host
from tests.fleet.__main__ import row
from tests.fleet.scenarios import AFTER_S, BEGINS, TROUBLES

AGENTS = 3000
# In bins of a second 100 arrivals are expected: noise alone (3 sigma) is 0.3 more than at ten
# thousand agents.
PEAK_1S, PEAK_100MS = 1.65, 3.2
TOP = Path(__file__).resolve().parents[2]
PAGES = TOP / ".github/reference"


@pytest.mark.parametrize(
    "name", [name for name in TROUBLES if name.startswith(("boot", "outage: ", "outage, then"))]
)
def test_no_trouble_makes_a_herd(name: str) -> None:
    """After a boot or ten minutes of outage arrivals are spread, everybody is back soon, and nobody
    shouted meanwhile.
    """
    trouble = TROUBLES[name]
    run = trouble.run(agents=AGENTS, seed=5)
    begins = 0.0 if trouble.boots else trouble.ends
    assert figures.peak(run, begins, begins + AFTER_S, width_s=1.0) <= PEAK_1S
    assert figures.peak(run, begins, begins + AFTER_S, width_s=0.1) <= PEAK_100MS
    *_, nearly_all, everyone = figures.recovery(run)
    assert nearly_all <= 70 and everyone <= 75
    assert figures.failed(run, begins, begins + AFTER_S) == 0
    if not trouble.boots:
        assert figures.load(run, BEGINS, trouble.ends) <= 1.0


def test_expired_keys_make_a_fleet_quieter() -> None:
    """Half the fleet is refused for good: the plane has less to do, and the other half is not held
    up.
    """
    run = TROUBLES["half the keys expired"].run(agents=AGENTS, seed=5)
    ends = TROUBLES["half the keys expired"].ends
    assert figures.load(run, BEGINS, ends) < 0.75
    assert len(run.back) == AGENTS / 2


def test_a_bad_schedule_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures tell: without the splay of the first beat a mass boot is a herd."""
    monkeypatch.setattr(Schedule, "first_delay", lambda self, chance: 0.0)
    run = TROUBLES["boot, capacity twice the mean"].run(agents=AGENTS, seed=5)
    assert figures.peak(run, 0.0, AFTER_S, width_s=1.0) > 10
    assert figures.failed(run, 0.0, AFTER_S) > AGENTS / 2


def test_a_host_whose_key_is_refused_asks_twice_a_minute_at_the_most() -> None:
    """All its tasks together, from the second minute on; without turns they would not keep to
    it.
    """
    seeds = random.Random(5).sample(range(10**6), 100)
    for seed in seeds:
        attempts = host.refused_attempts(seed=seed, until_s=3 * 3600.0)
        assert figures.most_in_a_minute(attempts, after_s=60.0) <= 2, f"seed {seed}"
    loose = [host.loose_attempts(seed=seed, until_s=3 * 3600.0) for seed in seeds]
    assert max(figures.most_in_a_minute(attempts, after_s=60.0) for attempts in loose) > 2


def test_the_command_prints_the_table_and_draws_the_picture(tmp_path: Path) -> None:
    """`python -m tests.fleet` as the README has it."""
    picture = tmp_path / "fleet.png"
    done = subprocess.run(
        [sys.executable, "-m", "tests.fleet", "--agents", "50", "--picture", str(picture)],
        cwd=TOP,
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(name in done.stdout for name in TROUBLES)
    assert picture.read_bytes().startswith(b"\x89PNG")


def cells(page: str, first: str) -> list[str]:
    """The row of a page's table that begins with `first`, without that cell."""
    (line,) = [line for line in (PAGES / page).read_text().splitlines() if f"| {first} |" in line]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


@pytest.mark.minutes
@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("mass boot", ["boot"]),
        ("after 10 minutes, refused or 503", ["outage: refused or 503"]),
        ("after 10 minutes, timed out", ["outage: timed out"]),
        ("after 10 minutes, 429", [name for name in TROUBLES if name.startswith("outage: 429")]),
    ],
)
def test_the_page_says_what_ten_thousand_do(words: str, names: list[str]) -> None:
    """The multiples rounded to a tenth; of several troubles the worst, or from the best to it."""
    found = [row(TROUBLES[name], TROUBLES[name].run(agents=10_000, seed=1)) for name in names]
    second, tenth, load, _, _, _, _, nearly, back = zip(*(line[1:] for line in found))
    *peaks, said_load, said_nearly, said_back = cells("performance.md", words)
    for said, peak in zip(peaks, (second, tenth)):
        assert float(said) == pytest.approx(max(map(float, peak)), abs=0.051)
    assert [said_load, said_nearly, said_back] == [
        "–".join(sorted({min(load), max(load)})),
        "–".join(sorted({min(nearly), max(nearly)})).replace(" s–", "–"),
        max(back),
    ]


def test_the_page_of_scale_multiplies_them() -> None:
    """Each figure is the mean of its fleet times the multiple that the other page has."""
    boot, gone = (
        cells("performance.md", words)
        for words in ("mass boot", "after 10 minutes, refused or 503")
    )
    for words, times in (
        ("all hosts boot at once", boot[0]),
        ("after an outage of ten minutes", gone[0]),
        ("while it lasts", gone[2]),
    ):
        assert cells("scale.md", words) == [
            f"{float(cells('scale.md', hosts)[1].replace(',', '')) * float(times):,.0f}/s"
            for hosts in ("10,000", "100,000", "1,000,000")
        ]
