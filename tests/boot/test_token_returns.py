"""A datasource that serves the token again at every boot: erased again every time, never presented
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane

from . import hosts, seeds
from .ec2 import MetadataService
from .facts import Boot
from .guest import Guest
from .network import Network
from .scan import Findings

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

BOOTS = 3
# Says, before anything of ours runs, what cloud-init has stored: its digest, since the probe must
# not be a copy itself.
PROBE = """\
[Unit]
DefaultDependencies=no
After=cloud-config.target
Before=byteor-firstboot.service byteor-erase.service cloud-config.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sha256sum < /var/lib/cloud/instance/user-data.txt > /run/probe'
"""


@dataclass
class Returns:
    """What was seen in each boot."""

    guest: Guest
    plane: ControlPlane
    served: str
    agent_id: str = ""
    stored: list[str] = field(default_factory=list)
    boots: list[Boot] = field(default_factory=list)
    found: list[Findings] = field(default_factory=list)
    presented: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def returns(
    suite: str,
    image: Sequence[Path],
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Returns]:
    """Boot three times from a metadata service that never forgets."""
    with ControlPlane(tmp_path_factory.mktemp("plane"), host=network.plane_address) as plane:
        token, guest = hosts.mint(plane), new_guest(f"cloud-{suite}", image)
        text = seeds.user_data(hosts.settings(plane, token), body={"hostname": guest.name})
        assert guest.link is not None
        service = MetadataService(
            network.plane_address, instance_id="i-0abc", hostname=guest.name, user_data=text
        )
        with service:
            guest.write_all(seeds.ec2(metadata_url=service.url, link=guest.link))
            guest.write("/etc/systemd/system/probe.service", PROBE)
            guest.symlink(
                "/etc/systemd/system/cloud-init.target.wants/probe.service", "../probe.service"
            )
            returns = Returns(guest, plane, hashlib.sha256(text.encode()).hexdigest())
            for _ in range(BOOTS):
                guest.start()
                _look(returns, token)
                if len(returns.boots) < BOOTS:
                    guest.stop()
            yield returns


def _look(returns: Returns, token: str) -> None:
    guest, plane = returns.guest, returns.plane
    before = len(hosts.beats(plane, returns.agent_id)) if returns.agent_id else 0
    guest.wait_until_up()
    returns.agent_id = hosts.wait_for_agent(guest, plane)
    hosts.wait_for_beat(guest, plane, returns.agent_id, after=before)
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    hosts.wait_until_ended(guest, hosts.ERASE)
    returns.stored.append(guest.path("/run/probe").read_text().split()[0])
    returns.boots.append(guest.look())
    returns.found.append(guest.scan(token))
    returns.presented.append(len(hosts.enrollments(plane)))


def test_token_was_back_in_every_boot(returns: Returns) -> None:
    """What makes the other tests mean something: each boot stored the served user data, token
    included, again.
    """
    assert returns.stored == [returns.served] * BOOTS


def test_token_is_gone_again_after_every_boot(returns: Returns) -> None:
    """After each of three boots no copy is left on the host."""
    assert [found.hits for found in returns.found] == [[]] * BOOTS
    assert [found.unread for found in returns.found] == [[]] * BOOTS


def test_token_is_presented_once(returns: Returns) -> None:
    """One presentation in the first boot, none in the later ones, one agent."""
    assert returns.presented == [1] * BOOTS
    assert len(returns.plane.agents()) == 1
    assert hosts.objections(returns.plane) == []


def test_cloud_init_can_read_its_files_in_every_boot(returns: Returns) -> None:
    """No boot ends with an error of cloud-init or a failed unit of ours or its own."""
    for boot in returns.boots:
        assert "status: done" in boot.cloud_status, boot.cloud_status
        assert hosts.failed(boot) == []


def test_metadata_service_counts_as_still_served(returns: Returns) -> None:
    """The receipt says that a metadata service serves the token still: no host can erase that."""
    receipt = json.loads(returns.guest.read("/var/lib/byteor/identity/erasure.json"))
    assert receipt["still_served"], receipt


def test_boot_with_a_revoked_key_and_the_spent_token_served_changes_nothing(
    returns: Returns,
) -> None:
    """With the key revoked and the token back, another boot keeps the sealed file and presents no
    token.
    """
    guest, plane = returns.guest, returns.plane
    sealed, presented = guest.read(hosts.SEALED), len(hosts.enrollments(plane))
    plane.revoke(returns.agent_id)
    guest.reboot()
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    assert guest.path("/run/probe").read_text().split()[0] == returns.served
    assert guest.read(hosts.SEALED) == sealed
    assert len(hosts.enrollments(plane)) == presented
