"""What installing the Debian package does to a root that is not booted, as when an image is
baked.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from . import roots
from .conftest import TOP

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

CODE = "usr/lib/python3/dist-packages/firstboot"


@pytest.fixture
def installed(image: Sequence[Path]) -> Path:
    """The layer that holds what the installation wrote."""
    return image[0]


def test_bytecode_is_compiled_at_installation(installed: Path) -> None:
    """Each module has its bytecode beside it, so that no boot compiles and a read-only /usr costs
    nothing.
    """
    modules = sorted((installed / CODE).rglob("*.py"))
    assert modules
    for module in modules:
        assert list((module.parent / "__pycache__").glob(f"{module.stem}.cpython-*.pyc")), module


def test_four_units_are_enabled_and_the_agent_is_not(installed: Path) -> None:
    """The installation enables first boot, both path units and erasing; nothing pulls the agent
    into a boot.
    """
    units = installed / "etc/systemd/system"
    wanted = {str(path.relative_to(units)) for path in units.glob("*/byteor*")}
    assert wanted == {
        "multi-user.target.wants/byteor-firstboot.service",
        "multi-user.target.wants/byteor-erase.service",
        "paths.target.wants/byteor-activate.path",
        "paths.target.wants/byteor-firstboot.path",
    }


def test_cloud_init_clean_calls_us(installed: Path) -> None:
    """Its hook is there and may be executed: cloud-init skips what may not."""
    hook = installed / "etc/cloud/clean.d/50-byteor-firstboot"
    assert stat.S_IMODE(hook.stat().st_mode) == 0o755


def test_directories_have_their_modes_and_owners(installed: Path) -> None:
    """The directories of contract section 5 are there, the private ones private, and one belongs to
    the agent.
    """
    users = dict(
        line.split(":")[0:3:2] for line in (installed / "etc/passwd").read_text().splitlines()
    )
    expected = {
        "": 0o755,
        "identity": 0o700,
        "agent": 0o700,
        "activation": 0o755,
        "deployments": 0o755,
    }
    for name, mode in expected.items():
        facts = (installed / "var/lib/byteor" / name).stat()
        assert stat.S_IMODE(facts.st_mode) == mode, name
        assert facts.st_uid == (int(users["byteor-agent"]) if name == "agent" else 0), name


def test_an_image_carries_no_identity_and_no_key(installed: Path) -> None:
    """Nothing is made at installation that two hosts from one image would share."""
    assert list((installed / "var/lib/byteor").rglob("*.*")) == []
    assert not (installed / "var/lib/systemd/credential.secret").exists()


@pytest.mark.slow
def test_the_rpm_serves_the_python_that_is_there(base: Path, tmp_path: Path) -> None:
    """Installed by rpm into a root: commands, account, bytecode and preset; removed, nothing stays.

    rpm knows no packages of Debian's, so the dependencies are not asked for.
    """
    if shutil.which("rpmbuild") is None:
        pytest.skip("rpm is not on this machine (Debian: apt-get install rpm)")
    build = [str(TOP / "image-build/build"), "--only", "rpm", str(tmp_path / "out")]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (rpm,) = (tmp_path / "out").glob("*.rpm")
    with roots.mounted(roots.new_layer(tmp_path / "disk", [base])) as root:

        def run(*words: str) -> str:
            return roots.run_in(root, *words)

        def do(*words: str) -> None:
            subprocess.run(["rpm", "--root", str(root), "--nodeps", *words], check=True)

        do("-i", str(rpm))
        before = run("find", "/usr", "/etc", "-newer", "/etc/byteor/firstboot.yaml")
        assert "byteor-agent 0.2.0" in run("byteor-agent", "--version")
        assert run("find", "/usr", "/etc", "-newer", "/etc/byteor/firstboot.yaml") == before
        run("systemctl", "preset", "byteor-firstboot.service", "byteor-agent.service")
        wants = root / "etc/systemd/system/multi-user.target.wants"
        assert [path.name for path in wants.glob("byteor*")] == ["byteor-firstboot.service"]
        run("systemctl", "disable", "byteor-firstboot.service")
        run("systemd-tmpfiles", "--create", "byteor-firstboot.conf")
        do("-e", "byteor-firstboot")
        found = run("find", "/usr", "/etc", "-name", "*byteor*")
        # The directory of the settings and the link in it are tmpfiles'; the state is the host's.
        assert found.split() in ([], ["/etc/byteor"])
