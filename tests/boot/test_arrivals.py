"""Settings and packages that come late or not at all."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane

from . import hosts, seeds
from .facts import ordering_cycles
from .guest import Guest
from .network import Network

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

# A boot in which a package script waits for cloud-final, which waits for the package script, never
# ends.
HANG_DEADLINE_S = 60.0


@pytest.fixture
def plane(network: Network, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane of the test's own."""
    with ControlPlane(tmp_path / "plane", host=network.plane_address) as plane:
        yield plane


@pytest.mark.parametrize("datasource", [True, False], ids=["nocloud", "no-datasource"])
def test_host_without_a_token_boots_quietly(
    suite: str, image: Sequence[Path], new_guest: Callable[..., Guest], datasource: bool
) -> None:
    """With ordinary user data, or where cloud-init does not even start: no failed unit, one line in
    the journal.
    """
    guest = new_guest(f"quiet-{suite}", image)
    if datasource:
        text = seeds.user_data(None, body={"hostname": guest.name})
        guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
    boot = guest.boot()
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    hosts.wait_until_ended(guest, hosts.ERASE)
    assert hosts.failed(boot) == []
    assert boot.cloud_status_code == 0, boot.cloud_status
    assert ordering_cycles(boot.console) == []
    assert len(hosts.ours(guest)) == 1, hosts.ours(guest)


def test_token_may_come_late_through_the_drop_place(
    suite: str, image: Sequence[Path], new_guest: Callable[..., Guest], plane: ControlPlane
) -> None:
    """Settings that are dropped long after the boot enroll the host in that boot, and are gone."""
    guest = new_guest(f"late-{suite}", image)
    text = seeds.user_data(None, body={"hostname": guest.name})
    guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
    guest.boot()
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    assert plane.requests() == []

    token, part = hosts.mint(plane), f"{hosts.DROP_PLACE}.part"
    script = f"umask 077; cat > {shlex.quote(part)}; mv {shlex.quote(part)} {shlex.quote(hosts.DROP_PLACE)}"
    guest.run("sh", "-c", script, stdin=seeds.to_yaml(hosts.settings(plane, token)))
    agent_id = hosts.wait_for_agent(guest, plane)
    hosts.wait_for_beat(guest, plane, agent_id)
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    assert not guest.path(hosts.DROP_PLACE).exists()
    found = guest.scan(token)
    assert found.hits == []
    assert found.unread == []
    assert hosts.failed(guest.look()) == []
    assert len(hosts.enrollments(plane)) == 1
    assert hosts.objections(plane) == []


def test_runcmd_may_wait_until_the_host_is_online(
    suite: str, image: Sequence[Path], new_guest: Callable[..., Guest], plane: ControlPlane
) -> None:
    """`status --wait` inside cloud-final waits for nothing that cloud-final holds up; nor does the
    unit for those that need the agent.
    """
    guest, token = new_guest(f"wait-{suite}", image), hosts.mint(plane)
    waits = "byteor-firstboot status --wait 120 > /run/waited; echo $? >> /run/waited"
    body = {"hostname": guest.name, "runcmd": [["sh", "-c", waits]]}
    text = seeds.user_data(hosts.settings(plane, token), body=body)
    guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
    guest.boot(timeout=HANG_DEADLINE_S + 120)
    waited = guest.run("cat", "/run/waited").stdout.splitlines()
    assert waited[-1] == "0", waited
    guest.run("systemctl", "start", "byteor-online.target")
    hosts.wait_until_ended(guest, hosts.ERASE)
    boot = guest.look()
    assert boot.cloud_status_code == 0, boot.cloud_status
    assert hosts.failed(boot) == [] and ordering_cycles(boot.console) == []


def test_package_installed_by_runcmd_enrolls_in_that_boot(
    suite: str, base: Path, package: Path, new_guest: Callable[..., Guest], plane: ControlPlane
) -> None:
    """Installing the package inside a running first boot does not hang it, and the host is enrolled
    before its end.
    """
    guest, token = new_guest(f"runcmd-{suite}", [base]), hosts.mint(plane)
    guest.write("/opt/byteor-firstboot.deb", package.read_bytes())
    body = {
        "hostname": guest.name,
        "runcmd": [["apt-get", "install", "-y", "/opt/byteor-firstboot.deb"]],
    }
    text = seeds.user_data(hosts.settings(plane, token), body=body)
    guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
    guest.boot(timeout=HANG_DEADLINE_S)
    agent_id = hosts.wait_for_agent(guest, plane)
    hosts.wait_for_beat(guest, plane, agent_id)
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    hosts.wait_until_ended(guest, hosts.ERASE)
    boot = guest.look()
    assert boot.cloud_status_code == 0, boot.cloud_status
    assert hosts.failed(boot) == []
    assert ordering_cycles(boot.console) == []
    found = guest.scan(token)
    assert found.hits == []
    assert found.unread == []
    assert len(hosts.enrollments(plane)) == 1
    assert hosts.objections(plane) == []
