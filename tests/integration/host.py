"""A host for tests: a scratch root as cloud-init leaves it, and the installed commands driven as a
user drives them.
"""

from __future__ import annotations

import json
import pickle
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from firstboot.base.layout import Layout
from firstboot.exchange import wake
from tests.boot.scan import canary
from tests.integration import spawn
from tests.schemas import judge_call

RUN_LIMIT_S = 60


def on_this_machine(seconds: float) -> float:
    """Return a promised time and what the load of just now adds: thirty starts of a bare Python."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)
    return seconds + 30 * (time.monotonic() - began)


class Host:
    """One root directory, with the plane's address and CA in the image's defaults unless user data
    names them.
    """

    def __init__(self, root: Path, plane: Any, *, machine_id: str | None = None) -> None:
        self.root, self.plane = root, plane
        for directory in ("etc/byteor", "run", "var/lib"):
            (root / directory).mkdir(parents=True)
        self.write("etc/machine-id", (machine_id or secrets.token_hex(16)) + "\n")
        self.write("etc/hostname", "edge-node-01\n")

    # -- what is on it

    def path(self, name: str) -> Path:
        return self.root / name

    def write(self, name: str, text: str | bytes, mode: int = 0o644) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    def user_data(self, data: str | bytes, *, instance: str = "iid-1") -> None:
        """Store user data where cloud-init would: raw, processed, pickled, and in the seed."""
        raw = data.encode() if isinstance(data, str) else data
        base = f"var/lib/cloud/instances/{instance}"
        self.write(f"{base}/user-data.txt", raw, 0o600)
        self.write(f"{base}/user-data.txt.i", raw, 0o600)
        self.write(f"{base}/obj.pkl", pickle.dumps({"userdata_raw": raw}), 0o400)
        self.write(
            f"{base}/datasource",
            "DataSourceNoCloud: DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud]\n",
        )
        self.write("var/lib/cloud/seed/nocloud/user-data", raw)
        link = self.root / "var/lib/cloud/instance"
        if link.is_symlink():
            link.unlink()
        link.symlink_to(f"/{base}")

    def settings(self, **values: Any) -> dict[str, Any]:
        plane = self.plane
        found = {
            "api_base_url": plane.base_url,
            "org_id": plane.org_id,
            "project_id": plane.project_id,
            "environment_id": plane.environment_id,
            "ca_certificates": plane.ca_pem,
            **values,
        }
        return {key: value for key, value in found.items() if value is not None}

    def defaults(self, **values: Any) -> None:
        """Bake the plane's address, ids and CA into /etc/byteor/firstboot.yaml (JSON is YAML)."""
        self.write("etc/byteor/firstboot.yaml", json.dumps(self.settings(**values)))

    def token(self, token: str) -> None:
        self.write("etc/byteor/enrollment-token", token + "\n", 0o600)

    def comment_block(self, token: str, **values: Any) -> str:
        lines = ["#cloud-config", "#byteor-firstboot:"]
        for key, value in self.settings(enrollment_token=token, **values).items():
            lines.append(f"#  {key}: {json.dumps(value)}")
        return "\n".join([*lines, "hostname: edge-node-01", ""])

    def mint(self) -> str:
        """A token that the plane knows, with a stretch of letters and digits that a scan can look
        for.
        """
        return str(self.plane.mint(text=f"bet_{canary()}"))

    # -- what is done on it

    def start(self, *arguments: str, **keywords: Any) -> subprocess.Popen[str]:
        command, *rest = arguments
        if keywords.pop("root_last", True):  # `exec` takes what comes last for the command's
            rest += ["--root", str(self.root)]
        return spawn.start(
            [command, *rest],
            text=True,
            stdin=keywords.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **keywords,
        )

    def agent(self, *arguments: str, **keywords: Any) -> subprocess.Popen[str]:
        """Start the agent, and do not wait for the random first pause that spreads a fleet."""
        process = self.start("byteor-agent", "run", *arguments, **keywords)
        self.hurry()
        return process

    def hurry(self) -> None:
        """End the pauses of the running agent as `systemctl reload` does; Retry-After still holds."""
        self.plane.wait_for(lambda: wake.wake(Layout(self.root), signal.SIGHUP))

    def call(
        self, *arguments: str, text: str = "", env: dict[str, str] | None = None, **keywords: Any
    ) -> Done:
        process = self.start(*arguments, stdin=subprocess.PIPE, env=env or {}, **keywords)
        out, err = process.communicate(text, timeout=RUN_LIMIT_S)
        judge_call(arguments, out)
        return Done(process.returncode, out, err)

    def run(self, *arguments: str, **keywords: Any) -> Done:
        return self.call("byteor-firstboot", "run", *arguments, **keywords)

    # -- what came of it

    def sealed(self) -> bytes:
        return self.path("var/lib/byteor/identity/credentials.sealed").read_bytes()

    def enrolled(self) -> bool:
        return self.path("var/lib/byteor/identity/credentials.sealed").exists()

    def enrollments(self) -> list[dict[str, Any]]:
        """The enrollment requests that the plane saw."""
        return [
            r
            for r in self.plane.requests()
            if r["method"] == "POST" and r["path"].endswith("/agents")
        ]


def enrolled(root: Path, plane: Any, **defaults: Any) -> Host:
    """A host that has enrolled with a token file."""
    host = Host(root, plane)
    host.defaults(**defaults)
    host.token(host.mint())
    assert host.run().code == 0
    return host


class Done:
    """Exit code, stdout, stderr; and the promises that hold for every command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        assert "Traceback" not in err + out, err
        assert code != 1, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.err}{self.out}"
