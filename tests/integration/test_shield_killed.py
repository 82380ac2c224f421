"""SIGKILL and ENOSPC at every call of the shield's copying: cloud-init's state is whole.

The mounts are real, in a mount namespace of their own (root). A command that was cut is called
again, as the units do; or the power goes, and with it the memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration import killing

pytestmark = [
    *killing.MARKS,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]
STEP = """
import sys
from pathlib import Path
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision.erase.shield import Shield
try:
    getattr(Shield(Layout(Path(sys.argv[1]))), sys.argv[2])()
except LocalFault:
    sys.exit(7)
"""
# One boot: what comes before the step, the step as it is given (under strace), what comes after.
BOOT = """
import json, os, subprocess, sys
from pathlib import Path
root, step, again, given = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
plain = [sys.executable, "-I", "-c", os.environ["STEP"], str(root)]
cloud, live = root / "var/lib/cloud", root / "var/lib/cloud/instances"
def tree():
    found = {}
    for path in sorted(live.rglob("*")):
        name, facts = str(path.relative_to(live)), path.lstat()
        text = path.read_text() if path.is_file() else ""
        found[name] = [oct(facts.st_mode), facts.st_uid, text]
    return found
if step == "down":
    subprocess.run([*plain, "up"], check=True)
    instance = live / "iid-1"
    (instance / "gone/file").unlink()
    (instance / "gone").rmdir()
    for name in ("obj.pkl", "user-data.txt", "fresh"):
        (instance / name).write_text("x" * 40 + name)
    (instance / "sem/later").write_text("ran")
    os.chmod(instance / "fresh", 0o640)
wanted = tree()
code = subprocess.run([*given, *plain, step], env={}).returncode
cut = os.path.ismount(live)
if again:
    subprocess.run([*plain, again], check=True)
print(json.dumps({"code": code, "wanted": wanted, "after": tree(), "mounted": os.path.ismount(live), "cut": cut}))
"""
NAMES = (*killing.CHANGING, "vfork", "clone", "wait4")


def prepared(root: Path) -> Path:
    """Return a host that was booted before: its seed is a device, so that it may be shielded."""
    instance = root / "var/lib/cloud/instances/iid-1"
    for name in ("sem", "scripts", "gone", "keep"):
        (instance / name).mkdir(parents=True)
    for name in ("obj.pkl", "user-data.txt", "gone/file", "keep/file", "sem/config", "scripts/run"):
        (instance / name).write_text(f"old {name}")
    (instance.parents[1] / "instance").symlink_to("/var/lib/cloud/instances/iid-1")
    (root / "run/cloud-init").mkdir(parents=True)
    (root / "run/cloud-init/cloud.cfg").write_text("datasource_list: [ NoCloud, None ]\n")
    return root


def boot(root: Path, step: str, again: str, *given: str) -> dict[str, Any]:
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-I", "-c", BOOT]
    done = subprocess.run(
        [*command, str(root), step, again, *given],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "STEP": STEP},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def on_disk(root: Path) -> dict[str, str]:
    instances = root / "var/lib/cloud/instances"
    files = (path for path in instances.rglob("*") if path.is_file())
    return {str(path.relative_to(instances)): path.read_text() for path in files}


@pytest.mark.parametrize("step", ["up", "down"])
@pytest.mark.parametrize("fault", ["killed", "ENOSPC"])
@pytest.mark.parametrize("third", killing.THIRDS)
def test_cut_anywhere(tmp_path: Path, step: str, fault: str, third: int) -> None:
    """Called again it ends as one that was not cut; after a power cut no file is half a file."""
    whole, trace = prepared(tmp_path / "whole"), tmp_path / "trace"
    old = on_disk(whole)
    options = ("-y", "-o", str(trace), "-e", f"trace={','.join(NAMES)}")
    uncut = boot(whole, step, "", killing.STRACE, *options)
    points = killing.found(trace, below=whole, names=NAMES)
    fresh = on_disk(whole)
    assert len(points) > 10 and uncut["code"] == 0, points
    assert uncut["mounted"] == (step == "up")
    if step == "down":
        assert uncut["after"] == uncut["wanted"]

    def one(point: killing.Point) -> str | None:
        wrong = []
        root = prepared(tmp_path / f"{point[0]}-{point[1]}")
        strace = (killing.STRACE, *killing.injection(point, fault))
        # As the unit: a start that failed is followed by `down`.
        seen = boot(root, step, "down", *strace)
        if seen["mounted"] or seen["after"] != seen["wanted"]:
            wrong.append(f"called again: {seen}")
        shutil.rmtree(root)
        root = prepared(root)
        boot(root, step, "", *strace)  # and then nothing more: the memory is gone
        left = on_disk(root)
        for name, text in left.items():
            if Path(name).name.startswith("."):
                continue  # half made: the next boot's start removes it
            zeros = "\0" * len(old.get(name, ""))  # what lay beneath is overwritten first
            if text not in (old.get(name), fresh.get(name), zeros):
                wrong.append(f"after a power cut {name} is {text!r}")
        if {name for name in old if "/s" in name} - left.keys():
            wrong.append("a semaphore or a script is gone")
        boot(root, "up", "down")
        wrong += [f"{name} is left" for name in on_disk(root) if "/." in name]
        shutil.rmtree(root)
        return f"{point}: {wrong}" if wrong else None

    points = killing.chosen(points, fault, third)
    assert [wrong for wrong in killing.everywhere(points, one) if wrong] == []
