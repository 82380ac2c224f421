"""`preflight` beside `run`, and `trust --reset`, hit at every call with which they change the disk.

SIGKILL, a full disk, a broken one: one agent, its identity opens, nothing is half-made.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from firstboot.base.layout import Layout
from tests.integration import killing
from tests.integration.host import Host
from tests.integration.loops import ring
from tests.integration.spawn import BIN

pytestmark = [
    *killing.MARKS,
    pytest.mark.parametrize("fault", killing.FAULTS),
    pytest.mark.parametrize("third", killing.THIRDS),
]
RESET = ["trust", "--reset"]
FORMER = 3  # the version of the ring that is reset


def command(host: Host, words: list[str]) -> list[str]:
    return [str(BIN / "byteor-firstboot"), *words, "--root", str(host.root)]


def each(points: Sequence[killing.Point], hit: Callable[[str, int], list[str]]) -> None:
    """Hit every point, a few at once, and assert that nothing is wrong after any."""
    wrong = killing.everywhere(points, lambda point: (point, hit(*point)))
    print(f"{len(points)} points: {Counter(name for name, _ in points)}")
    assert [row for row in wrong if row[1]] == []


def half_made(host: Host) -> list[str]:
    """Names of temporary and damaged files; our reserve of room is none."""
    names = (path.name for path in host.path("var/lib/byteor").rglob("*"))
    return [name for name in names if name.startswith(".") or "corrupt" in name]


def cut(host: Host, words: list[str], fault: str, name: str, which: int) -> int:
    return killing.hit(command(host, words), (name, which), fault)


def test_preflight_beside_a_run(tmp_path: Path, control_plane: Any, fault: str, third: int) -> None:
    """The probe of the sealing shares the run's key, or makes none: it never costs an identity."""

    def prepared(name: str) -> Host:
        host = Host(tmp_path / name, control_plane)
        host.defaults(name=name)
        host.token(host.mint())
        return host

    whole = prepared("whole")
    points = killing.points(command(whole, ["preflight"]), tmp_path / "trace", below=whole.root)
    assert len(points) > 10, points

    def hit(name: str, which: int) -> list[str]:
        agent = f"edge-{fault.lower()}-{name}-{which}"
        host = prepared(agent)
        run = host.start("byteor-firstboot", "run")
        cut(host, ["preflight"], fault, name, which)
        _, err = run.communicate(timeout=60)
        wrong = [f"run ended with {run.returncode}: {err}"] if run.returncode else []
        for again in ("preflight", "run", "unseal"):
            done = host.call("byteor-firstboot", again)
            wrong += [f"{again}: {done}"] if done.code else []
        named = [row["name"] for row in control_plane.agents() if row["name"] == agent]
        wrong += [f"agents {named}"] if len(named) != 1 else []
        return wrong + half_made(host)

    each(killing.chosen(points, fault, third), hit)


def test_a_reset_of_the_trusted_keys(
    tmp_path: Path, control_plane: Any, fault: str, third: int
) -> None:
    """The former ring is in force or the new one; the next reset ends the same."""
    host = Host(tmp_path / "host", control_plane)
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    ring(Layout(host.root), FORMER)
    former = host.path("var/lib/byteor/activation/keyring.json").read_bytes()
    host.write("var/lib/byteor/agent/inbox/keysets.json", '{"key_sets": ["of before"]}')
    whole = tmp_path / "whole"
    shutil.copytree(host.root, whole, symlinks=True)
    uncut = [str(BIN / "byteor-firstboot"), *RESET, "--root", str(whole)]
    points = killing.points(uncut, tmp_path / "trace", below=whole)
    assert len(points) > 10, points

    def hit(name: str, which: int) -> list[str]:
        here = object.__new__(Host)
        here.root, here.plane = tmp_path / f"{name}-{which}", control_plane
        shutil.copytree(host.root, here.root, symlinks=True)
        cut(here, RESET, fault, name, which)
        shown = json.loads(here.call("byteor-firstboot", "trust", "--json").out)
        wrong = []
        if (shown["version"], shown["source"]) not in ((FORMER, "tls"), (0, "tls")):
            wrong.append(f"between: {shown}")
        for words in (RESET, ["unseal"]):
            done = here.call("byteor-firstboot", *words)
            wrong += [f"{words}: {done}"] if done.code else []
        rings = sorted(here.path("var/lib/byteor/activation").glob("keyring.json*"))
        if json.loads(rings[0].read_text())["version"] != 0:
            wrong.append("not reset")
        if former not in [path.read_bytes() for path in rings[1:]]:
            wrong.append(f"the former ring is kept in {[path.name for path in rings]}")
        if "of before" in here.path("var/lib/byteor/agent/inbox/keysets.json").read_text():
            wrong.append("an answer of before is taken for the first one after")
        return wrong + half_made(here)

    each(killing.chosen(points, fault, third), hit)
