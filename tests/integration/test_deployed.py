"""Deployments as an operator lives with them: agent, activator and plane together, and what is
active stays active.
"""

from __future__ import annotations

import datetime
import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host

FLAG = "broken"


class Edge:
    """An enrolled host whose agent runs; `look` hurries it up, since hints are followed once a
    minute at the most.
    """

    def __init__(self, host: Host) -> None:
        self.host, self.plane = host, host.plane
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = self.host.agent()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.communicate(timeout=60)
            self.process = None

    def look(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)

    def deploy(self, text: str, **options: Any) -> Mapping[str, Any]:
        made: Mapping[str, Any] = self.plane.deploy({"spec.kv": text.encode()}, **options)
        self.look()
        return made

    def spec(self) -> str | None:
        path = self.host.path("var/lib/byteor/current/spec.kv")
        return path.read_text() if path.exists() else None

    def wait_for_spec(self, text: str) -> None:
        assert self.plane.wait_for(lambda: self.spec() == text), self.spec()

    def reports(self) -> list[tuple[str, str, str | None]]:
        return [
            (one["deployment_id"], one["status"], one["reason"]) for one in self.plane.reports()
        ]

    def wait_for_report(self, made: Mapping[str, Any], status: str) -> None:
        wanted = (made["deployment_id"], status)
        assert self.plane.wait_for(lambda: wanted in [row[:2] for row in self.reports()]), (
            self.reports()
        )

    def verdict(self) -> dict[str, Any]:
        done = self.host.call("byteor-agent", "deployments", "--json")
        rows = json.loads(done.out)["deployments"]
        return dict(rows[-1]) if rows else {}

    def wait_for_verdict(self, verdict: str, code: str | None) -> None:
        def is_it() -> bool:
            return (self.verdict().get("verdict"), self.verdict().get("code")) == (verdict, code)

        assert self.plane.wait_for(is_it), self.verdict()


@pytest.fixture
def edge(tmp_path: Path, control_plane: Any) -> Iterator[Edge]:
    host = Host(tmp_path / "root", control_plane)
    check = ["/bin/sh", "-c", f"! grep -q {FLAG} {host.root}/var/lib/byteor/current/spec.kv"]
    host.defaults(heartbeat_interval_s=5, activation={"health": check, "window_s": 0})
    host.token(host.mint())
    assert host.run().code == 0
    edge = Edge(host)
    edge.start()
    yield edge
    edge.stop()


def test_a_good_one_a_bad_one_and_the_plane_takes_it_back(edge: Edge) -> None:
    """Active, then failed and rolled back in that order; a rollback that the plane orders names the
    old id anew.
    """
    first = edge.deploy("a = 1\n")
    edge.wait_for_report(first, "active")
    bad = edge.deploy(f"a = {FLAG}\n")
    edge.wait_for_report(bad, "rolled_back")
    assert edge.spec() == "a = 1\n"
    assert edge.reports()[1:] == [
        (bad["deployment_id"], "failed", "health_check_failed"), (bad["deployment_id"], "rolled_back", "health_check_failed"),
    ]  # fmt: skip
    edge.wait_for_report(edge.deploy("a = 3\n"), "active")
    again = edge.deploy("a = 1\n", deployment_id=first["deployment_id"])
    edge.wait_for_spec("a = 1\n")
    edge.wait_for_verdict("active", "no_unit")
    assert edge.verdict()["name"] == f"{first['deployment_id']}-{again['sequence']}"
    edge.plane.wait_for(lambda: _beaten(edge).get("sequence") == again["sequence"])
    named = {name: again[name] for name in ("deployment_id", "sequence", "spec_hash")}
    assert _beaten(edge) == {**named, "state": "active"}


def _beaten(edge: Edge) -> Mapping[str, Any]:
    return (edge.plane.agents()[0]["last_heartbeat"] or {}).get("deployment") or {}


def test_production_needs_an_approval(edge: Edge) -> None:
    """With one it is activated and lies beside the specification; without, or over, it is refused
    and the plane told.
    """
    edge.plane.environment(posture="prod")
    edge.wait_for_report(edge.deploy("a = 1\n"), "active")
    assert edge.host.path("var/lib/byteor/current/approval.cred").exists()
    for code in ("approval_missing", "approval_expired"):
        refused = edge.deploy("a = 2\n", broken=code)
        edge.wait_for_report(refused, "failed")
        assert edge.reports()[-1] == (refused["deployment_id"], "failed", code)
    assert edge.spec() == "a = 1\n"


def test_what_is_active_stays_active(edge: Edge) -> None:
    """Past the end of its key, with the plane away, across restarts of the agent: nothing takes it
    out of force.
    """
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=12)
    rotated = edge.plane.rotate(not_after=end.strftime("%Y-%m-%dT%H:%M:%SZ"))
    newest = rotated["active"][-1]
    edge.wait_for_report(edge.deploy("a = 1\n", kid=newest), "active")
    edge.plane.wait_for(lambda: datetime.datetime.now(datetime.timezone.utc) > end)
    edge.deploy("a = 2\n", kid=newest)
    edge.wait_for_verdict("refused", "unknown_key")
    assert edge.spec() == "a = 1\n"
    edge.plane.stop()
    edge.stop(signal.SIGKILL)
    edge.start()
    ring = json.loads(edge.host.path("var/lib/byteor/activation/keyring.json").read_text())
    edge.look()
    assert edge.spec() == "a = 1\n" and ring["version"] == rotated["version"]
    edge.plane.restart()
    edge.wait_for_report(edge.deploy("a = 3\n"), "active")


def test_a_withdrawn_deployment_is_not_brought_into_force(edge: Edge) -> None:
    """What the plane no longer assigns while the host was off is not activated from an old
    inbox.
    """
    edge.wait_for_report(edge.deploy("a = 1\n"), "active")
    edge.stop()
    inbox = edge.host.path("var/lib/byteor/agent/inbox")
    stale = (inbox / "envelope.json").read_bytes()
    edge.start()
    edge.wait_for_report(edge.deploy("a = 2\n"), "active")
    edge.stop()
    (inbox / "envelope.json").write_bytes(stale)
    (inbox / "request.json").write_text(
        '{"v": 1, "request": "00000000-0000-4000-8000-000000000000", "clock_offset_s": 0}'
    )
    assert edge.host.call("byteor-agent", "activate").code == 0
    assert edge.spec() == "a = 2\n" and edge.verdict()["code"] == "rolled_back_sequence"


def test_a_plane_that_echoes_the_key_does_not_publish_it(edge: Edge) -> None:
    """Whatever its problem documents quote: neither status, beats, reasons nor the journal show the
    runtime key.
    """
    from firstboot.base.layout import Layout
    from firstboot.identity import store

    key = store.required(Layout(edge.host.root)).api_key.reveal()
    for operation, status in (("latest", 403), ("signing-keys", 400), ("artifacts", 422)):
        edge.plane.fault(operation, "problem", status=status, code=key, times=None)
    report = edge.host.write("report.txt", "words\n")
    edge.host.call("byteor-agent", "upload", str(report), "--kind", "diagnostic")
    quarantine = edge.host.path("var/lib/byteor/agent/quarantine")
    edge.plane.wait_for(lambda: quarantine.exists() and list(quarantine.glob("*/reason.json")))
    edge.look()
    edge.plane.wait_for(lambda: "<secret>" in edge.host.call("byteor-agent", "status").out)
    beats = len(edge.plane.requests("heartbeat"))
    edge.host.hurry()
    edge.plane.wait_for(lambda: len(edge.plane.requests("heartbeat")) > beats + 1)
    assert edge.process is not None
    edge.process.send_signal(signal.SIGTERM)
    _, err = edge.process.communicate(timeout=60)
    edge.process = None
    shown = [edge.host.call("byteor-agent", "status", *more).out for more in ((), ("--json",))]
    written = [
        path.read_text() for path in edge.host.root.rglob("*.json") if "identity" not in path.parts
    ]
    bodies = [str(request["body"]) for request in edge.plane.requests("heartbeat")]
    assert not any(key in text for text in (err, *shown, *written, *bodies))


def test_the_hosts_own_key_never_goes_out(edge: Edge) -> None:
    """Known to who hands in as root, it is replaced in a text; in what is sent as it is, it stops
    the artifact.
    """
    from firstboot.base.layout import Layout
    from firstboot.identity import store

    key = store.required(Layout(edge.host.root)).api_key.reveal()
    text = edge.host.write("report.txt", f"connecting with {key} failed\n")
    raw = edge.host.write("dump.bin", b"\0\1" + b"x" * 300_000 + key.encode() + b"\0")
    assert (
        edge.host.call("byteor-agent", "upload", str(text), "--kind", "diagnostic", "--wait").code
        == 0
    )
    done = edge.host.call("byteor-agent", "upload", str(raw), "--kind", "snapshot", "--wait")
    assert done.code == 5 and "its own" not in done.out
    (stored,) = edge.plane.artifacts()
    assert stored["kind"] == "diagnostic"
    assert edge.plane.violations() == []


def test_an_operators_word_is_heard_at_once(edge: Edge) -> None:
    """After `retry` the plane has the report, after `trust --reset` the ring its keys, without
    waiting for a period.
    """
    edge.wait_for_report(edge.deploy("a = 1\n"), "active")
    bad = edge.deploy(f"a = {FLAG}\n")
    edge.wait_for_report(bad, "rolled_back")
    path = edge.host.path("etc/byteor/firstboot.yaml")
    settings = edge.host.path("var/lib/byteor/settings.json")
    frozen = json.loads(settings.read_text())
    settings.write_text(json.dumps({**frozen, "activation": {"window_s": 0}}))
    assert path.exists() and edge.host.call("byteor-agent", "retry", bad["deployment_id"]).code == 0
    edge.plane.wait_for(lambda: edge.reports()[-1][:2] == (bad["deployment_id"], "active"))
    assert (
        json.loads(edge.host.call("byteor-firstboot", "trust", "--reset", "--json").out)[
            "agent_told"
        ]
        is True
    )
    ring = edge.host.path("var/lib/byteor/activation/keyring.json")
    edge.plane.wait_for(lambda: json.loads(ring.read_text())["version"] > 0)
