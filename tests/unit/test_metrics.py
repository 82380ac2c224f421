"""The metrics: read by Prometheus' own parser in every state, and as the page says."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from firstboot import cli
from firstboot.base.clock import Clock
from firstboot.base.layout import Layout
from firstboot.commands import agent_page, agent_status, metrics
from tests.schemas import judge

PAGE = Path(__file__).resolve().parents[2] / ".github/reference/monitoring.md"
STATUS: dict[str, Any] = {
    "v": 1,
    "running": True,
    "pid": 1,
    "agent_version": "0.2.0",
    "written_at": "2026-11-30T12:00:00Z",
    "crashes": 0,
    "identity": {
        "agent_id": "agt_1",
        "name": 'ed"ge\\1',
        "environment_id": "env_1",
        "expires_at": "2027-01-01T00:00:00Z",
    },
    "loops": {
        "heartbeat": {
            "last_attempt_at": "2026-11-30T12:00:00Z",
            "last_success_at": "2026-11-30T11:59:30Z",
            "next_attempt_at": "2026-11-30T12:00:30Z",
            "failures": 1,
            "period_s": 30.0,
        },
        "artifacts": {"last_success_at": None, "failures": 0, "period_s": 60.0},
    },
    "spool": {"pending": 2, "quarantined": 1, "bytes": 4096},
    "clock_skew_s": -2,
    "problems": [{"code": "heartbeat_failing", "detail": "x", "hint": "y"}] * 2,
}
NOW = 1796040060.0  # 2026-11-30T12:01:00Z


class Fixed(Clock):
    def wall(self) -> float:
        return NOW


def samples(layout: Layout) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return (name, labels) -> value, as Prometheus reads the text; each there once."""
    text = metrics.render(agent_status.look(layout, Fixed()), now=NOW)
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge" and family.documentation
        for sample in family.samples:
            key = (
                sample.name.replace("byteor_agent_", "", 1),
                tuple(sorted(sample.labels.items())),
            )
            assert key not in found
            found[key] = sample.value
    return found


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.agent_run.mkdir(parents=True)
    layout.agent.mkdir(parents=True)
    return layout


def test_a_healthy_host_has_every_family(layout: Layout, holder: tuple[int, Path]) -> None:
    """Values, labels and escapes arrive as they were meant; the page lists every name."""
    os.link(holder[1], layout.agent_lock)
    layout.agent_status.write_text(json.dumps(STATUS))
    found = samples(layout)
    assert found["up", ()] == 1 and found["degraded", ()] == 1
    assert found["problem", (("code", "heartbeat_failing"),)] == 1
    assert found["heartbeat_age_seconds", ()] == 90 and found["status_age_seconds", ()] == 60
    task = (("task", "heartbeat"),)
    assert found["task_last_success_timestamp_seconds", task] == NOW - 90
    assert found["task_failures", task] == 1 and found["task_period_seconds", task] == 30
    assert ("task_last_success_timestamp_seconds", (("task", "artifacts"),)) not in found
    assert found["spool_artifacts", (("state", "pending"),)] == 2
    assert found["spool_bytes", ()] == 4096 and found["clock_skew_seconds", ()] == -2
    (info,) = [dict(labels) for name, labels in found if name == "info"]
    assert info["name"] == 'ed"ge\\1' and info["agent_id"] == "agt_1"
    assert {name for name, _ in found} <= set(metrics.HELP)


def test_a_host_without_an_agent_is_down(layout: Layout) -> None:
    """Never run, damaged, or down with a file that names a process: still a text that says so."""
    assert samples(layout)["up", ()] == 0
    layout.agent_status.write_text(json.dumps({**STATUS, "pid": os.getpid()}))
    found = samples(layout)
    assert found["up", ()] == 0 and found["problem", (("code", "agent_gone"),)] == 1
    layout.agent_status.write_text("{")
    assert samples(layout)["up", ()] == 0


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(STATUS)), _json, max_size=4),
    st.dictionaries(st.sampled_from(["agent_id", "expires_at", "name"]), _json, max_size=2),
    st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=9), _json), max_size=2),
)
def test_whatever_the_agent_wrote_is_read(
    layout: Layout, change: Any, identity: Any, loops: Any
) -> None:
    """Members of any type and name: a text that Prometheus accepts, a document of the schema."""
    document = {**STATUS, "identity": identity, "loops": {**STATUS["loops"], **loops}, **change}
    layout.agent_status.write_text(json.dumps(document))
    samples(layout)
    judge("byteor-agent", "status", json.dumps(agent_status.look(layout, Fixed())))


def test_the_page_lists_every_metric_with_its_help() -> None:
    """In the order of the output."""
    rows = re.findall(
        r"^\| `byteor_agent_(\w+)` \|[^|]*\| (.+) \|$", PAGE.read_text(), re.MULTILINE
    )
    assert rows == list(metrics.HELP.items())


def test_a_file_is_replaced_in_one_step(
    layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Readable by node_exporter; printed without it."""
    path = tmp_path / "byteor.prom"
    path.write_text("old")
    assert cli.agent_main(["--root", str(tmp_path), "metrics", "-o", str(path)]) == 0
    assert capsys.readouterr().out == "" and path.stat().st_mode & 0o777 == 0o644
    assert cli.agent_main(["--root", str(tmp_path), "metrics"]) == 0
    assert "byteor_agent_up 0\n" in path.read_text()
    assert "byteor_agent_up 0\n" in capsys.readouterr().out


def test_no_number_of_the_agents_file_ends_a_page(tmp_path: Path) -> None:
    """A number that no float can hold is as if it were absent."""
    huge = 10**400
    layout = Layout(tmp_path)
    layout.agent_run.mkdir(parents=True)
    loops = {
        "heartbeat": {"last_success_at": "2026-11-30T11:59:30Z", "period_s": huge},
        "deployments": {"download": {"deployment_id": "dep_1", "bytes": huge, "size": 3}},
    }
    status = {**STATUS, "loops": loops, "clock_skew_s": huge, "spool": {"bytes": huge}}
    layout.agent_status.write_text(json.dumps(status))
    document = agent_status.look(layout, Fixed())
    assert agent_status.last_beat(document, NOW) == (90.0, 30.0)
    assert agent_page.page(document, now=NOW) and document["clock_skew_s"] is None
