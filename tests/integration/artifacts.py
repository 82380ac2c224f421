"""An enrolled host whose agent is started and killed at will, with files to upload."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent.artifacts import packing, spool
from firstboot.agent.artifacts.spool import About
from firstboot.base.layout import Layout
from tests.integration.host import Done, Host

MIB = 1 << 20
SCOPES = [
    "agent:heartbeat",
    "agent:deployment_read",
    "agent:deployment_report",
    "agent:signing_keys_read",
]


class Artifacts(Host):
    """An enrolled host, with an agent that is started and killed at will."""

    def __init__(self, root: Path, plane: Any) -> None:
        super().__init__(root, plane)
        self.files = root.parent / "files"
        self.files.mkdir()
        self.layout = Layout(root)
        self.process: subprocess.Popen[str] | None = None
        self.defaults(heartbeat_interval_s=5)
        self.token(self.mint())
        assert self.run().code == 0

    def up(self, *, new: bool = False) -> subprocess.Popen[str]:
        self.process = self.agent(new=new)
        return self.process

    def down(self, number: int = signal.SIGTERM) -> str:
        assert self.process is not None
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        self.process = None
        assert "Traceback" not in err and "unexpected" not in err, err
        return err

    def file(self, name: str, data: bytes | str) -> Path:
        path = self.files / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def upload(self, path: Path, kind: str = "snapshot", *options: str) -> Done:
        return self.call("byteor-agent", "upload", str(path), "--kind", kind, *options)

    def put(self, data: bytes, kind: str = "snapshot") -> str:
        """What `upload` does, without a process of its own."""
        held = packing.hold(data)
        try:
            return spool.add(self.layout, held, About(kind, "x", 1e9)).id
        finally:
            os.close(held)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.call("byteor-agent", "status", "--json").out))

    def trouble(self) -> str | None:
        """The problem that the agent's page names for uploads."""
        page = self.layout.agent_status
        loops = json.loads(page.read_text())["loops"] if page.exists() else {}
        found: str | None = loops.get("artifacts", {}).get("problem")
        return found

    def waiting(self) -> list[str]:
        return spool.ids(self.layout.spool)

    def stored(self) -> dict[str, bytes]:
        """What the plane keeps, by SHA-256, each there once and as long as it says."""
        rows = self.plane.artifacts()
        found = {
            row["sha256"]: (self.plane.state_dir / "artifacts" / row["artifact_id"]).read_bytes()
            for row in rows
        }
        assert len(found) == len(rows)
        return found


@pytest.fixture
def artifacts_host(tmp_path: Path, control_plane: Any) -> Iterator[Artifacts]:
    host = Artifacts(tmp_path / "root", control_plane)
    yield host
    if host.process is not None:
        host.down(signal.SIGKILL)
