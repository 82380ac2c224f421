"""SIGKILL and ENOSPC at every call with which erasing changes the disk: the next look erases, or
says what stays, and cloud-init's files are whole.
"""

from __future__ import annotations

import base64
import json
import pickle
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.boot.scan import scan_tree
from tests.integration import spawn
from tests.integration.host import Host
from tests.integration.spawn import BIN

STRACE = shutil.which("strace")
pytestmark = [
    pytest.mark.minutes,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        STRACE is None, reason="strace is not on this machine (Debian: apt-get install strace)"
    ),
]
CHANGING = ("openat", "write", "pwrite64", "rename", "unlink", "chmod", "fchmod", "fsync")
AT_ONCE = 2
FAULTS = ("signal=KILL", "error=ENOSPC")
# Which of three calls in a row are hit; the faults begin with different ones.
THIRDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
INSTANCE = "var/lib/cloud/instances/iid-1"


def erase(root: Path, *tracer: str) -> int:
    command = ["byteor-firstboot", "erase", "--root", str(root)]
    if tracer:
        command = [*tracer, str(BIN / command[0]), *command[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    else:
        done = spawn.run(command, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def calls(root: Path, trace: Path) -> list[tuple[str, int]]:
    """Every changing call of a whole look, as (name, which one of that name)."""
    assert erase(root, str(STRACE), "-o", str(trace), "-e", f"trace={','.join(CHANGING)}") == 0
    found, counts = [], Counter[str]()
    for line in trace.read_text(errors="replace").splitlines():
        name = line.split("(", 1)[0]
        if name not in CHANGING:
            continue
        counts[name] += 1
        writing = re.search(r"O_CREAT|O_RDWR|O_WRONLY", line)
        if (name != "openat" or writing) and not re.match(r"write\([12],", line):
            found.append((name, counts[name]))
    return found


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> tuple[Host, str]:
    """An enrolled host to which the datasource gave the spent token again, in several forms."""
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    token = host.mint()
    data = host.comment_block(token)
    host.user_data(data)
    assert host.run().code == 0
    host.user_data(data)
    host.write(f"{INSTANCE}/scripts/runcmd", f"#!/bin/sh\necho '{token}'\n", 0o700)
    wrapped = base64.encodebytes(data.encode()).decode().replace("\n", "\n    ")
    host.write(f"{INSTANCE}/cloud-config.txt", f"#cloud-config\nx: |\n    {wrapped}\n", 0o600)
    host.write("run/byteor-firstboot/settings.yaml", f"enrollment_token: {token}\n", 0o600)
    host.path("run/byteor-firstboot").chmod(0o700)
    return host, token


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("third", THIRDS)
def test_cut_anywhere(tmp_path: Path, host: tuple[Host, str], fault: str, third: int) -> None:
    """After the next look no copy is left, and what cloud-init reads has its length and shape."""
    whole, token = host
    shutil.copytree(whole.root, tmp_path / "whole", symlinks=True)
    points = calls(tmp_path / "whole", tmp_path / "trace")
    assert len(points) > 20 and {"pwrite64", "rename", "unlink"} <= {name for name, _ in points}
    points = points[(third + FAULTS.index(fault)) % 3 :: 3]
    lengths = {
        path.relative_to(whole.root): path.stat().st_size
        for path in whole.path("var/lib/cloud").rglob("*")
        if path.is_file() and not path.is_symlink()
    }

    def one(point: tuple[str, int]) -> str | None:
        name, which = point
        root = tmp_path / f"{name}-{which}"
        shutil.copytree(whole.root, root, symlinks=True)
        inject = ("-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={which}")
        erase(root, str(STRACE), "-f", "-o", "/dev/null", *inject)
        code = erase(root)
        left = scan_tree(root, token)
        receipt = json.loads((root / "var/lib/byteor/identity/erasure.json").read_text())
        if left and code != 9:
            return f"{point}: exit {code}, and {left} hold it: {receipt}"
        for path, size in lengths.items():
            if (root / path).stat().st_size != size:
                return f"{point}: the length of {path} changed"
        pickle.loads((root / INSTANCE / "obj.pkl").read_bytes())
        shutil.rmtree(root)
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert [wrong for wrong in pool.map(one, points) if wrong] == []
