"""What an operator sees: ``verify`` and both ``status`` on hosts that are well, broken, down,
damaged or expired.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host, enrolled

STATUS = "run/byteor-agent/status.json"
DEPLOYMENTS = "var/lib/byteor/activation/deployments.json"


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    return enrolled(tmp_path / "root", control_plane, heartbeat_interval_s=5)


@pytest.fixture
def agent(host: Host) -> Iterator[subprocess.Popen[str]]:
    """A running agent that has beaten once."""
    process = host.agent()
    host.plane.wait_for(lambda: host.plane.requests("heartbeat"))
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def stamp(ago_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago_s))


def written(host: Host, **values: Any) -> dict[str, Any]:
    """A status.json as a running agent's would be on a good day, with the pid of this process."""
    document = {
        "v": 1, "running": True, "pid": os.getpid(), "written_at": stamp(1), "status": "ok", "problems": [], "spool": None,
        "identity": {"agent_id": "agt_1", "name": "n", "api_base_url": "https://p.example", "environment_id": "env_1",
                     "enrolled_at": stamp(3 * 86400), "expires_at": None, "source": "sealed"},
        "loops": {"heartbeat": {"last_success_at": stamp(4), "last_attempt_at": stamp(4), "next_attempt_at": stamp(-1.5),
                                "failures": 0, "period_s": 5, "problem": None, "hint": None}},
        "clock_skew_s": 0, **values,
    }  # fmt: skip
    host.write(STATUS, json.dumps(document))
    return document


def verified(host: Host, *arguments: str, **keywords: Any) -> tuple[int, list[dict[str, Any]]]:
    done = host.call("byteor-firstboot", "verify", "--json", *arguments, **keywords)
    return done.code, json.loads(done.out)["checks"]


def results(checks: list[dict[str, Any]]) -> list[str]:
    return [check["result"] for check in checks]


# -- verify


def test_a_damaged_status_file_fails_one_check_and_hides_none(host: Host) -> None:
    """Exit 10 with four lines: heartbeats failed and why, the list is asked all the same."""
    for content in (
        "{",
        "[]",
        '{"v": 1, "loops": 7, "identity": [], "problems": {"a": 1}}',
        " " * (2 << 20),
    ):
        host.write(STATUS, content)
        code, checks = verified(host, "--operator-token", "-", text=host.plane.operator_token)
        assert code == 10 and results(checks) == ["ok", "failed", "not checked", "not checked"], (
            checks
        )
        assert host.call("byteor-agent", "status").code == 0
        assert host.call("byteor-firstboot", "status").code == 0


def test_the_list_needs_no_agent_that_ran(host: Host) -> None:
    """The id comes from the sealed identity; an empty stdin asks nobody; a stranger's token is
    refused with a word.
    """
    code, checks = verified(host, "--operator-token", "-", text=host.plane.operator_token)
    assert (
        code == 10 and results(checks)[:2] == ["ok", "failed"] and "not run" in checks[1]["seen"]
    ), checks
    before = len(host.plane.requests())
    for empty in ("", "\n"):
        code, checks = verified(host, "--operator-token", "-", text=empty)
        assert checks[0]["result"] == "not checked" and "no token on stdin" in checks[0]["seen"]
    assert len(host.plane.requests()) == before
    host.plane.fault("list", "html", times=1, status=200)
    code, checks = verified(host, "--operator-token", "-", text=host.plane.operator_token)
    assert checks[0]["result"] == "failed" and "captive portal" in checks[0]["advice"]


def test_a_host_that_is_not_enrolled_fails_with_what_to_do(
    tmp_path: Path, control_plane: Any
) -> None:
    """No identity, no agent: one check fails with that, and nothing else can be checked."""
    host = Host(tmp_path / "empty", control_plane)
    code, checks = verified(host, "--operator-token", "-", text="opt_01234567890")
    assert code == 10 and results(checks) == ["not checked", "failed", "not checked", "not checked"]
    assert all("not enrolled" in check["seen"] for check in checks)
    assert checks[1]["advice"] == "byteor-firstboot status"


@pytest.mark.parametrize("how", ["as it is", "damaged", "no settings", "http"])
def test_an_operators_token_goes_where_root_says_alone(
    host: Host, tmp_path: Path, how: str
) -> None:
    """The agent's user writes status.json, and would choose the address (seen: over http too)."""
    heard = []
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: heard.append(server.accept()), daemon=True).start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    identity = {"api_base_url": address, "agent_id": "agt_1", "org_id": "o", "project_id": "p",
                "environment_id": "e"}  # fmt: skip
    written(host, identity=identity)
    settings = host.path("var/lib/byteor/settings.json")
    env = {}
    if how != "as it is":
        host.path("var/lib/byteor/identity/credentials.sealed").write_text("{")
    if how == "no settings":
        settings.unlink()
        host.path("etc/byteor/firstboot.yaml").unlink()
    if how == "http":
        settings.write_text(
            json.dumps({**json.loads(settings.read_text()), "api_base_url": address})
        )
        env = {"INVOCATION_ID": "0" * 32}
    text = host.plane.operator_token
    _, checks = verified(host, "--operator-token", "-", text=text, env=env)
    wanted = {"as it is": "ok", "damaged": "failed", "no settings": "failed", "http": "not checked"}
    assert checks[0]["result"] == wanted[how], checks
    if how == "damaged":
        assert "agt_1 is not among" in checks[0]["seen"], (
            "the control plane of root's file was asked"
        )
    server.close()
    assert not heard


def test_beats_that_were_accepted_are_not_enough_where_no_agent_runs(host: Host) -> None:
    """status.json is the agent's word; the lock that it holds is the kernel's."""
    written(host)
    _, checks = verified(host)
    assert checks[1]["result"] == "failed" and "does not run" in checks[1]["seen"]
    shown = json.loads(host.call("byteor-agent", "status", "--json").out)
    assert shown["state"] == "gone" and not shown["running"]
    for program in ("byteor-firstboot", "byteor-agent"):
        assert host.call(program, "status", "--check").code == 10
        assert host.call(program, "status", "--wait", "0.1").code == 6
    process = host.agent()
    try:
        host.plane.wait_for(lambda: host.plane.requests("heartbeat"))
        host.plane.wait_for(lambda: verified(host)[1][1]["result"] == "ok")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("loop", "current", "verdict", "result", "seen"),
    [
        (None, None, None, "not checked", "has not looked"),
        (
            {"last_success_at": None, "problem": "deployments: 403", "hint": "grant it"},
            None,
            None,
            "failed",
            "403",
        ),
        ({"last_success_at": "2026-01-01T00:00:00Z"}, None, None, "not checked", "assigned none"),
        ({"last_success_at": None}, None, None, "not checked", "not asked yet"),
        ({}, "active", "active", "ok", "dep_1, sequence 4, active"),
        ({}, "active", "refused", "failed", "bad_signature"),
        ({}, None, "failed", "failed", "bad_signature"),
        ({"last_success_at": "2026-01-01T00:00:00Z"}, None, "waiting", "not checked", "waits"),
    ],
)
def test_the_deployment_check(
    host: Host, loop: Any, current: Any, verdict: Any, result: str, seen: str
) -> None:
    """What is in force, what was refused and why, or why nothing can be said."""
    document = written(host)
    if loop is not None:
        written(host, loops={**document["loops"], "deployments": loop})
    deployments(host, current, verdict)
    _, checks = verified(host)
    assert checks[2]["result"] == result and seen in checks[2]["seen"], checks[2]


def deployments(host: Host, current: Any, verdict: Any) -> None:
    row = {"deployment_id": "dep_1", "sequence": 4, "spec_hash": "sha256:" + "0" * 64}
    envelope = {"envelope_sha256": "1" * 64}  # the one that is assigned now
    last = {**row, **envelope, "verdict": verdict, "code": "bad_signature", "at": stamp(60)}
    found = {
        "v": 1,
        "answered": {"request": None, **envelope},
        "current": {**row, "state": current} if current else None,
        "history": [last] if verdict else [],
    }
    host.write(DEPLOYMENTS, json.dumps(found))


# -- status


def test_a_good_day_in_both_pages(host: Host, agent: subprocess.Popen[str]) -> None:
    """The first line says ok; last contact, next attempt and the key's end are there; no hint where
    nothing is to do.
    """
    host.plane.wait_for(lambda: "ago, next" in host.call("byteor-firstboot", "status").out)
    page = host.call("byteor-agent", "status").out
    assert (
        page.splitlines()[0].startswith("agent          ok; running; ")
        and "problems       none" in page
    )
    assert "heartbeat" in page and "its key has no end" in page
    short = json.loads(host.call("byteor-firstboot", "status", "--json").out)
    assert (
        short["state"] == "enrolled"
        and short["agent"]["state"] == "running"
        and short["agent"]["status"] == "ok"
    )
    assert short["enrolled_at"] and "expires_at" in short


def test_an_agent_that_was_killed_is_not_shown_as_running(
    host: Host, agent: subprocess.Popen[str]
) -> None:
    """After kill -9 its file still says running; both pages say that it is not, and what to do."""
    agent.kill()
    agent.wait()
    for command in ("byteor-agent", "byteor-firstboot"):
        page = host.call(command, "status").out
        assert "NOT RUNNING" in page and "agent_gone" in page and "byteor-agent run --root" in page
    shown = json.loads(host.call("byteor-agent", "status", "--json").out)
    assert shown["running"] is False and shown["state"] == "gone" and shown["status"] == "degraded"


def test_what_is_wrong_is_said_with_what_to_do_while_the_agent_is_down(host: Host) -> None:
    """Key near its end, refused key set, failed deployment, problems of the agent's own, spool and
    clock: one page.
    """
    document = written(
        host,
        running=False,
        identity={
            "agent_id": "agt_1",
            "enrolled_at": stamp(86400),
            "expires_at": stamp(-13 * 86400),
        },
        clock_skew_s=420,
        spool={"pending": 2, "quarantined": 1, "bytes": 3 << 20},
        problems=[
            {
                "code": "artifact_quarantined",
                "detail": "one\x1b[31m\nartifact",
                "hint": "byteor-agent retry",
            },
            7,
            {},
        ],
    )
    assert document
    deployments(host, "active", "failed")
    refused = {"code": "equivocation", "detail": "other bytes", "at": "2026-01-01T00:00:00Z"}
    place = {"org_id": "org_1", "project_id": "prj_1", "environment_id": "env_1"}
    ring = {
        "v": 1, "place": place, "version": 3, "source": "pinned", "envelope": None, "keys": [], "pins": [],
        "refused": refused,
    }  # fmt: skip
    host.write("var/lib/byteor/activation/keyring.json", json.dumps(ring))
    page = host.call("byteor-agent", "status").out
    for word in (
        "DEGRADED, 5 problems", "runtime_key_expires", "signing_keys_refused", "equivocation", "deployment_failed",
        "agent_stopped", "artifact_quarantined", "byteor-agent retry", "2 waiting, 1 quarantined, 3.0 MiB", "7 min ahead",
        "version 3, from pinned",
    ):  # fmt: skip
        assert word in page, page
    assert "\x1b" not in page
    codes = [
        problem["code"]
        for problem in json.loads(host.call("byteor-agent", "status", "--json").out)["problems"]
    ]
    assert codes == ["agent_stopped", "artifact_quarantined", "runtime_key_expires", "signing_keys_refused",
                     "deployment_failed"]  # fmt: skip


def test_a_key_near_its_end_is_said_before_the_agent_ever_ran(
    tmp_path: Path, control_plane: Any
) -> None:
    """First boot knows the date from the sealed identity, and says it from 14 days before."""
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    host.token(host.mint())
    body = {
        "agent_id": "agt_1",
        "api_key": "brk_0123456789abcdef",
        "expires_at": stamp(-13 * 86400),
    }
    host.plane.fault(
        "enroll",
        "status",
        times=1,
        status=201,
        body=json.dumps(body),
        content_type="application/json",
    )
    assert host.run().code == 0
    shown = json.loads(host.call("byteor-firstboot", "status", "--json").out)
    assert (
        shown["expires_at"] == body["expires_at"]
        and "the runtime key expires" in shown["problem"]
        and shown["hint"]
    )


def test_before_the_first_run_after_boot_there_is_a_page_too(host: Host) -> None:
    """Exit 7 with what the activator left; the JSON says never_ran."""
    deployments(host, "active", None)
    done = host.call("byteor-agent", "status", "--json")
    shown = json.loads(done.out)
    assert (
        done.code == 7
        and shown["state"] == "never_ran"
        and shown["deployment"]["deployment_id"] == "dep_1"
    )
    done = host.call("byteor-agent", "status")
    assert done.code == 7 and "dep_1, sequence 4, active" in done.out
