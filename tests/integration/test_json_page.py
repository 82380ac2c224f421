"""Hold the JSON page against what the commands print on a host that has everything to tell."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Done, Host
from tests.unit.test_pages import json_section

# Members whose own members are names of this host, and not of the document.
FREE = ("encodings",)


def members(value: object) -> set[str]:
    """Return the name of every member, at any depth."""
    if isinstance(value, list):
        return set().union(*map(members, value))
    if not isinstance(value, dict):
        return set()
    inner = (members(item) for name, item in value.items() if name not in FREE)
    return set(value).union(*inner)


def listed(command: str) -> set[str]:
    text = json_section(command)
    return {"v", *text.split("`")[1::2]}


def document(done: Done) -> dict[str, Any]:
    assert done.out, done
    found: dict[str, Any] = json.loads(done.out)
    assert isinstance(found["v"], int)
    return found


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    check = ["/bin/sh", "-c", f"! grep -q broken {host.root}/var/lib/byteor/current/spec.kv"]
    host.defaults(heartbeat_interval_s=5, activation={"health": check, "window_s": 0})
    return host


def test_every_member_that_a_command_prints_is_on_the_page(host: Host) -> None:
    """Of each document, before and after enrollment, with deployments, keys and a refused one."""

    def judge(command: str, *words: str, **keywords: Any) -> None:
        program, name = command.split()
        printed = document(host.call(program, name, "--json", *words, **keywords))
        agent = printed.pop("agent", None)
        known = listed(command)
        assert members(printed) <= known, members(printed) - known
        assert members(agent) <= listed("byteor-agent status"), agent

    token = host.mint()
    block = host.comment_block(token)
    judge("byteor-firstboot check-userdata", "-", text=block)
    judge("byteor-firstboot check-userdata", "-", text="#cloud-config\n")
    judge("byteor-firstboot status")
    host.user_data(block)
    judge("byteor-firstboot preflight")
    judge("byteor-firstboot status")
    assert host.run().code == 0
    judge("byteor-firstboot erase")
    judge("byteor-firstboot generalize", "--check")
    agent: subprocess.Popen[str] = host.start("byteor-agent", "run")
    try:
        plane = host.plane
        for text, status in (("good", "active"), ("broken", "rolled_back")):
            made = plane.deploy({"spec.kv": text.encode()})
            wanted = (made["deployment_id"], status)
            plane.wait_for(lambda: host.path("run/byteor-agent/status.json").exists())
            agent.send_signal(signal.SIGUSR1)
            assert plane.wait_for(
                lambda w=wanted: w in [(r["deployment_id"], r["status"]) for r in plane.reports()],
            )
        judge("byteor-agent status")
        judge("byteor-agent deployments")
        judge("byteor-firstboot status")
        judge("byteor-firstboot trust")
        judge("byteor-firstboot verify", "--operator-token", "-", text=plane.operator_token)
    finally:
        agent.terminate()
        agent.communicate(timeout=60)
    judge("byteor-firstboot trust", "--reset")
    judge("byteor-firstboot generalize", "--force")
