"""Artifacts from the spool to the control plane: durable, once; whatever is refused, lost or away."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent.artifacts import spool
from firstboot.exchange import wake
from tests.integration.artifacts import MIB, SCOPES, Artifacts, artifacts_host
from tests.unit.test_packing import HIDDEN

host = artifacts_host


def test_an_upload_is_durable_without_an_agent_and_goes_when_there_is_one(host: Artifacts) -> None:
    """Spooled while the agent and the plane are away; uploaded byte for byte, with its metadata,
    soon after both are back.
    """
    host.plane.stop()
    data = os.urandom(300_000)
    done = host.upload(host.file("shot.bin", data))
    assert done.code == 0 and host.waiting() == [done.out.strip()]
    host.up()
    host.plane.restart()
    host.plane.wait_for(lambda: not host.waiting())
    (row,) = host.plane.artifacts()
    assert list(host.stored().values()) == [data]
    assert row["metadata"]["kind"] == "snapshot" and row["metadata"]["deployment_id"] is None
    again = host.upload(host.file("other.bin", data))
    assert again.code == 0 and again.out == done.out and row["artifact_id"] in again.err
    assert host.waiting() == []


def test_a_running_agent_is_woken_and_wait_says_what_came_of_it(host: Artifacts) -> None:
    """Far sooner than its period; one line on stderr, the id alone on stdout; exit 5 with the
    reason for a refusal.
    """
    path = host.layout.settings
    path.write_text(json.dumps({**json.loads(path.read_text()), "heartbeat_interval_s": 3600}))
    agent = host.up()
    host.plane.wait_for(lambda: host.layout.agent_status.exists())
    began = time.monotonic()
    done = host.upload(host.file("a.txt", "a"), "diagnostic", "--wait")
    assert done.code == 0 and time.monotonic() - began < 20
    assert (
        done.out.count("\n") == 1
        and f"uploaded as {host.plane.artifacts()[0]['artifact_id']}" in done.err
    )
    host.plane.configure(artifact_limit_bytes=10)
    refused = host.upload(host.file("b.txt", "b" * 11), "diagnostic", "--wait")
    name = refused.out.strip()
    assert refused.code == 5 and "413" in refused.err and f"retry {name}" in refused.err
    reason = json.loads((host.layout.quarantine / name / "reason.json").read_text())
    assert (reason["status"], reason["code"]) == (413, "artifact_too_large")
    page = host.call("byteor-agent", "status").out
    assert f"byteor-agent retry {name}" in page and "1 quarantined" in page
    assert host.status()["spool"]["quarantine"][0]["id"] == name
    assert (
        host.upload(host.file("b2.txt", "b" * 11), "diagnostic").code == 5
    )  # the same content: already refused
    host.plane.configure(artifact_limit_bytes=64 * MIB)
    assert host.call("byteor-agent", "retry", name).code == 0
    host.plane.wait_for(lambda: len(host.plane.artifacts()) == 2 and not host.waiting())
    assert spool.ids(host.layout.quarantine) == []
    assert host.call("byteor-agent", "retry", name).code == 4
    assert agent.poll() is None


def test_verify_uploads_on_request(host: Artifacts) -> None:
    """The guide's fourth check, with a small diagnostic; a plane that refuses it fails the
    check.
    """
    host.up()
    host.plane.wait_for(lambda: host.plane.requests("heartbeat"))
    done = host.call("byteor-firstboot", "verify", "--upload-test", "--json")
    check = json.loads(done.out)["checks"][3]
    assert check["result"] == "ok" and host.plane.artifacts()[0]["artifact_id"] in check["seen"], (
        done
    )
    host.plane.scopes(host.plane.agents()[0]["agent_id"], SCOPES)
    done = host.call("byteor-firstboot", "verify", "--upload-test", "--json")
    check = json.loads(done.out)["checks"][3]
    assert (
        done.code == 10 and check["result"] == "failed" and "agent:artifact_upload" in check["seen"]
    )


def test_a_missing_scope_loses_nothing_and_flows_when_granted(host: Artifacts) -> None:
    """403: kept, the scope named in status and heartbeat, the beats go on; granted: all are there,
    in order.
    """
    agent_id = host.plane.agents()[0]["agent_id"]
    host.plane.scopes(agent_id, SCOPES)
    names = [host.put(bytes([n]) * 100) for n in range(3)]
    waiting = host.start(
        "byteor-agent", "upload", str(host.file("one.bin", b"more")), "--kind", "snapshot", "--wait"
    )
    host.plane.wait_for(lambda: len(host.waiting()) == 4)
    host.up()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 5 and "agent:artifact_upload" in err
    assert "stays in the spool" in err
    names.append(out.strip())
    host.plane.wait_for(host.trouble)
    host.hurry()

    def said() -> bool:
        beat = host.plane.agents()[0]["last_heartbeat"] or {}
        named = any(
            "agent:artifact_upload" in problem["detail"] for problem in beat.get("problems", ())
        )
        return named and beat["spool"] == {"pending": 4, "quarantined": 0}

    host.plane.wait_for(said)
    shown = host.status()
    assert (
        "agent:artifact_upload" in shown["loops"]["artifacts"]["problem"]
        and shown["status"] == "degraded"
    )
    assert host.waiting() == names and host.plane.artifacts() == []
    host.plane.scopes(agent_id, [*SCOPES, "agent:artifact_upload"])
    host.hurry()  # after half a minute, as two requests in a minute are allowed
    host.plane.wait_for(lambda: not host.waiting(), limit_s=100)
    assert [row["size"] for row in host.plane.artifacts()] == [100, 100, 100, 4]
    first = [
        request["metadata"]["sha256"]
        for request in host.plane.requests("artifacts")
        if request["status"] == 201
    ]
    assert first[:3] == [hashlib.sha256(bytes([n]) * 100).hexdigest() for n in range(3)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("drop", {"when": "after"}),
        ("drop", {"when": "before", "reset": True}),
        ("cut", {"at": 30, "when": "after"}),
        ("garbage", {}),
        ("problem", {"status": 429, "headers": {"Retry-After": "1"}}),
    ],
)
def test_an_answer_that_is_lost_is_one_artifact(
    host: Artifacts, kind: str, options: dict[str, Any]
) -> None:
    """Before or after the plane stored it: sent again, there once, not in quarantine."""
    data = os.urandom(MIB // 2)
    host.put(data)
    host.plane.fault("artifacts", kind, **options)
    host.up()
    host.plane.wait_for(lambda: not host.waiting())
    assert list(host.stored().values()) == [data] and len(host.plane.requests("artifacts")) == 2
    assert spool.ids(host.layout.quarantine) == []


@pytest.mark.parametrize(("status", "settings"), [(403, {}), (413, {"artifact_limit_bytes": 1000})])
def test_an_answer_that_comes_while_we_send_is_read(
    host: Artifacts, status: int, settings: dict[str, Any]
) -> None:
    """The plane refuses 30 MiB after the headers and reads no more: its word counts, not the broken
    pipe.
    """
    if status == 403:
        host.plane.scopes(host.plane.agents()[0]["agent_id"], SCOPES)
    host.plane.configure(drain_refused=False, **settings)
    host.put(os.urandom(30 * MIB))
    host.up()
    host.plane.wait_for(
        lambda: (host.status()["loops"].get("artifacts") or {}).get("last_attempt_at")
    )
    host.plane.wait_for(lambda: host.plane.requests("artifacts") and _settled(host, status))


def _settled(host: Artifacts, status: int) -> bool:
    shown = host.status()
    refused = str((shown["loops"]["artifacts"]).get("problem"))
    return shown["spool"]["quarantined"] == 1 if status == 413 else "403" in refused


@pytest.mark.parametrize(("answer", "status"), [("problem", 503), ("html", 413)])
def test_sixty_three_mib_are_not_sent_again_and_again(
    host: Artifacts, answer: str, status: int
) -> None:
    """However often the agent is woken: a 503, or a 413 of a proxy, is followed by a pause."""
    host.plane.fault("artifacts", answer, status=status, times=None)
    host.put(os.urandom(63 * MIB))
    host.up()
    host.plane.wait_for(lambda: host.plane.requests("artifacts"))
    for number in range(20):
        host.put(b"small %d" % number)
        wake.wake(host.layout, signal.SIGUSR2)
        time.sleep(0.2)
    sizes = [int(one["headers"]["content-length"]) for one in host.plane.requests("artifacts")]
    assert len([size for size in sizes if size > MIB]) == 1
    assert str(status) in json.dumps(host.status())


def test_what_is_damaged_on_this_disk_never_reaches_the_plane(host: Artifacts) -> None:
    """Flipped in the spool, at the same length: the request is not completed, the artifact is kept
    in quarantine.
    """
    name = host.put(b"a" * (3 * MIB))
    with open(host.layout.spool / name / "data", "r+b") as stream:
        stream.seek(2 * MIB)
        stream.write(b"b")
    host.put(b"good")
    host.up()
    host.plane.wait_for(lambda: not host.waiting())
    assert list(host.stored().values()) == [b"good"] and spool.ids(host.layout.quarantine) == [name]
    assert (
        json.loads((host.layout.quarantine / name / "reason.json").read_text())["code"] == "damaged"
    )


def test_the_activators_diagnostics_flow(host: Artifacts) -> None:
    """What stands beside an outcome is uploaded, redacted, with the deployment that it is about."""
    made = host.plane.deploy()
    outcomes = host.path("var/lib/byteor/activation/outcomes")
    outcomes.mkdir(parents=True)
    report = {
        "report_id": "6a6f2f1e-9e0b-4d1c-8e52-0d7a4f5b6c7d", "status": "failed", "sequence": made["sequence"],
        "spec_hash": made["spec_hash"], "reason": "health", "occurred_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    (outcomes / "00000001.txt").write_text(f"health check failed\npassword: {HIDDEN}\n")
    (outcomes / "00000001.json").write_text(
        json.dumps({"v": 1, "deployment_id": made["deployment_id"], "report": report})
    )
    host.up()
    host.plane.wait_for(lambda: host.plane.artifacts())
    (row,) = host.plane.artifacts()
    assert list(host.stored().values()) == [b"health check failed\npassword: <secret>\n"]
    assert (row["kind"], row["metadata"]["deployment_id"]) == ("diagnostic", made["deployment_id"])


def _peak_kib(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_memory_does_not_grow_with_the_artifact(host: Artifacts) -> None:
    """64 MiB leave the agent's peak where 1 MiB left it."""
    agent = host.up(new=True)
    host.put(os.urandom(MIB))
    host.plane.wait_for(lambda: not host.waiting())
    before = _peak_kib(agent.pid)
    host.put(os.urandom(64 * MIB))
    wake.wake(host.layout)
    host.plane.wait_for(lambda: not host.waiting())
    assert _peak_kib(agent.pid) - before < 4 * 1024
    assert len(host.stored()) == 2
