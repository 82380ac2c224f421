"""SIGKILL at every call with which `generalize` changes the disk: the next one ends the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration import killing
from tests.integration.host import Host
from tests.integration.spawn import BIN
from tests.integration.test_generalize import IDENTITY, OURS

pytestmark = killing.MARKS


def command(root: Path, words: list[str]) -> list[str]:
    return [str(BIN / "byteor-firstboot"), *words, "--root", str(root)]


def tree(root: Path) -> dict[str, bytes]:
    """What is in our places: every path, and each file's content."""
    found = {}
    for top in ("var/lib/byteor", "run", "etc/byteor"):
        for path in (root / top).rglob("*"):
            data = path.read_bytes() if path.is_file() else b"directory"
            found[str(path.relative_to(root))] = data
    return found


@pytest.mark.parametrize("words", [["generalize"], ["generalize", "--stale"]], ids=" ".join)
@pytest.mark.parametrize("third", killing.THIRDS)
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
    points = killing.points(command(whole, words), tmp_path / "trace", below=whole)
    wanted = tree(whole)
    assert len(points) > (60 if len(words) == 1 else 15), points
    points = points[(third + len(words)) % 3 :: 3]
    assert not (whole / IDENTITY / "credentials.sealed").exists()

    def one(point: killing.Point) -> str | None:
        root = tmp_path / f"{point[0]}-{point[1]}"
        shutil.copytree(host.root, root, symlinks=True)
        cut = killing.hit(command(root, words), point)
        code = killing.run(command(root, words), "-o", "/dev/null", "-e", "trace=none")
        after = tree(root)
        shutil.rmtree(root)
        if code != 0 or cut == 0:
            return f"{point}: exit {cut}, then {code}"
        return None if after == wanted else f"{point}: {after.keys() ^ wanted.keys()}"

    assert [wrong for wrong in killing.everywhere(points, one) if wrong] == []
