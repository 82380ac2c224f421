"""Hosts of every kind, each put to the same checks; printed as a table at the end.

Debian 12 and 13 with the deb and cloud-init are not here: test_first_boot has them, test_upgrade
their way from 0.1.0 and back, test_token_returns a token that is served again in every boot,
test_arrivals an installation from `runcmd`, test_recipes the baked images.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane import ControlPlane

from . import hosts, roots, seeds
from .conftest import TOP
from .facts import Boot
from .guest import Guest
from .network import Network
from .scan import Findings

pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(1200)]

ENABLED = (hosts.FIRSTBOOT, "byteor-firstboot.path", hosts.ERASE, "byteor-activate.path")
TOKEN_FILE = "/etc/byteor/enrollment-token"


# -- how the package comes into a root


def deb(root: Path, package: Path) -> None:
    shutil.copy(package, root / "opt/ours.deb")
    roots.run_in(root, "dpkg", "-i", "/opt/ours.deb")


def built(part: str, directory: Path) -> Path:
    """Return the rpm or wheel of this commit; skipped where it cannot be built."""
    words = [str(TOP / "image-build/build"), "--only", part, str(directory)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return next(directory.glob(f"*.{part.replace('wheel', 'whl')}"))


def wheel(root: Path, package: Path) -> None:
    """Below /usr/local, as packages.md says; with the pip of this environment."""
    import pip

    made = built("wheel", package.parent / "wheel")
    shutil.copy(made, root / "opt")
    shutil.copytree(Path(pip.__file__).parent, root / "opt/pip/pip")
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--break-system-packages"]
    words = ["env", "PYTHONPATH=/opt/pip", "python3", *install, f"/opt/{made.name}"]
    roots.run_in(root, *words)
    roots.run_in(root, "systemd-sysusers")
    roots.run_in(root, "systemctl", "preset", *ENABLED)


def rpm(root: Path, package: Path) -> None:
    """Into a Debian, with rpm's own database in it: the dependencies are there by other names."""
    if shutil.which("rpm") is None:
        pytest.skip("rpm is not on this machine (Debian: apt-get install rpm)")
    made = built("rpm", package.parent / "rpm")
    words = ["rpm", "--root", str(root), "--nodeps", "--install", str(made)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    roots.run_in(root, "systemctl", "preset", *ENABLED)


# -- how settings and token come


def user_data(guest: Guest, plane: ControlPlane, token: str) -> dict[str, str]:
    text = seeds.user_data(hosts.settings(plane, token), body={"hostname": guest.name})
    return seeds.nocloud(text, name=guest.name, link=guest.link)


def by_files(guest: Guest, plane: ControlPlane, token: str) -> dict[str, str]:
    """Defaults and a bare token in /etc/byteor, on a host that has no cloud-init."""
    settings = hosts.settings(plane, token)
    del settings["enrollment_token"]
    assert guest.link is not None
    address = f"address {guest.link.there}/30\n  gateway {guest.link.here}"
    return {
        "/etc/byteor/firstboot.yaml": seeds.to_yaml(settings),
        TOKEN_FILE: token + "\n",
        "/etc/network/interfaces.d/host0": f"auto host0\niface host0 inet static\n  {address}\n",
    }


def by_drop_place(guest: Guest, plane: ControlPlane, token: str) -> dict[str, str]:
    """Defaults in the image; the token comes once the host is up, as nothing can be erased in /etc."""
    given = by_files(guest, plane, token)
    del given[TOKEN_FILE]
    return {**given, hosts.DROP_PLACE: f"enrollment_token: {token}\n"}


def without_cloud_init(root: Path) -> None:
    roots.run_in(root, "dpkg", "--purge", "--force-depends", "cloud-init")


# -- what some hosts go through before their second boot


def single(guest: Guest) -> None:
    """One module again, with the result and the status as they were."""
    guest.run("cloud-init", "single", "--name", "runcmd", "--frequency", "always")
    guest.run("systemctl", "restart", hosts.ERASE)


def soft_reboot(guest: Guest) -> None:
    """The userspace alone starts again: /run stays, so does the kernel's boot id."""
    first = guest.unit(hosts.AGENT)["MainPID"]
    guest.run("systemctl", "soft-reboot", check=False)
    guest.wait_for(
        lambda: (
            guest.run("systemctl", "is-system-running", check=False).stdout.strip()
            in ("running", "degraded")
            and guest.unit(hosts.AGENT)["MainPID"] not in ("0", first)
        ),
        "the agent after a soft reboot",
        timeout=120,
        every=0.5,
    )


@dataclass(frozen=True)
class Kind:
    """One row of the table."""

    suite: str
    install: Callable[[Path, Path], None] = deb
    prepare: Callable[[Path], None] | None = None
    give: Callable[[Guest, ControlPlane, str], dict[str, str]] = user_data
    before_reboot: Callable[[Guest], None] | None = None
    read_only: bool = False


KINDS = {
    "Debian 11, deb": Kind("bullseye"),
    "Debian sid, deb": Kind("sid"),
    "Debian 12, wheel in /usr/local": Kind("bookworm", wheel),
    "Debian 12, rpm --root": Kind("bookworm", rpm),
    "Debian 12, no cloud-init, files": Kind("bookworm", prepare=without_cloud_init, give=by_files),
    "Debian 12, read-only root": Kind(
        "bookworm", prepare=without_cloud_init, give=by_drop_place, read_only=True
    ),
    "Debian 12, cloud-init single": Kind("bookworm", before_reboot=single),
    "Debian 13, soft reboot": Kind("trixie", before_reboot=soft_reboot),
}


@dataclass
class Lived:
    """Two boots of one host, as the checks look at them."""

    guest: Guest
    plane: ControlPlane
    agent: str = ""
    boots: list[Boot] = field(default_factory=list)
    found: list[Findings] = field(default_factory=list)
    verified: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    enrollments: list[int] = field(default_factory=list)
    beats: list[int] = field(default_factory=list)


def look(lived: Lived, token: str) -> None:
    """Wait until everything of this boot is done, and look at it."""
    guest, plane = lived.guest, lived.plane
    seen = len(hosts.beats(plane, lived.agent)) if lived.boots else 0
    hosts.wait_for_beat(guest, plane, lived.agent, after=seen)
    for unit in (hosts.FIRSTBOOT, hosts.ERASE):
        hosts.wait_until_ended(guest, unit)
    lived.boots.append(guest.look())
    lived.found.append(guest.scan(token))
    lived.enrollments.append(len(hosts.enrollments(plane)))
    lived.beats.append(len(hosts.beats(plane, lived.agent)))


@pytest.fixture(scope="module", params=KINDS)
def kind_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lived(
    kind_name: str,
    package: Path,
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lived]:
    """Boot from what the host is given, enroll, boot again with the spent token served again."""
    kind, directory = KINDS[kind_name], tmp_path_factory.mktemp("matrix")
    layer = roots.new_layer(directory / "image", [roots.base_root(kind.suite)])
    with roots.mounted(layer) as root:
        kind.install(root, package)
        if kind.prepare is not None:
            kind.prepare(root)
    with ControlPlane(directory / "plane", host=network.plane_address) as plane:
        guest = new_guest(f"m{list(KINDS).index(kind_name)}", layer.stack)
        lived, token = Lived(guest, plane), hosts.mint(plane)
        given = kind.give(guest, plane, token)
        late = given.pop(hosts.DROP_PLACE, None)
        for path, text in given.items():
            guest.write(path, text, mode=0o600 if path == TOKEN_FILE else 0o644)
        if kind.read_only:
            var = directory / "var"
            subprocess.run(["cp", "-a", str(guest.root / "var"), str(var)], check=True)
            guest.options = ("--read-only", f"--bind={var}:/var")
        guest.boot()
        if late is not None:
            write = f"umask 077; cat > {hosts.DROP_PLACE}.new; mv {hosts.DROP_PLACE}.new"
            guest.run("sh", "-c", f"{write} {hosts.DROP_PLACE}", stdin=late)
        lived.agent = hosts.wait_for_agent(guest, plane)
        look(lived, token)
        units = [f"/{path}/{name}" for path in _where(guest) for name in ENABLED]
        done = guest.run("systemd-analyze", "verify", "--man=no", *units, check=False)
        lived.verified = "\n".join(line for line in done.stderr.splitlines() if "byteor" in line)
        lived.status = json.loads(guest.run("byteor-firstboot", "status", "--json").stdout)
        if kind.before_reboot is not None:
            kind.before_reboot(guest)
        if not kind.read_only:
            for path, text in given.items():  # the datasource serves the spent token again
                guest.run("sh", "-c", f"umask 077; cat > {path}", stdin=text)
            # Else cloud-init would not read the seed again.
            guest.run("rm", "-f", "/var/lib/cloud/instance/obj.pkl")
        lived.boots.append(guest.look())
        guest.reboot()
        look(lived, token)
        guest.stop()
        yield lived
    shutil.rmtree(directory, ignore_errors=True)


def _where(guest: Guest) -> list[str]:
    """Where the units of this installation are."""
    shown = guest.unit(hosts.FIRSTBOOT)["FragmentPath"]
    return [str(Path(shown).parent).lstrip("/")]


# -- the columns: each returns what is wrong


def enrolls(lived: Lived) -> list[str]:
    """One agent, named as it should be, and the control plane has no objection."""
    found = hosts.objections(lived.plane)
    if [agent["agent_id"] for agent in lived.plane.agents()] != [lived.agent]:
        found.append(f"agents: {lived.plane.agents()}")
    if (lived.status["state"], lived.status["problem"]) != ("enrolled", None):
        found.append(f"status: {lived.status}")
    return found


def is_clean(lived: Lived) -> list[str]:
    """No failed unit, no ordering cycle, cloud-init done where there is one."""
    found = []
    for boot in lived.boots:
        found += hosts.failed(boot)
        found += [line for line in boot.console.splitlines() if "ordering cycle" in line.lower()]
        if boot.cloud_status_code and "status:" in boot.cloud_status:
            found.append(boot.cloud_status)
    return found


def verifies(lived: Lived) -> list[str]:
    """`systemd-analyze verify` has nothing to say about our units."""
    return lived.verified.splitlines()


def is_erased(lived: Lived) -> list[str]:
    """After both boots the token is nowhere, though it was served twice."""
    return [str(hit) for found in lived.found for hit in found.hits]


def reboots(lived: Lived) -> list[str]:
    """The second boot enrolls nothing, and the same agent beats again."""
    if len(set(lived.enrollments)) != 1 or lived.beats[0] >= lived.beats[-1]:
        return [f"{lived.enrollments} presentations, {lived.beats} beats"]
    return []


CHECKS: dict[str, Callable[[Lived], list[str]]] = {
    "enrolls": enrolls,
    "clean": is_clean,
    "verify": verifies,
    "erased": is_erased,
    "reboot": reboots,
}


@pytest.mark.parametrize("check", CHECKS)
def test_host(
    kind_name: str,
    check: str,
    record_property: Callable[[str, object], None],
    request: pytest.FixtureRequest,
) -> None:
    """One cell of the table."""
    record_property("matrix", (kind_name, list(CHECKS).index(check), check))
    assert CHECKS[check](request.getfixturevalue("lived")) == []
