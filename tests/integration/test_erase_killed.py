"""SIGKILL and ENOSPC at every call with which erasing changes the disk: the next look erases, or
says what stays, and cloud-init's files are whole.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.boot.scan import scan_tree
from tests.integration import killing, spawn
from tests.integration.host import Host
from tests.integration.spawn import BIN

pytestmark = killing.MARKS
INSTANCE = "var/lib/cloud/instances/iid-1"
LOG = "var/log/cloud-init-output.log"


def command(root: Path) -> list[str]:
    return [str(BIN / "byteor-firstboot"), "erase", "--root", str(root)]


def erase(root: Path) -> int:
    done = spawn.run(["byteor-firstboot", *command(root)[1:]], timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


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


@pytest.mark.parametrize("fault", ["killed", "ENOSPC"])
@pytest.mark.parametrize("third", killing.THIRDS)
def test_cut_anywhere(tmp_path: Path, host: tuple[Host, str], fault: str, third: int) -> None:
    """After the next look no copy is left, and what cloud-init reads has its length and shape."""
    whole, token = host
    shutil.copytree(whole.root, tmp_path / "whole", symlinks=True)
    uncut = command(tmp_path / "whole")
    points = killing.points(
        uncut, tmp_path / "trace", below=tmp_path / "whole", opened="O_CREAT|O_RDWR|O_WRONLY"
    )
    assert len(points) > 20 and {"pwrite64", "rename", "unlink"} <= {name for name, _ in points}
    lengths = {
        path.relative_to(whole.root): path.stat().st_size
        for path in whole.path("var/lib/cloud").rglob("*")
        if path.is_file() and not path.is_symlink()
    }

    def one(point: killing.Point) -> str | None:
        root = tmp_path / f"{point[0]}-{point[1]}"
        shutil.copytree(whole.root, root, symlinks=True)
        killing.hit(command(root), point, fault)
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

    points = killing.chosen(points, fault, third)
    assert [wrong for wrong in killing.everywhere(points, one) if wrong] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a file immutable")
def test_what_remains_is_named_whatever_cuts_the_look(
    tmp_path: Path, host: tuple[Host, str]
) -> None:
    """The sources go last, and the receipt of what stays is on the disk before: exit 9 each time."""
    whole, token = host
    for name in ("scripts/runcmd", "cloud-config.txt"):  # what erasing does to them is seen above
        whole.path(f"{INSTANCE}/{name}").unlink()
    whole.write(LOG, f"said {token}\n")

    def copy(name: str) -> Path:
        root = tmp_path / name
        shutil.copytree(whole.root, root, symlinks=True)
        if subprocess.run(["chattr", "+i", str(root / LOG)], capture_output=True).returncode:
            pytest.skip("this file system has no immutable files")
        return root

    def done_with(root: Path) -> None:
        subprocess.run(["chattr", "-i", str(root / LOG)], check=True)
        shutil.rmtree(root)

    root = copy("whole")
    points = killing.points(
        command(root), tmp_path / "trace", below=root, opened="O_CREAT|O_RDWR", code=9
    )
    done_with(root)
    assert len(points) > 15

    def one(point: killing.Point) -> str | None:
        root = copy(f"{point[0]}-{point[1]}")
        killing.hit(command(root), point)
        codes = [erase(root), erase(root)]
        left = [path for path in scan_tree(root, token).places if not path.endswith(LOG)]
        done_with(root)
        return f"{point}: {codes}, {left}" if codes != [9, 9] or left else None

    assert [wrong for wrong in killing.everywhere(points, one) if wrong] == []
