"""The package replaced while the host runs: up from 0.1.0, down to it, up again, and purged; and
installed and upgraded from a repository that we signed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane

from . import hosts, roots, seeds
from .conftest import TOP
from .facts import Boot, ordering_cycles
from .guest import Guest
from .network import Network

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

OLD, OLD_COMMIT = "0.1.0", "d66e77e"
# Not about us: going down, and directories of /lib that other packages own by the name of /usr/lib
# (Debian 13). Units stay in /lib: the debhelper of Debian 12 and the helper of 11 know no other place.
ACCEPTED = ("downgrading", "directory '/lib/systemd/system")
# What names us after a purge and is not ours: logs of others, the account, what the test put there.
NOT_OURS = ("/var/log/", "/run/", "/opt/", "/proc/", "/sys/", "/tmp/")


@pytest.fixture(scope="session")
def old_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of version 0.1.0, built from the commit before the version was raised."""
    directory = tmp_path_factory.mktemp("old")
    archive = subprocess.run(["git", "-C", str(TOP), "archive", OLD_COMMIT], capture_output=True)
    if archive.returncode != 0:
        pytest.skip(f"commit {OLD_COMMIT} of version {OLD} is not in this checkout")
    subprocess.run(["tar", "-xC", str(directory)], input=archive.stdout, check=True)
    subprocess.run([str(directory / "image-build/build-deb"), str(directory)], check=True)
    return next(directory.glob("*.deb"))


def version_of(deb: Path) -> str:
    words = ["dpkg-deb", "--field", str(deb), "Version"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@dataclass
class Replaced:
    """What was seen: of each installation the version, its output, and the units afterwards."""

    guest: Guest
    plane: ControlPlane
    agent_id: str = ""
    steps: list[tuple[str, str, Boot]] = field(default_factory=list)
    purged: str = ""
    left: list[str] = field(default_factory=list)
    account: bool = False


def install(seen: Replaced, deb: str, version: str) -> None:
    """Install over the running one, and wait until the agent of that version beats."""
    guest, plane = seen.guest, seen.plane
    before = guest.unit(hosts.AGENT)["MainPID"]
    said = guest.run("sh", "-c", f"DEBIAN_FRONTEND=noninteractive dpkg -i {deb} 2>&1").stdout
    installed = guest.run("dpkg-query", "-W", "-f=${Version}", "byteor-firstboot").stdout
    assert installed == version
    guest.wait_for(
        lambda: guest.unit(hosts.AGENT)["MainPID"] not in ("0", before), "a new agent", timeout=60
    )
    count = len(hosts.beats(plane, seen.agent_id))
    hosts.wait_for_beat(guest, plane, seen.agent_id, after=count + 1)
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    seen.steps.append((version, said, guest.look()))


def named(guest: Guest) -> list[str]:
    """Return every path whose name is ours."""
    command = ["find", "/", "-xdev", "-iname", "*byteor*", "-o", "-xdev", "-path", "*byteor*"]
    found = guest.run(*command).stdout.splitlines()
    return [path for path in found if not path.startswith(NOT_OURS)]


@pytest.fixture(scope="module")
def replaced(
    suite: str,
    base: Path,
    package: Path,
    old_package: Path,
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Replaced]:
    """Enroll with 0.1.0; up, reboot, down, up; then purge."""
    directory = tmp_path_factory.mktemp(f"old-image-{suite}")
    image: Sequence[Path] = roots.install_package(
        old_package, lowers=[base], directory=directory
    ).stack
    with ControlPlane(tmp_path_factory.mktemp("plane"), host=network.plane_address) as plane:
        guest = new_guest(f"upgrade-{suite}", image)
        text = seeds.user_data(
            hosts.settings(plane, hosts.mint(plane)), body={"hostname": guest.name}
        )
        guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
        for name, deb in (("old", old_package), ("new", package)):
            guest.write(f"/opt/{name}.deb", deb.read_bytes())
        guest.boot()
        seen = Replaced(guest, plane, hosts.wait_for_agent(guest, plane))
        hosts.wait_for_beat(guest, plane, seen.agent_id)
        hosts.wait_until_ended(guest, hosts.ERASE)
        new = version_of(package)
        install(seen, "/opt/new.deb", new)
        seen.steps.append((new, "", guest.reboot()))
        hosts.wait_for_beat(
            guest, plane, seen.agent_id, after=len(hosts.beats(plane, seen.agent_id))
        )
        install(seen, "/opt/old.deb", OLD)
        install(seen, "/opt/new.deb", new)
        seen.purged = guest.run("sh", "-c", "dpkg --purge byteor-firstboot 2>&1").stdout
        seen.left = named(guest)
        seen.account = "byteor-agent:" in guest.run("cat", "/etc/passwd").stdout
        seen.steps.append(("purged", seen.purged, guest.look()))
        yield seen
    shutil.rmtree(directory, ignore_errors=True)


def test_one_identity_lives_through_all_versions(replaced: Replaced) -> None:
    """One enrollment, one agent, and no request that breaks the contract."""
    assert len(hosts.enrollments(replaced.plane)) == 1
    assert [agent["agent_id"] for agent in replaced.plane.agents()] == [replaced.agent_id]
    assert hosts.objections(replaced.plane) == []


def test_no_unit_fails_and_dpkg_has_nothing_to_warn_of(replaced: Replaced) -> None:
    """After each step."""
    for version, said, boot in replaced.steps:
        assert hosts.failed(boot) == [], version
        assert ordering_cycles(boot.console) == [], version
        warnings = [line for line in said.splitlines() if "warning" in line.lower()]
        assert [line for line in warnings if not any(a in line for a in ACCEPTED)] == [], version


def test_a_purge_leaves_nothing_but_the_account(replaced: Replaced) -> None:
    """No file, link or state of systemd's; the output names the agent to delete."""
    assert replaced.left == []
    assert replaced.account
    assert f"agent {replaced.agent_id} stays in the agent list" in replaced.purged


# -- from a repository


def gpg(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "GNUPGHOME": str(home)}
    return subprocess.run(
        ["gpg", "--batch", "--quiet", *words],
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def key(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A key of the test's own: the environment with it, and its name."""
    home = Path(str(tmp_path / "gpg")[:80])
    home.mkdir(0o700)
    gpg(home, "--passphrase", "", "--quick-generate-key", "t@t.example", "rsa2048", "sign", "never")
    yield {**os.environ, "GNUPGHOME": str(home)}
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


@pytest.mark.slow
def test_apt_installs_and_upgrades_from_a_signed_repository(
    base: Path, package: Path, old_package: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """With nothing but the public key: 0.1.0, then what was added; another's key is refused."""
    if shutil.which("reprepro") is None:
        pytest.skip("reprepro is not on this machine (Debian: apt-get install reprepro)")
    repository = tmp_path / "repository"

    def publish(deb: Path) -> None:
        words = ["image-build/repository", "--key", "t@t.example", str(repository), str(deb)]
        subprocess.run([str(TOP / words[0]), *words[1:]], check=True, env=key)

    layer = roots.new_layer(tmp_path / "disk", [base])
    with roots.mounted(layer) as root:

        def apt(*words: str) -> str:
            shutil.rmtree(root / "srv/repository", ignore_errors=True)
            shutil.copytree(repository, root / "srv/repository")
            return roots.run_in(root, "sh", "-c", f"apt-get update && apt-get -y {' '.join(words)}")

        publish(old_package)
        (root / "etc/apt/sources.list").write_text(
            "deb [signed-by=/srv/repository/byteor-firstboot.asc] file:/srv/repository/apt stable main\n"
        )
        apt("install", "byteor-firstboot")
        query = ("dpkg-query", "-W", "-f=${Version}", "byteor-firstboot")
        assert roots.run_in(root, *query) == OLD
        publish(package)
        apt("upgrade")
        assert roots.run_in(root, *query) == version_of(package)
        release = repository / "apt/dists/stable/InRelease"
        release.write_text(release.read_text().replace("Codename: stable", "Codename: stolen", 1))
        assert "BADSIG" in apt("upgrade")
