"""SIGKILL at every call with which `generalize` changes the disk: the next one ends the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host
from tests.integration.spawn import BIN
from tests.integration.test_first_boot_killed import AT_ONCE, CHANGING, STRACE, THIRDS
from tests.integration.test_generalize import IDENTITY, OURS

pytestmark = [
    pytest.mark.minutes,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        STRACE is None, reason="strace is not on this machine (Debian: apt-get install strace)"
    ),
]
RMDIR = ("rmdir",)


def traced(root: Path, words: list[str], *options: str) -> int:
    command = [str(STRACE), "-f", *options, str(BIN / "byteor-firstboot"), *words]
    environ = {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "--root", str(root)], capture_output=True, text=True, timeout=120, env=environ
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def calls(root: Path, words: list[str], trace: Path) -> list[tuple[str, int]]:
    """Every changing call below the root of a whole command: its name, which one of that name."""
    names = (*CHANGING, *RMDIR)
    assert traced(root, words, "-y", "-o", str(trace), "-e", f"trace={','.join(names)}") == 0
    found, counts = [], Counter[str]()
    for line in trace.read_text(errors="replace").splitlines():
        name = line.split(maxsplit=1)[1].split("(", 1)[0]
        if name not in names:
            continue
        counts[name] += 1
        if str(root) in line and (name != "openat" or re.search("O_CREAT", line)):
            found.append((name, counts[name]))
    return found


def tree(root: Path) -> dict[str, bytes]:
    """What is in our places: every path, and each file's content."""
    found = {}
    for top in ("var/lib/byteor", "run", "etc/byteor"):
        for path in (root / top).rglob("*"):
            data = path.read_bytes() if path.is_file() else b"directory"
            found[str(path.relative_to(root))] = data
    return found


@pytest.mark.parametrize("words", [["generalize"], ["generalize", "--stale"]], ids=" ".join)
@pytest.mark.parametrize("third", THIRDS)
def test_cut_anywhere(tmp_path: Path, control_plane: Any, words: list[str], third: int) -> None:
    """Whatever was removed before the kill, the second command leaves what an uncut one leaves."""
    host = Host(tmp_path / "host", control_plane)
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    real = ("credentials.sealed", "sealing.key", "sealing.cred", "marks.json", "settings.json")
    for name, content in OURS.items():
        if not name.endswith(real) or "set-aside" in name:
            host.write(name, content, 0o600)
    if words[-1] == "--stale":
        host.write("etc/machine-id", "f" * 32 + "\n")
    whole = tmp_path / "whole"
    shutil.copytree(host.root, whole, symlinks=True)
    points = calls(whole, words, tmp_path / "trace")
    wanted = tree(whole)
    assert len(points) > (60 if len(words) == 1 else 15), points
    points = points[(third + len(words)) % 3 :: 3]
    assert not (whole / IDENTITY / "credentials.sealed").exists()

    def one(point: tuple[str, int]) -> str | None:
        name, which = point
        root = tmp_path / f"{name}-{which}"
        shutil.copytree(host.root, root, symlinks=True)
        inject = f"inject={name}:signal=KILL:when={which}"
        cut = traced(root, words, "-o", "/dev/null", "-e", f"trace={name}", "-e", inject)
        code = traced(root, words, "-o", "/dev/null", "-e", "trace=none")
        after = tree(root)
        shutil.rmtree(root)
        if code != 0 or cut == 0:
            return f"{point}: exit {cut}, then {code}"
        return None if after == wanted else f"{point}: {after.keys() ^ wanted.keys()}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert [wrong for wrong in pool.map(one, points) if wrong] == []
