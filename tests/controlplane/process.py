"""The plane as a process of its own, and the words to drive it: `ControlPlane`, usable with and
without pytest.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

TOP = Path(__file__).resolve().parents[2]
START_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
IP_FREEBIND = 15


class PlaneError(RuntimeError):
    """The plane did not start, or refused a word; the text says why."""


class ControlPlane:
    """One reference control plane. Its addresses and CA are fixed at construction, so it may start
    up late.

    >>> plane = ControlPlane(tmp_path / "plane"); plane.start(); token = plane.mint()
    """

    org_id, project_id, environment_id = "org_1", "prj_1", "env_1"

    def __init__(
        self,
        state_dir: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        names: Sequence[str] = (),
        log: Any = None,
    ) -> None:
        """`names`: further addresses and DNS names of the certificate. `log`: a file for the
        server's stderr.
        """
        self.state_dir, self.host, self._names, self._log = Path(state_dir), host, tuple(names), log
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._facts: dict[str, Any] = {}
        # Bound, never listening: the ports stay ours across stop and restart, and refuse
        # connections meanwhile.
        self._held = [self._hold(port), self._hold(0)]
        self.port, self.store_port = (sock.getsockname()[1] for sock in self._held)
        shown = f"[{host}]" if ":" in host else host
        self.base_url, self.store_url = (
            f"https://{shown}:{self.port}",
            f"https://{shown}:{self.store_port}",
        )

    def _hold(self, port: int) -> socket.socket:
        sock = socket.socket(
            socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_STREAM
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        sock.bind((self.host, port))
        return sock

    # -- the process

    def start(self) -> ControlPlane:
        """Start the server and wait until it answers."""
        if self.running():
            raise PlaneError("the control plane runs already")
        (self.state_dir / "admin.json").unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "tests.controlplane",
            "--state",
            str(self.state_dir),
            "serve",
            "--quiet",
            "--with-parent",
            "--host",
            self.host,
            "--port",
            str(self.port),
            "--store-port",
            str(self.store_port),
        ]
        for name in self._names:
            command += ["--name", name]
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TOP)]))
        self._process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stderr=self._log
        )
        limit = time.monotonic() + START_LIMIT_S
        while not (self.state_dir / "admin.json").exists():
            if self._process.poll() is not None or time.monotonic() > limit:
                code = self._process.poll()
                self.kill()
                raise PlaneError(f"the control plane did not start (exit code {code})")
            time.sleep(0.02)
        self._facts = json.loads((self.state_dir / "admin.json").read_text())
        return self

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server; its state stays. Harmless when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a power cut would."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(STOP_LIMIT_S)
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None

    def wait_stopped(self) -> int:
        """Wait until the server has ended by itself (the fault `crash`); return its exit code."""
        if self._process is None:
            raise PlaneError("the control plane was not started")
        return self._process.wait(STOP_LIMIT_S)

    def restart(self) -> ControlPlane:
        """Stop, and start again on the same addresses with the same state."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Stop for good: the ports are given back."""
        self.stop()
        for sock in self._held:
            sock.close()

    def __del__(self) -> None:
        for sock in self.__dict__.get("_held", ()):
            sock.close()

    def __enter__(self) -> ControlPlane:
        return self if self.running() else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return int(self._facts["pid"])

    # -- trust

    @property
    def ca_path(self) -> Path:
        """The CA certificate as a file; made at the first call if the server has not yet made
        it.
        """
        if not (self.state_dir / "ca.pem").exists():
            from tests.controlplane import tls

            tls.load_ca(self.state_dir)
        return self.state_dir / "ca.pem"

    @property
    def ca_pem(self) -> str:
        """The CA certificate as text."""
        return self.ca_path.read_text()

    # -- the words

    def tell(self, word: str, **arguments: Any) -> Any:
        """Say one word of the admin interface and return its result."""
        connection = http.client.HTTPConnection("127.0.0.1", self._facts["admin_port"], timeout=60)
        try:
            headers = {"Authorization": f"Bearer {self._facts['secret']}", "Connection": "close"}
            connection.request("POST", f"/{word}", json.dumps(arguments).encode(), headers)
            reply = connection.getresponse()
            answer = json.loads(reply.read())
        finally:
            connection.close()
        if "error" in answer:
            raise PlaneError(answer["error"])
        return answer["result"]

    def where(self, where: Mapping[str, str] | None = None) -> dict[str, str]:
        ids = {
            "org_id": self.org_id,
            "project_id": self.project_id,
            "environment_id": self.environment_id,
        }
        return {**ids, **(where or {})}

    def mint(self, *, where: Mapping[str, str] | None = None, **options: Any) -> str:
        """A fresh enrollment token. Options: ttl_s (None: never), scopes, key_scopes, key_ttl_s,
        text.
        """
        return str(self.tell("mint", where=self.where(where), **options))

    def environment(
        self, *, where: Mapping[str, str] | None = None, posture: str | None = None
    ) -> None:
        """Make an environment (the default one exists), or change its posture."""
        self.tell("environment", where=self.where(where), posture=posture)

    @property
    def operator_token(self) -> str:
        return str(self.tell("operator_token"))

    def agents(self, *, where: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Every agent: agent_id, name, last_heartbeat_at, last_heartbeat (the body), heartbeats,
        last_sequence, …
        """
        found = self.tell("agents", where=self.where(where) if where is not None else None)
        return list(found)

    def requests(
        self, operation: str | None = None, *, origin: str | None = None
    ) -> list[dict[str, Any]]:
        """What was asked, in order: operation, method, path, query, headers, credential, body,
        faults, agent_id, at, …

        `status` is what the plane made of it, `answered` the status that went out: after the commit
        a fault may replace the answer, or swallow it (then there is no `answered`).
        """
        return list(self.tell("requests", operation=operation, origin=origin))

    def violations(self) -> list[dict[str, Any]]:
        """Every breach of the contract: rule, detail, request_id."""
        return list(self.tell("violations"))

    def clear_violations(self) -> None:
        self.tell("clear_violations")

    def fault(self, operation: str, kind: str, **options: Any) -> int:
        """Schedule a fault; see `faults.KINDS` for kinds and options, `faults` for the schedule.
        Return its id.
        """
        return int(self.tell("fault", operation=operation, kind=kind, **options))

    def faults(self) -> list[dict[str, Any]]:
        return list(self.tell("faults"))

    def clear_faults(self) -> None:
        self.tell("clear_faults")

    def configure(self, **settings: Any) -> None:
        """Set switches; see `plane.SETTINGS`."""
        self.tell("configure", **settings)

    def revoke(self, agent_id: str, *, revoked: bool = True) -> None:
        self.tell("revoke", agent_id=agent_id, revoked=revoked)

    def expire(self, agent_id: str, *, expires_at: float | None = None) -> None:
        self.tell("expire", agent_id=agent_id, expires_at=expires_at)

    def scopes(self, agent_id: str, scopes: Sequence[str]) -> None:
        self.tell("scopes", agent_id=agent_id, scopes=list(scopes))

    def delete(self, agent_id: str) -> None:
        self.tell("delete", agent_id=agent_id)

    def rotate(self, *, where: Mapping[str, str] | None = None, **options: Any) -> dict[str, Any]:
        """Publish the next key set. Options: add, retire (kids, or ["old"]), not_after, broken."""
        return dict(self.tell("rotate", where=self.where(where), **options))

    def deploy(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        where: Mapping[str, str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Assign a deployment of `files` (spec.kv has a default). Return its id, sequence,
        spec_hash, bundle facts.

        Options: agent_id, posture, deployment_id, sequence, kid, expires_in_s, broken (a refusal
        code) with variant.
        """
        encoded = {name: base64.b64encode(data).decode() for name, data in (files or {}).items()}
        return dict(self.tell("deploy", where=self.where(where), files=encoded, **options))

    def approve(
        self, spec: bytes, *, where: Mapping[str, str] | None = None, **options: Any
    ) -> str:
        """An approval credential for `spec`. Options: posture, kid, and any claim to be said
        otherwise.
        """
        return str(
            self.tell(
                "approve", where=self.where(where), spec=base64.b64encode(spec).decode(), **options
            )
        )

    def key_sets(self, *, where: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Every key set so far, as DSSE envelopes in order."""
        return list(self.tell("key_sets", where=self.where(where)))

    def reports(self) -> list[dict[str, Any]]:
        """Every deployment report kept, in order."""
        return list(self.tell("reports"))

    def artifacts(self) -> list[dict[str, Any]]:
        """Every artifact kept: artifact_id, agent_id, sha256, size, kind, metadata."""
        return list(self.tell("artifacts"))

    def reset(self) -> None:
        """Forget all tokens, agents, requests, faults and settings; addresses and CA stay."""
        self.tell("reset")

    def close_idle(self) -> None:
        """End kept-alive connections."""
        self.tell("close_idle")

    def wait_for(self, predicate: Callable[[], Any], *, limit_s: float = 60.0) -> Any:
        """Ask until `predicate()` is true, and return it; PlaneError after `limit_s`.

        No more than half of the time goes into asking: some ask a process.
        """
        limit = time.monotonic() + limit_s
        while True:
            began = time.monotonic()
            found = predicate()
            if found:
                return found
            if time.monotonic() > limit:
                raise PlaneError(f"it did not happen within {limit_s} s")
            time.sleep(max(0.02, time.monotonic() - began))
