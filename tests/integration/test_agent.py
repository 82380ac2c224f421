"""The agent driven as systemd drives it: hand-over, beats, status, watchdog, orderly end; no answer
costs the identity.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.integration.host import Host, enrolled, on_this_machine

PERIOD_S = 5


class Agent:
    """A running ``byteor-agent run``, ended with the test."""

    def __init__(self, host: Host, *, new: bool = False, **env: str) -> None:
        self.host = host
        self.process = host.start("byteor-agent", "run", env=env, new=new)

    def hurry(self) -> Agent:
        """Do not wait for its next beat."""
        self.host.hurry()
        return self

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float, str]:
        began = time.monotonic()
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, time.monotonic() - began, err


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    return enrolled(tmp_path / "root", control_plane, heartbeat_interval_s=PERIOD_S)


@pytest.fixture
def start(host: Host) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def begin(**options: Any) -> Agent:
        agents.append(Agent(host, **options))
        return agents[-1]

    yield begin
    for agent in agents:
        if agent.process.poll() is None:
            agent.process.kill()
            agent.process.communicate()


def beats(host: Host) -> list[dict[str, Any]]:
    answered = [request for request in host.plane.requests("heartbeat") if not request["faults"]]
    return [json.loads(request["body"]) for request in answered if (request["status"] or 999) < 300]


def status(host: Host) -> dict[str, Any]:
    done = host.call("byteor-agent", "status", "--json")
    assert done.code == 0, done
    return json.loads(done.out)


def wait_for_beats(host: Host, count: int, *, limit_s: float = 60.0) -> list[dict[str, Any]]:
    found = host.plane.wait_for(lambda: len(beats(host)) >= count and beats(host), limit_s=limit_s)
    return list(found)


def test_beats_arrive_and_the_hand_over_is_gone(host: Host, start: Callable[..., Agent]) -> None:
    """Two beats of the contract's shape with growing sequence; no file with the key stays."""
    start()
    first, second = wait_for_beats(host, 2)[:2]
    assert second["sequence"] > first["sequence"]
    assert (
        first["status"] == "ok"
        and first["problems"] == []
        and first["boot_id"] == second["boot_id"]
    )
    assert not host.path("run/byteor-agent/handover.json").exists()
    shown = status(host)
    assert shown["running"] and shown["loops"]["heartbeat"]["last_success_at"]
    assert shown["identity"]["agent_id"] == host.plane.agents()[0]["agent_id"]
    done = host.call(
        "byteor-firstboot",
        "verify",
        "--operator-token",
        "-",
        "--json",
        text=host.plane.operator_token,
    )
    assert done.code == 0, done
    assert [check["result"] for check in json.loads(done.out)["checks"]] == [
        "ok",
        "ok",
        "not checked",
        "not checked",
    ]


def test_a_killed_agent_goes_on_with_a_higher_sequence(
    host: Host, start: Callable[..., Agent]
) -> None:
    """kill -9 costs nothing: the next start beats on, and the plane sees no number twice."""
    agent = start().hurry()
    before = wait_for_beats(host, 1)
    agent.end(signal.SIGKILL)
    start().hurry()
    after = wait_for_beats(host, len(before) + 1)
    assert after[-1]["sequence"] > before[-1]["sequence"]


def test_sigterm_ends_it_at_once_even_in_a_request(host: Host, start: Callable[..., Agent]) -> None:
    """A plane that hangs does not hold a shutdown; the status survives and says that it stopped."""
    host.plane.fault("heartbeat", "hang", times=None)
    agent = start().hurry()
    host.plane.wait_for(lambda: any(fault["hits"] for fault in host.plane.faults()))
    code, took, err = agent.end()
    assert code == 0, err
    assert took < on_this_machine(2)  # the request would take ten
    shown = status(host)
    assert not shown["running"]
    assert host.call("byteor-firstboot", "verify").code == 10


@pytest.mark.parametrize(
    ("kind", "options", "outcome"),
    [
        ("problem", {"status": 401, "code": "key_expired"}, "refused"),
        ("problem", {"status": 403, "code": "scope_missing"}, "refused"),
        ("problem", {"status": 404, "code": "unknown_agent"}, "refused"),
        ("problem", {"status": 400, "code": "invalid_request"}, "refused"),
        (
            "problem",
            {"status": 429, "code": "rate_limited", "headers": {"Retry-After": "1"}},
            "retry",
        ),
        ("problem", {"status": 503, "code": "x"}, "retry"),
        ("html", {"status": 200}, "retry"),
        ("redirect", {}, "retry"),
        ("drop", {}, "retry"),
    ],
)
def test_no_answer_costs_the_identity(
    host: Host, start: Callable[..., Agent], kind: str, options: dict[str, Any], outcome: str
) -> None:
    """Each answer is shown in status with what to do; the sealed file is untouched; the next start
    beats.
    """
    before = host.sealed()
    host.plane.fault("heartbeat", kind, times=None, **options)
    agent = start().hurry()
    host.plane.wait_for(lambda: status_of_heartbeat(host) == outcome)
    shown = status(host)["loops"]["heartbeat"]
    assert shown["problem"]
    host.plane.clear_faults()
    code, _, err = agent.end()
    assert code == 0, err
    start().hurry()  # a process of its own, which has no reason yet to ask seldom
    wait_for_beats(host, 1)
    assert host.sealed() == before


def status_of_heartbeat(host: Host) -> Any:
    path = host.path("run/byteor-agent/status.json")
    return json.loads(path.read_text())["loops"]["heartbeat"]["outcome"] if path.exists() else None


def test_a_period_from_the_plane_is_followed_within_its_bounds(
    host: Host, start: Callable[..., Agent]
) -> None:
    """heartbeat_interval_s in a reply sets the period, clamped."""
    host.plane.fault(
        "heartbeat",
        "status",
        status=200,
        body='{"heartbeat_interval_s": 999999}',
        content_type="application/json",
    )
    start().hurry()
    host.plane.wait_for(lambda: status_of_heartbeat(host) == "done")
    assert status(host)["loops"]["heartbeat"]["period_s"] == 3600


def test_the_service_manager_hears_ready_and_the_watchdog(
    host: Host, start: Callable[..., Agent], tmp_path: Path
) -> None:
    """READY=1 once the workers run, WATCHDOG=1 within the period, STOPPING=1 at the end; its status
    line says how it is.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(15)
        agent = start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="1000000")
        heard: list[bytes] = []

        def hear(word: bytes) -> None:
            while not heard or word not in heard[-1]:
                heard.append(manager.recv(4096))

        hear(b"READY=1")
        hear(b"WATCHDOG=1")
        agent.hurry()
        hear(b"STATUS=ok, last beat at 20")
        host.plane.fault("heartbeat", "problem", times=None, status=401, code="key_revoked")
        agent.hurry()
        hear(b"STATUS=degraded: heartbeat")
        assert b"401" in heard[-1] and b"key_revoked" in heard[-1]
        host.plane.clear_faults()
        assert agent.end()[0] == 0
        hear(b"STOPPING=1")


def test_without_an_identity_it_says_so(tmp_path: Path, control_plane: Any) -> None:
    """No enrollment, no hand-over: the agent does not start, with a hint and no traceback."""
    host = Host(tmp_path / "root", control_plane)
    done = host.call("byteor-agent", "run")
    assert done.code == 3 and done.err.count("error:") == 1 and "hint" in done.err
    assert host.call("byteor-agent", "status").code == 3


def test_a_hand_over_that_nobody_took_does_not_outlive_its_identity(host: Host) -> None:
    """Unsealed, then the disk is cloned: the agent does not start as somebody else from what lay
    there.
    """
    assert host.call("byteor-agent", "status").code == 7  # enrolled, and it has not run yet
    assert host.call("byteor-firstboot", "unseal").code == 0
    host.write("etc/machine-id", "f" * 32 + "\n")
    done = host.call("byteor-agent", "run")
    assert done.code == 8 and done.err.count("error:") == 1, done
    assert not host.path("run/byteor-agent/handover.json").exists()


@pytest.mark.parametrize(
    "content",
    ["{", " " * (3 << 20), '{"v": 1, "sequence_reserved": ' + "9" * 400 + "}"],
    ids=range(3),
)
def test_a_damaged_agent_state_is_set_aside_and_the_sequence_jumps_ahead(
    host: Host, start: Callable[..., Agent], content: str
) -> None:
    """A corrupt state.json is kept and never repeats a number."""
    agent = start().hurry()
    before = wait_for_beats(host, 1)
    agent.end()
    host.path("var/lib/byteor/agent/state.json").write_text(content)
    start().hurry()
    after = wait_for_beats(host, len(before) + 1)
    assert after[-1]["sequence"] > before[-1]["sequence"]
    assert host.path("var/lib/byteor/agent/state.json.corrupt-1").read_text() == content


def test_no_secret_is_in_the_process_or_what_it_writes(
    host: Host, start: Callable[..., Agent]
) -> None:
    """argv, environment, status.json and stderr of a running agent hold no key."""
    assert host.call("byteor-firstboot", "unseal").code == 0
    key = json.loads(host.path("run/byteor-agent/handover.json").read_text())["api_key"]
    agent = start(new=True)
    wait_for_beats(host, 1)
    proc = Path("/proc") / str(agent.process.pid)
    texts = [
        (proc / "cmdline").read_text(),
        (proc / "environ").read_text(),
        host.path("run/byteor-agent/status.json").read_text(),
    ]
    assert os.listdir(host.path("run/byteor-agent")) == ["status.json"]
    texts.append(agent.end()[2])
    assert not any(key in text for text in texts)


def test_first_boot_waits_for_a_late_token_and_uses_it(tmp_path: Path, control_plane: Any) -> None:
    """While the plane is away a run reads all sources again before each attempt: a better token
    dropped late is used.
    """
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    host.token(host.mint())
    control_plane.fault("enroll", "problem", status=503, code="x", times=2)
    process: subprocess.Popen[str] = host.start("byteor-firstboot", "run")
    control_plane.wait_for(lambda: host.enrollments())
    late = host.mint()
    host.write("run/byteor-firstboot/new", json.dumps({"enrollment_token": late}), 0o600)
    host.path("run/byteor-firstboot/new").rename(host.path("run/byteor-firstboot/settings.yaml"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert not host.path("run/byteor-firstboot/settings.yaml").exists()
    assert len({request["credential"]["hash"] for request in host.enrollments()}) == 2
    assert len(control_plane.agents()) == 1


def test_a_refused_key_is_said_in_the_beats_that_still_go_out(
    host: Host, start: Callable[..., Agent]
) -> None:
    """A probe after a 401 says degraded and names the refusal; the beat after the next success says
    ok again.
    """
    host.plane.fault("heartbeat", "problem", times=1, status=401, code="key_expired")
    start()
    wait_for_beats(host, 2)
    bodies = [json.loads(request["body"]) for request in host.plane.requests("heartbeat")]
    assert [body["status"] for body in bodies[:3]] == ["ok", "degraded", "ok"]
    assert (
        bodies[1]["problems"][0]["code"] == "heartbeat_failing"
        and "401" in bodies[1]["problems"][0]["detail"]
    )


def test_sighup_reads_the_settings_again(host: Host, start: Callable[..., Agent]) -> None:
    """A new period holds at once; settings that are damaged change nothing and are said."""
    agent = start().hurry()
    wait_for_beats(host, 1)
    path = host.path("var/lib/byteor/settings.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "heartbeat_interval_s": 1800}))
    agent.process.send_signal(signal.SIGHUP)
    host.plane.wait_for(lambda: status(host)["loops"]["heartbeat"]["period_s"] == 1800)
    before = len(beats(host))
    path.write_text("{")
    agent.process.send_signal(signal.SIGHUP)
    assert any("not read again" in line for line in agent.process.stderr)
    assert agent.end()[0] == 0
    assert len(beats(host)) >= before


def test_a_storm_of_signals_neither_ends_nor_stops_it(
    host: Host, start: Callable[..., Agent]
) -> None:
    """Whoever signals, and however often at once: it goes on beating, and ends in order."""
    agent = start().hurry()
    wait_for_beats(host, 1)
    for number in [signal.SIGUSR1, signal.SIGHUP] * 200:
        agent.process.send_signal(number)
    before = len(beats(host))
    agent.hurry()
    wait_for_beats(host, before + 1)
    assert agent.end()[0] == 0


def test_a_clock_that_is_off_is_a_problem(host: Host, start: Callable[..., Agent]) -> None:
    """The plane's Date tells; a beat says it, and status what to do."""
    host.plane.fault("heartbeat", "date", times=None, offset_s=-4000)
    start().hurry()
    host.plane.wait_for(lambda: host.plane.requests("heartbeat"))
    host.hurry()
    host.plane.wait_for(lambda: len(host.plane.requests("heartbeat")) >= 2)
    shown = status(host)
    assert 3990 < shown["clock_skew_s"] < 4010 and shown["status"] == "degraded"
    problem = next(problem for problem in shown["problems"] if problem["code"] == "clock_skew")
    assert "ahead" in problem["detail"] and problem["hint"]


def _catches(pid: int, number: int) -> bool:
    line = next(
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt:")
    )
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


EARLY = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def test_signals_at_the_start_neither_end_it_nor_get_lost(
    host: Host, start: Callable[..., Agent]
) -> None:
    """From the moment on at which it takes signals, which is before it has read who it is."""
    agent = start()
    host.plane.wait_for(lambda: _catches(agent.process.pid, signal.SIGHUP))
    assert not host.path("run/byteor-agent/status.json").exists()
    for number in EARLY:
        agent.process.send_signal(number)
    wait_for_beats(host, 1)
    code, _, err = agent.end()
    assert code == 0 and "settings read again" in err, err


@pytest.mark.parametrize("as_init", [False, True])
@pytest.mark.skipif(os.geteuid() != 0, reason="a namespace of processes needs root")
def test_sigterm_at_the_start_ends_it(host: Host, as_init: bool) -> None:
    """Also as process 1 of a container, for which the kernel drops what it does not handle."""
    command = [sys.executable, "-m", "firstboot", "agent", "run", "--root", str(host.root)]
    if as_init:
        command = ["unshare", "--pid", "--fork", "--kill-child", *command]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd="/")
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if as_init:
            host.plane.wait_for(children.read_text)
        pid = int(children.read_text().split()[0]) if as_init else process.pid
        host.plane.wait_for(lambda: _catches(pid, signal.SIGTERM))
        os.kill(pid, signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert not host.path("run/byteor-agent/status.json").exists()


def test_a_worker_that_is_stuck_ends_a_process_that_nobody_watches(host: Host) -> None:
    """Without a watchdog it ends itself, and says so: what runs the container starts another."""
    code = """
import sys, threading
from firstboot.agent import heartbeat, supervisor, worker
supervisor.LOOK_S, worker.GRACE_S = 0.5, 1.0
heartbeat.Heartbeat.run_once = lambda self: threading.Event().wait(60)
from firstboot.cli import agent_main
sys.exit(agent_main())
"""
    command = [sys.executable, "-c", code, "run", "--root", str(host.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False, cwd="/")
    assert done.returncode == 1 and "stuck" in done.stderr and "control" in done.stderr, done
    page = json.loads(host.path("run/byteor-agent/status.json").read_text())
    assert not page["running"] and page["crashes"] == 1
