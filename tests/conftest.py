"""What every test gets: the installed package before the checkout, and the reference control
plane.
"""

from __future__ import annotations

import re
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# After site-packages: `firstboot` is the installed wheel, `tests` this tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

pytest_plugins = ["tests.controlplane.fixture"]


def pytest_configure() -> None:
    """Let tests interrupt their children where SIGINT is ignored, as in ``nohup ./tests/run &``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slowest", type=int, metavar="N", help="name the N slowest tests and why")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """Send along what the test shows: the first line of its docstring."""
    outcome = yield
    if item.config.getoption("slowest"):
        doc = getattr(getattr(item, "function", None), "__doc__", None) or ""
        shows = re.sub(r"\s+", " ", doc.strip().split("\n\n")[0])
        outcome.get_result().user_properties.append(("shows", shows))  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print seconds, repetitions and purpose of the slowest tests, parameters taken together."""
    wanted = config.getoption("slowest")
    if not wanted:
        return
    cost: dict[str, float] = defaultdict(float)
    runs: dict[str, set[str]] = defaultdict(set)
    shows: dict[str, str] = {}
    for report in (one for many in terminalreporter.stats.values() for one in many):
        if isinstance(report, pytest.TestReport):
            name = report.nodeid.split("[")[0]
            cost[name] += report.duration
            runs[name].add(report.nodeid)
            shows[name] = str(dict(report.user_properties).get("shows", ""))
    terminalreporter.section(f"the slowest {wanted}: seconds, number, what they show")
    for name in sorted(cost, key=lambda name: -cost[name])[:wanted]:
        terminalreporter.line(f"{cost[name]:6.1f} {len(runs[name]):4}  {name}")
        terminalreporter.line(f"             {shows[name]}")
