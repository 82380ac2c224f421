"""SIGKILL, a full disk or a broken one at every call with which first boot changes the disk.

After the next plain `run`: one agent, its identity opens, no token anywhere, nothing half-made.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.boot.scan import scan_tree
from tests.integration import killing
from tests.integration.host import Host
from tests.integration.spawn import BIN

pytestmark = killing.MARKS
COMMANDS = ("run", "reenroll", "erase")


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


def words(host: Host, command: str) -> list[str]:
    return [str(BIN / "byteor-firstboot"), command, "--root", str(host.root)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", killing.FAULTS)
@pytest.mark.parametrize("third", killing.THIRDS)
def test_hit_anywhere(
    tmp_path: Path, control_plane: Any, command: str, fault: str, third: int
) -> None:
    """One agent, whatever call of the whole run is hit, and whatever hits it."""
    whole, _ = prepared(tmp_path / "whole", control_plane, f"{command}-{fault}".lower(), command)
    points = killing.points(words(whole, command), tmp_path / "trace", below=whole.root)
    assert len(points) > (40 if command != "erase" else 10), points

    def one(point: killing.Point) -> tuple[killing.Point, int, list[str]]:
        agent = f"{command}-{fault}-{point[0]}-{point[1]}".lower()
        host, tokens = prepared(tmp_path / agent, control_plane, agent, command)
        code = killing.hit(words(host, command), point, fault)
        return point, code, judged(host, tokens, agent, command)

    seen = killing.everywhere(killing.chosen(points, fault, third), one)
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
