"""The command of the reference control plane says the same words as the fixture."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane
from tests.controlplane.plain import PlainHost

TOP = Path(__file__).parents[2]


def run(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.controlplane", "--state", str(state), *words]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=60)


def lines(state: Path, *words: str) -> list[str]:
    done = run(state, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def host(control_plane: ControlPlane) -> Iterator[PlainHost]:
    with PlainHost(control_plane) as one:
        yield one


def test_mint_agents_requests_and_violations(control_plane: ControlPlane, host: PlainHost) -> None:
    """A minted token enrolls; agents and requests show it without any secret."""
    state = control_plane.state_dir
    token, other = lines(state, "mint", "--count", "2")
    host.enroll(token, {"name": "edge-node-01"})
    host.beat()
    agents = "\n".join(lines(state, "agents"))
    assert "edge-node-01" in agents
    assert " ok " in agents
    asked = "\n".join(lines(state, "requests"))
    assert "201 POST" in asked
    assert token not in asked + agents
    assert other not in asked + agents
    assert lines(state, "violations") == []


def test_deploy_rotate_and_approve(
    control_plane: ControlPlane, host: PlainHost, tmp_path: Path
) -> None:
    """Files become a deployment, a rotation a key set, a spec an approval; a rule can be broken by
    its code.
    """
    state, spec = control_plane.state_dir, tmp_path / "spec.kv"
    spec.write_text("name = edge\n")
    made = json.loads(lines(state, "deploy", str(spec), "--posture", "prod")[0])
    host.enrolled()
    assert host.beat().json()["deployment_id"] == made["deployment_id"]
    assert json.loads(lines(state, "rotate", "--retire")[0])["version"] == 2
    assert lines(state, "approve", str(spec))[0].count(".") == 1
    assert json.loads(lines(state, "deploy", "--broken", "spec_hash")[0])["sequence"] == 2
    assert run(state, "deploy", "--broken", "nonsense").returncode == 1


def test_faults(control_plane: ControlPlane, host: PlainHost) -> None:
    """Faults are added, listed with what they hit, and cleared."""
    state = control_plane.state_dir
    lines(
        state,
        "faults",
        "add",
        "healthz",
        "problem",
        "--option",
        "status=500",
        "--option",
        "times=2",
    )
    assert host.http.get("/healthz").status_code == 500
    assert "1 of 2 times" in lines(state, "faults")[0]
    lines(state, "faults", "clear")
    assert host.http.get("/healthz").status_code == 200
    wrong = run(state, "faults", "add", "healthz", "nonsense")
    assert (wrong.returncode, "no fault nonsense" in wrong.stderr) == (1, True)


def test_watch_shows_who_comes(control_plane: ControlPlane, host: PlainHost) -> None:
    """agents --watch paints the table again and again, until it is interrupted."""
    command = [
        sys.executable,
        "-m",
        "tests.controlplane",
        "--state",
        str(control_plane.state_dir),
        "agents",
        "--watch",
    ]
    with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert "AGENT" in watch.stdout.readline()
        host.enrolled("edge-node-07")
        assert any("edge-node-07" in line for line in watch.stdout)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 130


def test_serve_from_a_shell_keeps_its_address(tmp_path: Path) -> None:
    """A plane started by hand again with the same state has the same address and agents; without
    one: exit 1.
    """
    addresses = []
    for _ in range(2):
        command = [sys.executable, "-m", "tests.controlplane", "--state", str(tmp_path), "serve"]
        with subprocess.Popen(command, cwd=TOP, stderr=subprocess.PIPE, text=True) as serving:
            assert serving.stderr is not None
            addresses.append(serving.stderr.readline())
            assert lines(tmp_path, "mint")[0].startswith("bet_")
            serving.send_signal(signal.SIGINT)
            assert serving.wait(60) == 0
    assert addresses[0] == addresses[1]
    assert "https://127.0.0.1:" in addresses[0]
    nobody = run(tmp_path, "mint")
    assert (
        nobody.returncode,
        nobody.stderr.startswith("controlplane: error: no control plane serves"),
    ) == (1, True)
