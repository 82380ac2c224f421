"""Follow the runbook's operations on a real host, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host

DROP_PLACE = "run/byteor-firstboot/settings.yaml"


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    return host


def agents(host: Host) -> list[str]:
    return [agent["agent_id"] for agent in host.plane.agents()]


def status(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.call("byteor-firstboot", "status", "--json").out)
    return found


def test_reenroll_a_host_from_standard_input(host: Host) -> None:
    """A new agent; the old one stays in the list until somebody deletes it."""
    before = agents(host)
    done = host.call("byteor-firstboot", "reenroll", "--token-file", "-", text=host.mint())
    assert done.code == 0, done
    assert len(agents(host)) == 2 and status(host)["agent_id"] not in before


def test_reenroll_a_fleet_by_the_token_file(host: Host) -> None:
    """The token that lies on each host is used by reenroll alone, and is gone then."""
    host.token(host.mint())
    assert host.run().code == 0 and len(agents(host)) == 1
    assert host.call("byteor-firstboot", "reenroll").code == 0
    assert len(agents(host)) == 2
    assert not host.path("etc/byteor/enrollment-token").exists()


def test_move_a_host_to_another_environment(host: Host) -> None:
    """Settings in the drop place name the new environment, and reenroll follows them."""
    place = {"environment_id": "env_2"}
    host.plane.environment(where=place)
    token = host.plane.mint(where=place)
    drop = host.path(DROP_PLACE)
    drop.parent.mkdir(mode=0o700, exist_ok=True)
    host.write(
        DROP_PLACE,
        json.dumps(host.settings(environment_id="env_2", enrollment_token=token)),
        0o600,
    )
    done = host.call("byteor-firstboot", "reenroll")
    assert done.code == 0, done
    frozen = json.loads(host.path("var/lib/byteor/settings.json").read_text())
    assert frozen["environment_id"] == "env_2"
    assert status(host)["state"] == "enrolled"
