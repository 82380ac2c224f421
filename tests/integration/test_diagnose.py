"""The diagnostic archive: all that support needs, and no credential, whatever stands in its parts."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from firstboot import cli
from firstboot.base import systemd
from firstboot.base.layout import Layout
from firstboot.commands import diagnose
from tests.integration.host import Host

PARTS = {
    "agent-status.json",
    "deployments.json",
    "erasure.json",
    "firstboot-status.json",
    "settings.json",
    "verify.json",
    "versions.json",
}
CANARY = "Zq7canary0value9Zq"


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_an_enrolled_host_is_described_without_its_secrets(
    tmp_path: Path, control_plane: Any
) -> None:
    """Every part is there; neither the token nor the runtime key is, also where somebody wrote
    them; the archive can be queued for upload.
    """
    host = Host(tmp_path / "root", control_plane)
    token = host.mint()
    host.defaults(name="edge-1")
    host.token(token)
    assert host.run().code == 0
    assert host.call("byteor-firstboot", "unseal").code == 0
    layout = Layout(host.root)
    key = json.loads(layout.handover.read_text())["api_key"]
    with layout.image_defaults.open("a") as stream:
        stream.write(f"\n# {key} {token}\n")
    layout.agent_status.write_text(
        json.dumps({"v": 1, "problems": [{"code": "x", "detail": f"{key} password={CANARY}"}]})
    )
    path = tmp_path / "out.tar.gz"
    done = host.call("byteor-agent", "diagnose", "-o", str(path), "--upload")
    assert done.code == 0, done
    name, artifact = done.out.split()
    assert name == str(path) and path.stat().st_mode & 0o777 == 0o600
    found = members(path.read_bytes())
    assert set(found) == PARTS | {"firstboot.yaml", "redactions.json"}
    everything = b"".join(found.values()) + done.err.encode()
    for secret in (token, key, CANARY):
        assert secret.encode() not in everything
    assert json.loads(found["firstboot-status.json"])["state"] == "enrolled"
    assert json.loads(found["versions.json"])["requests"]
    assert [row["part"] for row in json.loads(found["redactions.json"])["replaced"]] == [
        "agent-status.json",
        "firstboot.yaml",
    ]
    assert (layout.spool / artifact / "data").read_bytes() == path.read_bytes()
    meta = json.loads((layout.spool / artifact / "meta.json").read_text())
    assert meta["kind"] == "diagnostic"


def test_a_host_that_is_not_enrolled_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be had is said, here and in the archive, which lands in this directory."""
    monkeypatch.chdir(tmp_path)
    assert cli.agent_main(["--root", str(tmp_path), "diagnose"]) == 0
    out, err = capsys.readouterr()
    found = members((tmp_path / out.strip()).read_bytes())
    left = {row["part"] for row in json.loads(found["redactions.json"])["left_out"]}
    assert {"settings.json", "erasure.json"} <= left and "settings.json" in err
    assert json.loads(found["agent-status.json"])["state"] == "never_ran"


def test_the_journal_of_this_boot_loses_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host with systemd: our units, and their newest lines."""
    asked = []

    def run(command: tuple[str, ...], **keywords: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        if command[0] == "cloud-init":
            raise FileNotFoundError
        text = f"{command[0]} 1\nbyteor-firstboot[1]: token={CANARY} Bearer {CANARY}\n"
        return subprocess.CompletedProcess(command, 3, text.encode())

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(systemd, "booted", lambda: True)
    monkeypatch.setattr(Layout, "is_host", property(lambda layout: True))
    path = tmp_path / "out.tar.gz"
    monkeypatch.setattr(Layout, "path", lambda layout, name, follow=False: tmp_path / name[1:])
    for directory in ("etc", "usr/lib"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text("ID=debian\n")
    (tmp_path / "etc/os-release").symlink_to("../usr/lib/os-release")  # as on a real host
    assert cli.agent_main(["diagnose", "-o", str(path)]) == 0
    found = members(path.read_bytes())
    assert CANARY.encode() not in b"".join(found.values())
    assert found["journal.txt"].startswith(b"journalctl 1\n") and "units.txt" in found
    assert ("systemctl", "--version") in asked
    assert json.loads(found["versions.json"])["cloud-init"] is None
    assert json.loads(found["versions.json"])["os_release"] == ["ID=debian"]
    (journal,) = [command for command in asked if command[0] == "journalctl"]
    assert "--boot" in journal and f"--unit={diagnose.UNITS}" in journal
