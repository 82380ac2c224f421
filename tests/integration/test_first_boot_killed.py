"""SIGKILL, a full disk or a broken one at every call with which first boot changes the disk.

After the next plain `run`: one agent, its identity opens, no token anywhere, nothing half-made.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.boot.scan import scan_tree
from tests.integration.host import Host
from tests.integration.spawn import BIN

STRACE = shutil.which("strace")
pytestmark = [
    pytest.mark.minutes,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        STRACE is None, reason="strace is not on this machine (Debian: apt-get install strace)"
    ),
]
# Whatever changes what a later run finds, or makes it durable. `openat`: files are made by it.
CHANGING = (
    "openat", "write", "pwrite64", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir",
    "mkdirat", "link", "linkat", "chmod", "fchmod", "fchmodat", "fsync", "fdatasync",
)  # fmt: skip
AT_ONCE = 3
FAULTS = {"killed": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
COMMANDS = ("run", "reenroll", "erase")
# Which of three calls in a row: each fault begins with another, so together they hit every call.
THIRDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def prepared(top: Path, plane: Any, name: str, command: str) -> tuple[Host, list[str]]:
    """Return a host on which `command` has work to do, and the tokens that must go."""
    host, tokens = Host(top, plane), [plane_token(plane)]
    host.defaults(name=name)
    host.user_data(host.comment_block(tokens[0], name=name))
    if command != "run":
        assert host.run().code == 0
        host.user_data(host.comment_block(tokens[0], name=name))  # the datasource put it back
    if command == "reenroll":
        tokens.append(plane_token(plane))
        host.defaults(name=f"{name}-b")
        host.user_data(host.comment_block(tokens[1], name=f"{name}-b"))
    return host, tokens


def plane_token(plane: Any) -> str:
    return Host.mint(type("Any", (), {"plane": plane})())  # type: ignore[arg-type]


def traced(host: Host, command: str, *options: str) -> int:
    """Run the command under strace, writing no bytecode: only what we change is counted."""
    done = subprocess.run(
        [str(STRACE), *options, str(BIN / "byteor-firstboot"), command, "--root", str(host.root)],
        capture_output=True, text=True, timeout=120, env={"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "this is a bug" not in done.stderr, done.stderr
    return done.returncode


def calls(host: Host, command: str, trace: Path) -> list[tuple[str, int]]:
    """Return every changing call of a whole run below the root: its name, which one of that."""
    options = ("-y", "-o", str(trace), "-e", f"trace={','.join(CHANGING)}")
    assert traced(host, command, *options) == 0
    found, counts = [], Counter[str]()
    for line in trace.read_text(errors="replace").splitlines():
        name = line.split("(", 1)[0]
        if name not in CHANGING:
            continue
        counts[name] += 1
        if str(host.root) in line and (name != "openat" or re.search("O_CREAT", line)):
            found.append((name, counts[name]))
    return found


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("third", THIRDS)
def test_hit_anywhere(
    tmp_path: Path, control_plane: Any, command: str, fault: str, third: int
) -> None:
    """One agent, whatever call of the whole run is hit, and whatever hits it."""
    whole, _ = prepared(tmp_path / "whole", control_plane, f"{command}-{fault}".lower(), command)
    points = calls(whole, command, tmp_path / "trace")
    assert len(points) > (40 if command != "erase" else 10), points
    points = points[(third + list(FAULTS).index(fault)) % 3 :: 3]

    def one(point: tuple[str, int]) -> tuple[tuple[str, int], int, list[str]]:
        name, which = point
        agent = f"{command}-{fault}-{name}-{which}".lower()
        host, tokens = prepared(tmp_path / agent, control_plane, agent, command)
        inject = f"inject={name}:{FAULTS[fault]}:when={which}"
        code = traced(host, command, "-o", "/dev/null", "-e", f"trace={name}", "-e", inject)
        return point, code, judged(host, tokens, agent, command)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(one, points))
    print(f"{command}, {fault}: {len(seen)} points, {Counter(code for _, code, _ in seen)}")
    assert [row for row in seen if row[2]] == []
    if fault == "killed":
        assert sum(code != 0 for _, code, _ in seen) > 0.9 * len(seen), "the kills did not happen"


def judged(host: Host, tokens: list[str], agent: str, command: str) -> list[str]:
    """Return what is wrong after the next plain run."""
    wrong = []
    for again in (["run"], ["reenroll"] if command == "reenroll" else ["run"], ["erase"]):
        done = host.call("byteor-firstboot", *again)
        # A reenroll that was finished by the run before has no fresh token left.
        if done.code not in ((0, 3) if again == ["reenroll"] else (0,)):
            wrong.append(f"{again}: {done}")
    if host.call("byteor-firstboot", "unseal").code != 0:
        wrong.append("the identity does not open")
    names = [row["name"] for row in host.plane.agents() if row["name"].startswith(agent)]
    named = sorted(names) == [agent, f"{agent}-b"] if command == "reenroll" else names == [agent]
    if not named:
        wrong.append(f"agents {names}")
    for token in tokens:
        if scan_tree(host.root, token):
            wrong.append("a token is left")
    identity = host.path("var/lib/byteor/identity")
    left = [path.name for path in identity.rglob("*") if path.name.startswith(".")]
    left += [path.name for path in identity.iterdir() if "corrupt" in path.name]
    if left or (identity / "intent.json").exists():
        wrong.append(f"left over: {left}")
    if not wrong:
        shutil.rmtree(host.root)
    return wrong
