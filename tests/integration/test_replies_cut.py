"""Replies that are cut, late or given twice, and clocks that are wrong: one agent, or a clear line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import firstboot
from firstboot.base.clock import Clock
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.identity import store
from firstboot.provision import preflight, waiting
from firstboot.provision import run as first_boot
from firstboot.provision.sources import Inputs
from tests.integration.host import Host

STRIDE = 41  # bytes between two cuts of the quick suite; every byte with --all
DAY_S = 86400.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "BACKOFF_S", (0.001, 0.001))


def enroll(root: Path, plane: Any, name: str, clock: Clock | None = None) -> Host:
    """Run first boot in this process, on a new root with a new token."""
    host = Host(root, plane)
    host.defaults(name=name)
    host.token(host.mint())
    first_run(root, clock)
    return host


def first_run(root: Path, clock: Clock | None = None) -> None:
    layout = Layout(root)
    preflight.make_state(layout)
    assert first_boot.FirstBoot(layout, Inputs(), first_boot.Options(), clock=clock).run() == 0


def one_agent(host: Host, name: str) -> int:
    """Return how many requests it took; there is one key, one agent, and it is sealed here."""
    requests = [request for request in host.enrollments() if name in str(request["body"])]
    (agent,) = [agent for agent in host.plane.agents() if agent["name"] == name]
    identity = store.required(Layout(host.root))
    assert identity.agent_id == agent["agent_id"]
    assert len({request["headers"]["idempotency-key"] for request in requests}) == 1
    return len(requests)


def cut_every(stride: int, tmp_path: Path, plane: Any) -> None:
    """Cut the reply after each `stride` bytes, until a cut is behind its end."""
    at, missed = 0, 0
    while True:
        name = f"edge-{at}-z"
        plane.fault("enroll", "cut", at=at, when="after")
        took = one_agent(enroll(tmp_path / name, plane, name), name)
        if took == 1:
            break  # the cut was behind the end
        assert took == 2
        missed += 1
        at += stride
    assert missed * stride > 300, f"the reply was at most {at} bytes long"


def test_a_reply_that_is_cut_is_asked_for_again(tmp_path: Path, control_plane: Any) -> None:
    """The same key brings the same agent, at every so many bytes."""
    cut_every(STRIDE, tmp_path, control_plane)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_reply_that_is_cut_anywhere_is_asked_for_again(
    tmp_path: Path, control_plane: Any
) -> None:
    """The same key brings the same agent, at every byte."""
    cut_every(1, tmp_path, control_plane)


@pytest.mark.parametrize("at", [0, 5, 12, 30, 70, 120])
def test_a_cut_head_is_one_line_of_warning(tmp_path: Path, control_plane: Any, at: int) -> None:
    """No library of ours writes its own view, a traceback, beside it."""
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    host.token(host.mint())
    control_plane.fault("enroll", "cut", at=at, when="after")
    done = host.run()
    assert done.code == 0 and done.err.count("warning: ") == 1, done


LATE = [
    pytest.param("cut", {"at": 150, "when": "after"}, id="lost three times"),
    pytest.param("hang", {"when": "after"}, id="never comes"),
    pytest.param("delay", {"seconds": 3.0, "when": "after"}, id="after the deadline"),
    pytest.param("drip", {"count": 1, "every_s": 1.0}, id="a byte a second"),
]


@pytest.mark.parametrize(("kind", "options"), LATE)
def test_a_reply_that_is_late_is_asked_for_again(
    tmp_path: Path,
    control_plane: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: dict[str, Any],
) -> None:
    """Answered more than once to one key, it is one agent."""
    monkeypatch.setattr(first_boot, "DEADLINE_S", 1.5)
    control_plane.fault("enroll", kind, times=3 if kind == "cut" else 1, **options)
    host = enroll(tmp_path / "root", control_plane, f"edge-{kind}")
    took = one_agent(host, f"edge-{kind}")
    assert took == 4 if kind == "cut" else took  # a request that hangs may be noted later


class Wrong(Clock):
    """A clock that says what a test wants; each call takes the next of its times, then the last."""

    def __init__(self, *times: float) -> None:
        super().__init__()
        self._times = list(times)

    def wall(self) -> float:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


BUILT = os.stat(firstboot.__file__).st_mtime
BEHIND = [0.0, BUILT - DAY_S]
AHEAD = [2.0**31 + DAY_S, 2.0**32 + DAY_S, BUILT + 100 * 365 * DAY_S]


@pytest.mark.parametrize("now", BEHIND)
def test_a_clock_before_the_package_waits_and_says_so(
    tmp_path: Path, control_plane: Any, now: float
) -> None:
    """The token is not presented; when the clock is right, it is."""
    root = tmp_path / "root"
    with pytest.raises(LocalFault, match="the clock says (1970|20)"):
        enroll(root, control_plane, "edge-clock", Wrong(now))
    assert control_plane.agents() == []
    first_run(root)
    assert len(control_plane.agents()) == 1


@pytest.mark.parametrize("now", AHEAD)
def test_a_clock_that_is_far_ahead_enrolls(tmp_path: Path, control_plane: Any, now: float) -> None:
    """Beyond 2038 and 2106 a date is a date."""
    host = enroll(tmp_path / "root", control_plane, "edge-ahead", Wrong(now))
    assert one_agent(host, "edge-ahead") == 1


def test_a_clock_that_jumps_enrolls_once(tmp_path: Path, control_plane: Any) -> None:
    """Back and forth by years between any two looks, after a reply that was lost."""
    control_plane.fault("enroll", "cut", at=150, when="after")
    jumps = [BUILT + years * 365 * DAY_S for years in (1, 30, 2, 90, 1, 50)] * 20
    host = enroll(tmp_path / "root", control_plane, "edge-jump", Wrong(*jumps))
    assert one_agent(host, "edge-jump") == 2
