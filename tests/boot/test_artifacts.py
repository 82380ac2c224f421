"""Artifacts on a guest: root hands in what only root may read, the sandboxed agent is woken and
uploads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane

from . import hosts, seeds
from .guest import Guest
from .network import Network

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]


def test_root_uploads_what_only_root_may_read(
    suite: str,
    image: Sequence[Path],
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Far sooner than the agent looks by itself, without a secret; nothing of root's is left in the
    agent's directories.
    """
    with ControlPlane(tmp_path_factory.mktemp("plane"), host=network.plane_address) as plane:
        token, guest = hosts.mint(plane), new_guest(f"artifacts-{suite}", image)
        slow = {**hosts.settings(plane, token), "heartbeat_interval_s": 3600}
        guest.write_all(
            seeds.nocloud(
                seeds.user_data(slow, body={"hostname": guest.name}),
                name=guest.name,
                link=guest.link,
            )
        )
        guest.write(
            "/root/incident/environment.json",
            json.dumps({"DB_PASSWORD": "hunter2hunter2"}),
            mode=0o600,
        )
        guest.write("/root/incident/spec.kv", "a = b\n", mode=0o600)
        guest.boot()
        hosts.wait_for_agent(guest, plane)
        guest.wait_for(
            lambda: guest.unit(hosts.AGENT)["ActiveState"] == "active", "the agent", timeout=60
        )
        status = ("test", "-s", "/run/byteor-agent/status.json")
        guest.wait_for(
            lambda: guest.run(*status, check=False).returncode == 0, "its status", timeout=60
        )
        done = guest.run(
            "timeout",
            "60",
            "byteor-agent",
            "upload",
            "/root/incident",
            "--kind",
            "incident-bundle",
            "--wait",
        )
        assert "uploaded as" in done.stderr and "hunter2" not in done.stderr
        (row,) = plane.artifacts()
        assert row["kind"] == "incident-bundle"
        guest.write("/root/shot.bin", b"\0shot", mode=0o600)
        guest.run(
            "timeout",
            "60",
            "byteor-agent",
            "upload",
            "/root/shot.bin",
            "--kind",
            "snapshot",
            "--wait",
        )
        assert len(plane.artifacts()) == 2
        refused = guest.run(
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "byteor-agent", "upload", "/etc/hostname", "--kind", "diagnostic", check=False,
        )  # fmt: skip
        assert refused.returncode == 7 and "only root and byteor-agent" in refused.stderr
        owners = guest.run("find", "/var/lib/byteor/agent", "!", "-user", "byteor-agent").stdout
        assert owners == "" and hosts.objections(plane) == []
        guest.stop()
