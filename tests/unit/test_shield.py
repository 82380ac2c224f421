"""The shield: which boots it takes, and that what it copies up comes down again, and nothing else.

The mounts are real, in a mount namespace of their own (root).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from firstboot.provision.erase.copies import _shielded
from firstboot.provision.erase.receipt import Copy, Stored
from firstboot.provision.erase.shield import COPIED, DISCARDING, MEMORY, unsuitable

NOCLOUD = "datasource_list: [ NoCloud, None ]\n"
DEVICE = "DataSourceNoCloud: DataSourceNoCloud [seed=/dev/vda][dsmode=net]"


@pytest.mark.parametrize(
    ("listed", "last", "seeded", "manual", "why"),
    [
        (NOCLOUD, None, False, False, None),
        (NOCLOUD, DEVICE, False, False, None),
        ("datasource_list: [ Ec2, None ]\n", "DataSourceEc2Local: x", False, False, None),
        (None, "DataSourceEc2: DataSourceEc2", False, False, None),
        (None, None, False, False, "neither"),
        ("datasource_list: [ None ]\n", None, False, False, "neither"),
        ("di_report:\n  datasource_list: [ NoCloud ]\n", None, False, False, "neither"),
        ("datasource_list: [ NoCloud, Azure, None ]\n", None, False, False, "Azure"),
        ("datasource_list: [ NoCloud, None ]\n", "DataSourceConfigDrive: x", False, False, "Conf"),
        (NOCLOUD, None, True, False, "directory"),
        (NOCLOUD, "DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud]", False, False, "direct"),
        (NOCLOUD, DEVICE, False, True, "manual-clean"),
    ],
)
def test_only_a_boot_whose_cache_is_discarded_is_shielded(
    listed: str | None, last: str | None, seeded: bool, manual: bool, why: str | None
) -> None:
    """Where neither file tells, or a source may use its cache, all stays on the disk."""
    said = unsuitable(listed, last, seeded=seeded, manual=manual)
    assert said is None if why is None else said is not None and why in said


def test_a_source_that_confirms_a_cached_id_is_not_among_them() -> None:
    """These have check_instance_id in cloud-init 22.4."""
    keeping = {"Azure", "ConfigDrive", "DigitalOcean", "Hetzner", "IBMCloud", "LXD", "MAAS"}
    assert not DISCARDING & (keeping | {"OpenStack", "Oracle", "UpCloud", "Vultr"})


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/var/lib/cloud/instances/iid-1/obj.pkl", "in memory"),
        ("/run/cloud-init/combined-cloud-config.json", "in memory"),
        ("/run/byteor-firstboot/settings.yaml", "in memory"),
        ("/var/lib/cloud/instances/iid-1/scripts/part-001", "not shielded: /var"),
        ("/run/byteor-shield/cloud/instances/iid-1/obj.pkl", "not shielded: /run"),
        ("/var/log/cloud-init.log", "not shielded: /var/log"),
    ],
)
def test_the_receipt_calls_a_boot_shielded_only_where_every_copy_was_in_memory(
    path: str, said: str
) -> None:
    """A copy on the disk, one that remains, and a token that is not spent yet all end the claim."""
    row = Copy(path, {"raw": 1}, "overwritten")
    before = Stored(boot_id="b", shield=MEMORY)
    assert _shielded(MEMORY, Stored(), "b", [row], unspent=False).startswith(said)
    assert _shielded(MEMORY, Stored(), "b", [row], unspent=True).startswith("not shielded")
    left = replace(row, result="remains")
    assert _shielded(MEMORY, Stored(), "b", [left], unspent=False).startswith("not shielded")
    assert _shielded(COPIED, before, "b", [], unspent=False) == MEMORY
    assert _shielded(COPIED, before, "other", [], unspent=False) != MEMORY
    assert _shielded(COPIED, before, "b", [row], unspent=False) != MEMORY


needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

PRELUDE = """
import json, os, sys
from pathlib import Path
from firstboot.base.layout import Layout
from firstboot.provision.erase.shield import Shield
layout = Layout(Path(sys.argv[1]))
cloud = layout.root / "var/lib/cloud"
live = cloud / "instances"
def boot(name, text):
    '''As cloud-init does: the link, the cache, semaphores and a script.'''
    for part in ("sem", "scripts"):
        (live / name / part).mkdir(parents=True, exist_ok=True)
    link = cloud / "instance"
    link.unlink(missing_ok=True)
    link.symlink_to(f"/var/lib/cloud/instances/{name}")
    (live / name / "obj.pkl").write_text(text)
    (live / name / "user-data.txt").write_text(text)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "var/lib/cloud").mkdir(parents=True)
    (tmp_path / "run/cloud-init").mkdir(parents=True)
    (tmp_path / "run/cloud-init/cloud.cfg").write_text(NOCLOUD)
    return tmp_path


def alone(root: Path, code: str) -> str:
    """Run `code` in a mount namespace of its own; what it mounts is gone with it."""
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-I", "-c"]
    done = subprocess.run([*command, PRELUDE + code, str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_mounts
def test_the_disk_has_the_semaphores_at_once_and_the_rest_after_down(root: Path) -> None:
    """Nothing but ``sem`` and ``scripts`` reaches the disk before `down`; then all of it does."""
    out = alone(
        root,
        """
shield = Shield(layout)
shield.up()
boot("iid-1", "token")
(live / "iid-1/sem/config_runcmd").write_text("ran")
shield.bind()
shield.bind()
(live / "iid-1/sem/later").write_text("ran")
(live / "iid-1/scripts/runcmd").write_text("#!/bin/sh")
below = sorted(str(p.relative_to(shield.disk)) for p in shield.disk.rglob("*"))
(live / "iid-1/user-data.txt").write_text("xxxxx")
(live / "iid-1/obj.pkl").write_text("xxxxx")
state = shield.state()
shield.down()
shield.down()
print(json.dumps([below, state, shield.state(), os.path.ismount(live)]))
""",
    )
    below, before, after, mounted = json.loads(out)
    assert below == [
        "iid-1",
        "iid-1/scripts",
        "iid-1/scripts/runcmd",
        "iid-1/sem",
        "iid-1/sem/config_runcmd",
        "iid-1/sem/later",
    ]
    assert (before, after, mounted) == ("in memory", "copied to the disk", False)
    instance = root / "var/lib/cloud/instances/iid-1"
    assert (instance / "obj.pkl").read_text() == "xxxxx"
    assert (instance / "sem/config_runcmd").read_text() == "ran"
    assert not [
        path for path in instance.rglob("*") if path.is_file() and "token" in path.read_text()
    ]


@needs_mounts
def test_only_what_was_copied_up_and_is_gone_is_deleted_beneath(root: Path) -> None:
    """What another wrote beneath meanwhile stays; modes and owners come down with the files."""
    instance = root / "var/lib/cloud/instances/iid-1"
    for name in ("keep", "gone"):
        (instance / name).mkdir(parents=True)
        (instance / name / "file").write_text("old")
    out = alone(
        root,
        """
shield = Shield(layout)
shield.up()
boot("iid-1", "xxxxx")
(live / "iid-1/gone/file").unlink()
(live / "iid-1/gone").rmdir()
(live / "iid-1/keep/file").write_text("new")
os.chmod(live / "iid-1/keep/file", 0o640)
os.chown(live / "iid-1/keep/file", 1, 2)
(shield.disk / "iid-1/beneath").write_text("by another")
shield.down()
print(sorted(str(p.relative_to(live)) for p in live.rglob("*") if p.is_file()))
""",
    )
    assert "beneath" in out
    assert not (instance / "gone").exists()
    facts = (instance / "keep/file").stat()
    assert (facts.st_mode & 0o777, facts.st_uid, facts.st_gid) == (0o640, 1, 2)
    assert (instance / "keep/file").read_text() == "new"


@needs_mounts
def test_a_copy_up_that_fails_leaves_cloud_init_as_it_is(root: Path) -> None:
    """No mount is left, and the state says why."""
    (root / "var/lib/cloud/instances/iid-1").mkdir(parents=True)
    out = alone(
        root,
        """
from firstboot.base.errors import LocalFault
from firstboot.provision.erase import shield as module
run = module._run
def failing(*command):
    if command[0] == "cp":
        raise LocalFault("cp failed: no space")
    run(*command)
module._run = failing
shield = Shield(layout)
try:
    shield.up()
except LocalFault:
    print(os.path.ismount(live), os.path.ismount(layout.root / "run/byteor-shield/cloud"), shield.state())
""",
    )
    assert out.strip() == "False False not shielded: cp failed: no space"


@needs_mounts
def test_a_disk_that_is_full_keeps_the_mount_and_what_is_beneath(root: Path) -> None:
    """Nothing is lost: the live tree stays, and a later `down` finishes."""
    out = alone(
        root,
        """
import subprocess
small = layout.root / "var/lib/cloud"
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=True)
from firstboot.base.errors import LocalFault
shield = Shield(layout)
shield.up()
boot("iid-1", "x" * 100000)
try:
    shield.down()
except LocalFault as error:
    print(os.path.ismount(live), "no room" in str(error), (live / "iid-1/obj.pkl").stat().st_size)
subprocess.run(["mount", "-o", "remount,size=1m", str(small)], check=True)
shield.down()
print(os.path.ismount(live), (live / "iid-1/obj.pkl").stat().st_size)
""",
    )
    assert out.split() == ["True", "True", "100000", "False", "100000"]


@needs_mounts
def test_a_cloud_directory_behind_a_link_is_shielded_all_the_same(tmp_path: Path) -> None:
    """The kernel names mounts by their real path; what is not found there would never come down."""
    out = alone(
        tmp_path,
        """
import subprocess
for place in ("/var/lib/cloud", "/run"):
    Path(place).mkdir(exist_ok=True)
subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "none", "/var/lib"], check=True)
Path("/var/lib/data/cloud").mkdir(parents=True)
Path("/var/lib/cloud").symlink_to("/var/lib/data/cloud")
Path("/run/cloud-init").mkdir()
Path("/run/cloud-init/cloud.cfg").write_text("datasource_list: [ NoCloud, None ]\\n")
layout, cloud = Layout(), Path("/var/lib/cloud")
live = cloud / "instances"
shield = Shield(layout)
shield.up()
boot("iid-1", "xxxxx")
shield.bind()
(live / "iid-1/sem/ran").write_text("x")
shield.down()
print(shield.state(), os.path.ismount("/var/lib/data/cloud/instances"), sorted(os.listdir(live / "iid-1")), os.listdir(live / "iid-1/sem"))
""",
    )
    assert out.strip() == (
        "copied to the disk False ['obj.pkl', 'scripts', 'sem', 'user-data.txt'] ['ran']"
    )


@needs_mounts
@pytest.mark.parametrize("failing", ["cp --update", "umount"])
def test_no_fault_of_up_leaves_memory_mounted(root: Path, failing: str) -> None:
    """The unit is failed then, and nothing would copy it down."""
    (root / "var/lib/cloud/instances/iid-1/sem").mkdir(parents=True)
    (root / "var/lib/cloud/instance").symlink_to("/var/lib/cloud/instances/iid-1")
    out = alone(
        root,
        f"""
from firstboot.base.errors import LocalFault
from firstboot.provision.erase import shield as module
run, words = module._run, {failing.split()!r}
def fails(*command):
    if command[0] == words[0] and set(words) <= set(command) and "--lazy" not in command:
        raise LocalFault("it failed")
    run(*command)
module._run = fails
shield = Shield(layout)
try:
    shield.up()
except LocalFault:
    pass
print(os.path.ismount(live), shield.state())
""",
    )
    assert out.strip() == "False not shielded: it failed"
