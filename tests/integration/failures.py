"""The table of failures: each made to happen, and what an operator reads of it.

A row's words are what every output must hold: the cause and the action in both pages of `status`
and in the journal (stderr), the cause in the unit's STATUS= line, which systemd shows above the
journal's last lines.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from tests.integration.host import Host

SETTLE_S = 30.0
PAST = 1e8  # seconds: 1973
AT = (
    "import os, sys; os.environ.pop('PYTHONPATH', None)\n"
    "from firstboot import cli; from firstboot.base import clock\n"
    "clock.time.time = lambda: float(sys.argv[1]); sys.exit(cli.firstboot_main(sys.argv[2:]))"
)
SEALED = "var/lib/byteor/identity/credentials.sealed"
STATUS, SPOOL = "run/byteor-agent/status.json", "var/lib/byteor/agent/spool"


@dataclass
class Seen:
    """What an operator can look at."""

    human: str
    document: str
    unit: str  # the newest STATUS=
    journal: str


@dataclass
class Scene:
    """A host whose processes report to a service manager: this test."""

    host: Host
    journal: Path
    _socket: socket.socket
    told: list[str] = field(default_factory=list)
    _running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: str, python: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        address = self._socket.getsockname()
        with self.journal.open("a") as stream:
            command = (
                [sys.executable, *python]
                if python
                else [str(Path(sys.executable).parent / words[0])]
            )
            process = subprocess.Popen(
                [*command, *words[1:], "--root", str(self.host.root)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream, text=True,
                env={**os.environ, "NOTIFY_SOCKET": address},
            )  # fmt: skip
        self._running.append(process)
        return process

    def run(self, *, code: int | None = None) -> None:
        """First boot until it ends (with `code`), or until it has met its first trouble."""
        process = self.start("byteor-firstboot", "run")
        if code is None:
            self.wait(self.host.path("var/lib/byteor/identity/progress.json").exists)
        else:
            assert process.wait(SETTLE_S) == code, self.journal.read_text()

    def enrolled(self, **settings: Any) -> str:
        """Enroll, start the agent, wait for its first beat; return its id."""
        self.host.defaults(heartbeat_interval_s=5, **settings)
        self.host.token(self.host.mint())
        self.run(code=0)
        self.agent = self.start("byteor-agent", "run")
        self.wait(lambda: self.host.plane.requests("heartbeat"))
        return str(self.host.plane.agents()[0]["agent_id"])

    def wait(self, predicate: Callable[[], Any]) -> None:
        self.host.plane.wait_for(predicate, limit_s=SETTLE_S)

    def status(self, *words: str) -> str:
        return self.host.call("byteor-firstboot", "status", *words).out

    def listen(self) -> None:
        """Be the service manager, until somebody says END."""
        for message in iter(lambda: self._socket.recv(65536).decode(), "END"):
            for line in message.splitlines():
                if line.startswith("STATUS="):
                    self.told.append(line[len("STATUS=") :])

    def look(self) -> Seen:
        return Seen(
            self.status(), self.status("--json"), (self.told or [""])[-1], self.journal.read_text()
        )

    def end(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


@contextmanager
def scene(root: Path, plane: Any) -> Iterator[Scene]:
    """A scratch host, whose processes end with the block."""
    short = Path(tempfile.mkdtemp())  # the address of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(short / "notify"))
        found = Scene(Host(root / "root", plane), root / "journal", listener)
        found.journal.touch()
        thread = threading.Thread(target=found.listen, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.end()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"END", listener.getsockname())
            thread.join()
            shutil.rmtree(short)


@dataclass(frozen=True)
class Failure:
    """One row: how it is made, the words of its cause and of what to do."""

    name: str
    make: Callable[[Scene], None]
    cause: str
    action: str
    unit: str | None = None  # in the unit's line, where another problem is the root of this one
    by_systemd: bool = False  # it ended the process: unit and journal have systemd's words
    slow: bool = False  # with an agent


def _expired(it: Scene) -> None:
    it.host.defaults()
    it.host.token(str(it.host.plane.mint(ttl_s=-1)))
    it.run(code=5)


def _wrong_ids(it: Scene) -> None:
    it.host.defaults(environment_id="env_404")
    it.host.token(it.host.mint())
    it.run(code=5)


def _used(it: Scene) -> None:
    token = it.host.mint()
    other = Host(it.host.root.parent / "other", it.host.plane)
    other.defaults(name="other")
    other.token(token)
    assert other.run().code == 0
    it.host.defaults()
    it.host.token(token)
    it.run(code=5)


def _name_taken(it: Scene) -> None:
    other = Host(it.host.root.parent / "other", it.host.plane)
    for host in (other, it.host):
        host.defaults(name="edge-7")
        host.token(host.mint())
    assert other.run().code == 0
    it.run(code=5)


def _waits(
    fault: tuple[str, dict[str, Any]] | None = None, **settings: Any
) -> Callable[[Scene], None]:
    def make(it: Scene) -> None:
        it.host.defaults(**settings)
        it.host.token(it.host.mint())
        if fault is not None:
            it.host.plane.fault("enroll", fault[0], times=99, **fault[1])
        it.run()

    return make


def _expired_certificate(it: Scene) -> None:
    it.host.plane.fault("connection", "tls", mode="expired", times=None)
    _waits()(it)


def _clock(it: Scene) -> None:
    it.host.defaults()
    it.host.token(it.host.mint())
    process = it.start("", "run", python=("-c", AT, str(PAST)))
    assert process.wait(SETTLE_S) == 7


def _typo(it: Scene) -> None:
    block = it.host.comment_block(it.host.mint())
    it.host.user_data(block.replace("environment_id", "enviroment_id"))
    it.run(code=4)


def _near_miss(it: Scene) -> None:
    block = it.host.comment_block(it.host.mint())
    it.host.user_data(block.replace("#byteor-firstboot:", "# byteor-firstboot:"))
    it.run(code=4)


def _no_token(it: Scene) -> None:
    it.host.defaults()
    it.run(code=3)


def _after_enrolling(change: Callable[[Host], object], code: int) -> Callable[[Scene], None]:
    def make(it: Scene) -> None:
        it.host.defaults()
        it.host.token(it.host.mint())
        it.run(code=0)
        change(it.host)
        it.run(code=code)

    return make


def _damage(host: Host) -> None:
    path = host.path(SEALED)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _full_disk(it: Scene) -> None:
    it.host.defaults()
    it.host.token(it.host.mint())
    state = it.host.path("var/lib/byteor")
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state)], check=True)
    try:
        it.run(code=7)
    finally:
        # What is on it is moved to where it can be looked at after the mount is gone.
        saved = it.host.root.parent / "saved"
        shutil.copytree(state, saved, symlinks=True)
        subprocess.run(["umount", str(state)], check=True)
        state.rmdir()
        shutil.move(saved, state)


def _agent(
    problem: str, change: Callable[[Scene, str], object], **settings: Any
) -> Callable[[Scene], None]:
    def make(it: Scene) -> None:
        change(it, it.enrolled(**settings))
        it.wait(lambda: problem in it.host.path(STATUS).read_text())

    return make


def _deploy(it: Scene, **options: Any) -> None:
    it.host.plane.deploy(**options)


def _fill_spool(it: Scene, agent_id: str) -> None:
    it.host.plane.scopes(agent_id, ["agent:heartbeat"])
    kept = it.host.root.parent / "artifact"
    kept.write_text("kept\n")
    words = ("upload", str(kept), "--kind", "snapshot")
    assert it.host.call("byteor-agent", *words).code == 0
    (first,) = (path for path in it.host.path(SPOOL).iterdir() if path.name[0].isdigit())
    number, digits = first.name.split("-")
    for more in range(1, 1000):
        shutil.copytree(first, first.with_name(f"{int(number) + more:08d}-{digits}"))
    kept.write_text("one more\n")
    assert it.start("byteor-agent", *words).wait(SETTLE_S) == 7
    it.agent.send_signal(signal.SIGUSR2)


def _ended(number: int) -> Callable[[Scene], None]:
    def make(it: Scene) -> None:
        it.enrolled()
        it.agent.send_signal(number)
        it.agent.wait(SETTLE_S)

    return make


REENROLL = "byteor-firstboot reenroll --token-file -"
PORTAL = "check api_base_url and proxy"
FAILURES = [
    Failure("no token", _no_token, "no enrollment token", "put one into user data"),
    Failure("expired token", _expired, "token_expired", "mint a new one"),
    Failure("wrong ids", _wrong_ids, "no_such_environment", "check org_id, project_id and environment_id"),
    Failure("used token", _used, "token_used", "mint a new one"),
    Failure("name taken", _name_taken, "name_taken", "choose another, or delete that agent"),
    Failure("wrong CA", _waits(ca_certificates=None), "unable to get local issuer certificate", "ca_certificates"),
    Failure("expired certificate", _expired_certificate, "certificate has expired", "check this host's clock"),
    Failure("no DNS", _waits(api_base_url="https://api.plane.invalid"), "cannot resolve", "check DNS"),
    Failure("connection refused", _waits(api_base_url="https://127.0.0.1:9"), "connection refused", "firewall"),
    Failure("dead proxy", _waits(proxy="http://127.0.0.1:9"), "cannot connect to the proxy", "check that the proxy"),
    Failure("portal page", _waits(("html", {"status": 200})), "text/html", PORTAL),
    Failure("403 page", _waits(("html", {"status": 403})), "text/html", PORTAL),
    Failure("429", _waits(("problem", {"status": 429, "code": "slow_down"})), "429", "retried automatically"),
    Failure("503", _waits(("problem", {"status": 503, "code": "busy"})), "503", "retried automatically"),
    Failure("clock in the past", _clock, "before this package was built", "set the clock"),
    Failure("typo in user data", _typo, "unknown key enviroment_id", "did you mean environment_id"),
    Failure("near miss of the block", _near_miss, "byteor-firstboot:", "alone on a line"),
    Failure("clone", _after_enrolling(lambda host: host.write("etc/machine-id", "f" * 32 + "\n"), 8),
            "belongs to another host", "provide a fresh one"),
    Failure("damaged identity", _after_enrolling(_damage, 7), "does not open", "provide a fresh token"),
    Failure("lost key", _after_enrolling(lambda host: host.path("var/lib/byteor/identity/sealing.key").unlink(), 7),
            "sealing.key is missing", "provide a fresh token", unit="sealed identity does not open"),
    Failure("disk full", _full_disk, "no space left on device", "free some space"),
    Failure("revoked key", _agent("key_revoked", lambda it, agent: it.host.plane.revoke(agent)),
            "key_revoked", REENROLL, slow=True),
    Failure("deleted agent", _agent("unknown_agent", lambda it, agent: it.host.plane.delete(agent)),
            "unknown_agent", REENROLL, slow=True),
    Failure("missing scope", _agent("heartbeat_failing", lambda it, agent: it.host.plane.scopes(agent, ["agent:deployments"])),
            "lacks the scope", "grant", slow=True),
    Failure("refused deployment", _agent("bad_signature", lambda it, agent: _deploy(it, broken="bad_signature")),
            "bad_signature", "sign", slow=True),
    Failure("unhealthy deployment", _agent("health_check_failed", lambda it, agent: _deploy(it),
            activation={"health": ["/bin/false"], "window_s": 0}), "/bin/false", "byteor-agent retry", slow=True),
    Failure("waiting deployment", _agent("deployment_waiting", lambda it, agent: _deploy(it, broken="not_yet_valid")),
            "issued ahead of this host's clock", "timedatectl", slow=True),
    Failure("spool full", _agent("spool_full", _fill_spool), "the spool is full", "grant the scope",
            unit="agent:artifact_upload", slow=True),
    Failure("agent stopped", _ended(signal.SIGTERM), "stopped", "byteor-agent run", slow=True),
    Failure("agent killed", _ended(signal.SIGKILL), "without an orderly stop", "byteor-agent run", by_systemd=True, slow=True),
]  # fmt: skip


def table() -> str:
    """Return the table of the runbook."""
    lines = ["| Failure | Every output says | What to do |", "|---|---|---|"]
    lines += [f"| {row.name} | {row.cause} | {row.action} |" for row in FAILURES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":  # python -m tests.integration.failures [NAME ...]: the outputs to read
    from tests.controlplane.process import ControlPlane

    top = Path(tempfile.mkdtemp())
    with ControlPlane(top / "plane") as control_plane:
        for each in FAILURES:
            if each.name in sys.argv[1:] or not sys.argv[1:]:
                control_plane.reset()
                (top / each.name).mkdir()
                with scene(top / each.name, control_plane) as there:
                    each.make(there)
                    shown = there.look()
                print(f"## {each.name}\n\n```\n{shown.human}```\n\nStatus: {shown.unit}\n")
                print(f"```\n{shown.journal}```\n", flush=True)
    shutil.rmtree(top)
