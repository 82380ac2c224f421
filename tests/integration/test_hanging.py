"""A control plane that answers nothing but heartbeats: beats come in time, and the end does too."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host, on_this_machine
from tests.integration.loops import SPEC_HASH

PERIOD_S = 5.0
OTHERS_S = 10.0  # the longest request but the heartbeat's
CONTROL = {"deployments", "keysets", "reports"}  # they share a thread with the heartbeat


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    host.defaults(heartbeat_interval_s=int(PERIOD_S))
    host.token(host.mint())
    assert host.run().code == 0
    return host


@pytest.fixture
def report(host: Host) -> None:
    """Something to report, so that this request hangs too."""
    outcomes = host.path("var/lib/byteor/activation/outcomes")
    outcomes.mkdir(parents=True)
    said = {
        "report_id": str(uuid.uuid4()),
        "status": "active",
        "sequence": 1,
        "spec_hash": SPEC_HASH,
        "reason": None,
        "occurred_at": "2026-01-01T00:00:00Z",
    }
    document = {"v": 1, "deployment_id": "dep_1", "report": said}
    (outcomes / "00000001.json").write_text(json.dumps(document))


def test_no_beat_is_late_whatever_else_hangs(host: Host, report: None, tmp_path: Path) -> None:
    """Deployments, key sets, reports and an upload hang: at most the period and 10 s between two
    beats, three threads, each trouble shown, and SIGTERM ends it at once.
    """
    hanging = ("latest", "signing-keys", "status", "artifacts")
    for request in hanging:
        host.plane.fault(request, "hang", times=None)
    (tmp_path / "snapshot").write_bytes(b"x" * 4096)
    done = host.call("byteor-agent", "upload", str(tmp_path / "snapshot"), "--kind", "snapshot")
    assert done.code == 0, done
    process = host.start("byteor-agent", "run")
    try:
        host.plane.wait_for(
            lambda: (
                {fault["operation"] for fault in host.plane.faults() if fault["hits"]}
                == set(hanging)
            ),
        )
        host.plane.wait_for(lambda: _failing(host) >= CONTROL, limit_s=120)
        beats = len(_beats(host))
        host.plane.wait_for(lambda: len(_beats(host)) > beats)
        assert len(os.listdir(f"/proc/{process.pid}/task")) == 3
        assert "heartbeat" not in _failing(host)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0 and time.monotonic() - began < on_this_machine(3.0)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    at = _beats(host)
    longest = max(later - earlier for earlier, later in zip(at, at[1:]))
    assert longest <= 1.1 * PERIOD_S + OTHERS_S + on_this_machine(3.0), at
    assert longest > 1.1 * PERIOD_S  # something was in the way


def _failing(host: Host) -> set[str]:
    path = host.path("run/byteor-agent/status.json")
    loops = json.loads(path.read_text())["loops"] if path.exists() else {}
    return {name for name, loop in loops.items() if loop["outcome"] == "retry"}


def _beats(host: Host) -> list[float]:
    return [request["at"] for request in host.plane.requests("heartbeat")]
