"""SIGKILL at every call with which an activation changes the disk: the next start ends with the old
or the new, and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration import killing, spawn
from tests.integration.activations import Activations
from tests.integration.spawn import BIN

pytestmark = killing.MARKS


def prepared(top: Path, *, good: bool) -> Activations:
    """One deployment in force, the next one in the inbox; its check passes or does not."""
    root = top / "root"
    # The tree is copied for each kill: what is judged must not name this one.
    check = ["/bin/true"] if good else ["/bin/sh", "-c", "! grep -q two current/spec.kv"]
    host = Activations(root, activation={"health": check})
    host.deploy("one")
    host.offer(host.make("two"))
    return host


def words(root: Path) -> list[str]:
    return [str(BIN / "byteor-agent"), "activate", "--root", str(root)]


def activate(root: Path) -> int:
    """Run the activator in the tree's state directory, so that a check may name `current` wherever
    the tree lies.
    """
    command = ["byteor-agent", *words(root)[1:]]
    done = spawn.run(command, cwd=root / "var/lib/byteor", timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


@pytest.mark.parametrize("good", [True, False], ids=["healthy", "rolled_back"])
@pytest.mark.parametrize("third", killing.THIRDS)
def test_killed_anywhere(tmp_path: Path, good: bool, third: int) -> None:
    """At no call is there neither; after the next start the right one is in force, reported once,
    and nothing is left over.
    """
    host = prepared(tmp_path, good=good)
    whole = host.copy(tmp_path / "whole").root
    place = whole / "var/lib/byteor"
    points = killing.points(words(whole), tmp_path / "trace", below=whole, cwd=place)
    assert len(points) > 60 and {"rename", "fsync", "symlink"} <= {name for name, _ in points}
    points = points[(third + good) % 3 :: 3]

    def one(point: killing.Point) -> dict[str, object]:
        copy = host.copy(tmp_path / f"{point[0]}-{point[1]}")
        code = killing.hit(words(copy.root), point, cwd=copy.root / "var/lib/byteor")
        return {"point": point, "code": code, **judged(copy, good=good)}

    seen = killing.everywhere(points, one)
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
