"""The drop-ins of image-build/examples: systemd reads every line, and the runtime gets the three
values by each.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host
from tests.integration.spawn import BIN

EXAMPLES = Path(__file__).resolve().parents[2] / "image-build/examples"
RUNTIME = "[Unit]\nDescription=stand-in\n[Service]\nUser=daemon\nExecStart=/bin/true\n"
UNITS = sorted(
    path
    for folder in ("exec", "credential")
    for path in (EXAMPLES / folder).rglob("*")
    if path.is_file()
)


def command_line(path: Path) -> str:
    """The last ExecStart= of a unit, its lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return str(re.findall(r"^ExecStart=[!+]?(.+)$", text, re.MULTILINE)[-1])


@pytest.mark.parametrize("which", ["exec", "credential", "metrics"])
def test_systemd_reads_every_line(which: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` of the runtime's unit with the drop-in finds nothing to say."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on this machine")
    shutil.copytree(EXAMPLES / which, tmp_path / "units")
    (tmp_path / "units/byteor-runtime.service").write_text(RUNTIME)
    for path in [path for path in (tmp_path / "units").rglob("*") if path.is_file()]:
        path.write_text(
            re.sub(
                r"^(ExecStart=!?)/usr/bin/byteor-\S+",
                r"\1/bin/true",
                path.read_text(),
                flags=re.MULTILINE,
            )
        )
    names = ["byteor-runtime.service"]
    if which == "credential":
        names += ["byteor-identity.socket", "byteor-identity@1.service"]
    if which == "metrics":
        names = ["byteor-metrics.service", "byteor-metrics.timer"]
    done = subprocess.run(
        [program, "verify", "--man=no", *[str(tmp_path / "units" / name) for name in names]],
        capture_output=True, text=True, check=False, env={"SYSTEMD_UNIT_PATH": f"{tmp_path}/units:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "byteor" in line] == []


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    return host


def local(host: Host, line: str, *, runtime: str) -> list[str]:
    """A command line of a unit, for this host's root and a runtime that prints what it was
    given.
    """
    line = line.replace("/usr/bin/byteor-agent exec", f"{BIN}/byteor-agent exec --root {host.root}")
    line = line.replace("--user byteor", f"--user {os.geteuid()}").replace("$$", "$")
    inner = re.fullmatch(r"/bin/sh -c '(.*)'", line, re.DOTALL)
    script = (inner.group(1) if inner else line).replace("/usr/bin/byteor-runtime", runtime)
    return ["/bin/sh", "-c", script]


RUNTIME_PRINTS = "/usr/bin/printenv BYTEOR_API_BASE_URL BYTEOR_AGENT_ID BYTEOR_AGENT_API_KEY"


def test_the_exec_example_hands_the_three_values_over(host: Host) -> None:
    """Its command line, run as it stands, ends in a runtime that has them."""
    line = command_line(EXAMPLES / "exec/byteor-runtime.service.d/identity.conf")
    out = subprocess.run(
        local(host, line, runtime=RUNTIME_PRINTS), capture_output=True, text=True, check=True
    ).stdout
    assert (
        out.splitlines()[:2] == [host.plane.base_url, host.plane.agents()[0]["agent_id"]]
        and len(out.split()) == 3
    )


def test_the_credential_example_hands_the_three_values_over(host: Host, tmp_path: Path) -> None:
    """What the socket's unit answers is what the drop-in reads; without an answer the runtime does
    not start.
    """
    answer = local(host, command_line(EXAMPLES / "credential/byteor-identity@.service"), runtime="")
    credential = subprocess.run(answer, capture_output=True, text=True, check=True).stdout
    assert credential.splitlines()[:2] == [host.plane.base_url, host.plane.agents()[0]["agent_id"]]
    line = command_line(EXAMPLES / "credential/byteor-runtime.service.d/identity.conf")
    command = local(host, line, runtime=RUNTIME_PRINTS)
    environ = {"PATH": os.environ["PATH"], "CREDENTIALS_DIRECTORY": str(tmp_path)}
    (tmp_path / "byteor.identity").write_text(credential)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert done.stdout == credential
    (tmp_path / "byteor.identity").write_text("")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout) == (125, "")


def test_each_example_is_on_the_page_about_the_identity() -> None:
    """An example that nobody finds is none."""
    page = (EXAMPLES.parents[1] / ".github/reference/identity.md").read_text()
    assert "image-build/examples/exec" in page and "image-build/examples/credential" in page
    assert len(UNITS) == 4
