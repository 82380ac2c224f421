"""Key sets from the plane into force, with real processes: rotations, hostile histories, unknown
keys, the way back.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    host.defaults(heartbeat_interval_s=5, activation={"window_s": 0})
    host.token(host.mint())
    assert host.run().code == 0
    return host


@contextlib.contextmanager
def running(host: Host, *, hurried: bool = True) -> Iterator[subprocess.Popen[str]]:
    process = host.agent() if hurried else host.start("byteor-agent", "run")
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in err, err


def ring(host: Host) -> dict[str, Any]:
    path = host.path("var/lib/byteor/activation/keyring.json")
    return dict(json.loads(path.read_text())) if path.exists() else {}


def wait_for_version(host: Host, version: int) -> None:
    host.plane.wait_for(lambda: ring(host).get("version") == version)


def codes(host: Host) -> list[str]:
    """What the latest beat complains of."""
    answered = host.plane.requests("heartbeat")
    return (
        [problem["code"] for problem in json.loads(answered[-1]["body"])["problems"]]
        if answered
        else []
    )


def test_rotations_are_followed_by_hint_and_after_a_long_sleep(host: Host) -> None:
    """One while the agent runs, five while it does not: the chain is walked, and a deployment
    signed by the newest key runs.
    """
    with running(host):
        wait_for_version(host, 1)
        host.plane.rotate(retire=["old"])
        host.hurry()
        wait_for_version(host, 2)
    for _ in range(5):
        host.plane.rotate(retire=["old"])
    made = host.plane.deploy()
    with running(host):
        wait_for_version(host, 7)
        host.plane.wait_for(lambda: host.plane.reports())
    assert [report["deployment_id"] for report in host.plane.reports()] == [made["deployment_id"]]


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ("unrelated_signer", "broken_chain"),
        ("equivocation", "equivocation"),
        ("lower_version", "rolled_back"),
    ],
)
def test_a_hostile_history_is_refused_and_said(host: Host, broken: str, code: str) -> None:
    """In status with the way back, and in the beats; the set in force stays in force, and what it
    signs still runs.
    """
    host.plane.rotate()
    with running(host):
        wait_for_version(host, 2)
        in_force = ring(host)["keys"]
    host.plane.rotate(broken=broken)
    # A set that does not raise the version is hinted by nothing: it is the daily look that finds
    # it.
    host.path("var/lib/byteor/agent/keysets.json").unlink(missing_ok=True)
    with running(host):
        host.plane.wait_for(lambda: (ring(host).get("refused") or {}).get("code") == code)
        host.hurry()
        host.plane.wait_for(lambda: "signing_keys_refused" in codes(host))
        assert ring(host)["version"] == 2 and ring(host)["keys"] == in_force
        shown = host.call("byteor-agent", "status")
        assert "signing_keys_refused" in shown.out and "trust --reset" in shown.out
        kid = next(key["kid"] for key in in_force if key["status"] == "active")
        host.plane.deploy(kid=kid)
        host.hurry()
        host.plane.wait_for(lambda: host.plane.reports())


def test_a_reset_is_followed_when_the_agent_is_told(host: Host) -> None:
    """The operator's way out of a broken chain: what the plane has now is taken anew, and
    deployments go on.
    """
    with running(host) as process:
        wait_for_version(host, 1)
        host.plane.rotate(broken="unrelated_signer")
        host.hurry()
        host.plane.wait_for(lambda: ring(host).get("refused"))
        assert host.call("byteor-firstboot", "trust", "--reset").code == 0
        assert ring(host).get("version") == 0
        process.send_signal(signal.SIGUSR1)
        host.plane.wait_for(lambda: (ring(host).get("version") or 0) >= 1)


def test_a_deployment_by_an_unknown_key_brings_the_key_sets(host: Host) -> None:
    """Also from a plane that hints nothing: refused first, fetched, judged again, active."""
    host.plane.configure(heartbeat_answer=204)
    with running(host):
        wait_for_version(host, 1)
        host.plane.wait_for(host.path("var/lib/byteor/agent/keysets.json").exists)
    # It looked a moment ago: only the deployment makes it look again.
    kids = host.plane.rotate()["active"]
    made = host.plane.deploy(kid=kids[-1])
    with running(host, hurried=False):
        host.plane.wait_for(lambda: host.plane.reports())
    assert [report["deployment_id"] for report in host.plane.reports()] == [made["deployment_id"]]
    history = json.loads(host.path("var/lib/byteor/activation/deployments.json").read_text())[
        "history"
    ]
    assert [row["code"] for row in history][0] == "unknown_key" and history[-1][
        "verdict"
    ] == "active"


def test_a_plane_that_is_away_takes_no_key_away(host: Host) -> None:
    """A failed refresh keeps the set in force."""
    with running(host):
        wait_for_version(host, 1)
    before = ring(host)
    host.plane.fault("signing-keys", "problem", status=503, code="x", times=None)
    host.path("var/lib/byteor/agent/keysets.json").unlink(missing_ok=True)
    with running(host):
        host.plane.wait_for(lambda: host.plane.requests("signing-keys")[-1]["faults"])
    assert ring(host) == before
