"""SIGKILL at every call with which an activation changes the disk: the next start ends with the old
or the new, and says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration import spawn
from tests.integration.activations import Activations
from tests.integration.spawn import BIN

STRACE = shutil.which("strace")
pytestmark = [
    pytest.mark.minutes,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        STRACE is None, reason="strace is not on this machine (Debian: apt-get install strace)"
    ),
]
# Whatever changes what a later start finds, or makes it durable. `openat`: files are made by it.
CHANGING = (
    "openat", "write", "pwrite64", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat",
    "symlink", "symlinkat", "link", "linkat", "chmod", "fchmod", "fchmodat", "ftruncate", "fsync", "fdatasync",
)  # fmt: skip
CREATING = re.compile(r"O_CREAT")
AT_ONCE = 3
# Which of three calls in a row are hit; the ways to end begin with different ones.
THIRDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def prepared(top: Path, *, good: bool) -> Activations:
    """One deployment in force, the next one in the inbox; its check passes or does not."""
    root = top / "root"
    # The tree is copied for each kill: what is judged must not name this one.
    check = ["/bin/true"] if good else ["/bin/sh", "-c", "! grep -q two current/spec.kv"]
    host = Activations(root, activation={"health": check})
    host.deploy("one")
    host.offer(host.make("two"))
    return host


def activate(root: Path, *tracer: str) -> int:
    """Run the activator in the tree's state directory, so that a check may name `current` wherever
    the tree lies.
    """
    command = ["byteor-agent", "activate", "--root", str(root)]
    place = root / "var/lib/byteor"
    if tracer:
        command = [*tracer, str(BIN / command[0]), *command[1:]]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    else:
        done = spawn.run(command, cwd=place, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def calls(root: Path, trace: Path) -> list[tuple[str, int]]:
    """Every changing call of a whole run, as (name, which one of that name)."""
    assert activate(root, str(STRACE), "-o", str(trace), "-e", f"trace={','.join(CHANGING)}") == 0
    found, counts = [], Counter[str]()
    for line in trace.read_text(errors="replace").splitlines():
        name = line.split("(", 1)[0]
        if name not in CHANGING:
            continue
        counts[name] += 1
        if name == "openat" and not CREATING.search(line):
            continue
        found.append((name, counts[name]))
    return found


@pytest.mark.parametrize("good", [True, False], ids=["healthy", "rolled_back"])
@pytest.mark.parametrize("third", THIRDS)
def test_killed_anywhere(tmp_path: Path, good: bool, third: int) -> None:
    """At no call is there neither; after the next start the right one is in force, reported once,
    and nothing is left over.
    """
    host = prepared(tmp_path, good=good)
    points = calls(host.copy(tmp_path / "whole").root, tmp_path / "trace")
    assert len(points) > 60 and {"rename", "fsync", "symlink"} <= {name for name, _ in points}
    points = points[(third + good) % 3 :: 3]

    def one(point: tuple[str, int]) -> dict[str, object]:
        name, which = point
        copy = host.copy(tmp_path / f"{name}-{which}")
        root = copy.root
        kill = ("-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={which}")
        code = activate(root, str(STRACE), "-o", "/dev/null", *kill)
        return {"point": point, "code": code, **judged(copy, good=good)}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(one, points))
    assert [row for row in seen if row["wrong"]] == []
    killed = [row for row in seen if row["code"] != 0]
    assert len(killed) > 0.9 * len(seen), "the kills did not happen"


def judged(host: Activations, *, good: bool) -> dict[str, object]:
    """What is wrong now, and after the next start."""
    wrong: list[str] = []
    if host.spec() not in ("name = one\n", "name = two\n"):
        wrong.append(f"right after the kill {host.spec()!r} is in force")
    for _ in range(2):  # the path unit starts it as long as there is a journal or a request
        if activate(host.root) != 0:
            wrong.append("the next start failed")
    expected = ["active", "active"] if good else ["active", "failed", "rolled_back"]
    if [status for _, status, _ in host.said()] != expected:
        wrong.append(f"reported {host.said()}")
    if host.spec() != ("name = two\n" if good else "name = one\n"):
        wrong.append(f"{host.spec()!r} is in force")
    left = [
        path.name
        for path in host.state.rglob("*")
        if path.name.startswith(".") and path.name != ".deployment.json"
    ]
    if left or (host.state / "activation/journal.json").exists():
        wrong.append(f"left over: {left}")
    if not wrong:
        shutil.rmtree(host.root)
    return {"wrong": wrong}


@pytest.mark.parametrize("times", [1, 2, 3])
def test_three_interrupted_tries_end_in_failed(tmp_path: Path, times: int) -> None:
    """Killed in its health gate once or twice it is tried again; the third time it is undone and
    reported as failed.
    """
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    host = Activations(tmp_path / "root")
    host.deploy("one")
    # The check of the new one never ends by itself: it is the moment at which the kill comes.
    check = f"grep -q one {host.state}/current/spec.kv || {{ echo in > {gate}; exec sleep 3; }}"
    host.write_settings(activation={"window_s": 0, "health": ["/bin/sh", "-c", check]})
    host.offer(host.make("two"))
    for _ in range(times):
        process = subprocess.Popen(
            [str(BIN / "byteor-agent"), "activate", "--root", str(host.root)],
            start_new_session=True,
        )
        gate.read_text()
        process.kill()
        process.wait()
        assert host.spec() == "name = two\n"
    if times < 3:
        host.write_settings(activation={"window_s": 0, "health": ["/bin/true"]})
        host.activate()
        assert host.spec() == "name = two\n" and host.said()[-1][1] == "active"
    else:
        host.activate()
        assert host.spec() == "name = one\n"
        assert [row[1:] for row in host.said()[1:]] == [
            ("failed", "interrupted"),
            ("rolled_back", "interrupted"),
        ]
