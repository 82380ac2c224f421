"""A guest whose user data holds no token asks a broker, and enrolls in that boot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane
from tests.integration.autoscaling import SignedIdentity, Signer, broker

from . import hosts, seeds
from .facts import ordering_cycles
from .guest import Guest
from .network import Network

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

TOP = Path(__file__).resolve().parents[2]
EXAMPLE = TOP / "image-build/examples/tokens/autoscaling"
UNIT = "byteor-broker-token.service"


def test_a_guest_of_an_autoscaling_group_enrolls_through_a_broker(
    suite: str,
    image: Sequence[Path],
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path: Path,
) -> None:
    """The unit and the script as the example has them; only their addresses are the test's."""
    with ControlPlane(tmp_path / "plane", host=network.plane_address) as plane:
        token, guest = hosts.mint(plane), new_guest(f"broker-{suite}", image)
        assert guest.link is not None
        told = hosts.settings(plane, token)
        del told["enrollment_token"]
        signer = Signer(tmp_path / "signer")
        place = network.plane_address
        text = seeds.user_data(None, body={"hostname": guest.name})
        identity = SignedIdentity(place, instance_id="i-1", hostname=guest.name, user_data=text)
        identity.signed = signer.sign(identity.identity)
        given = {"tokens": [token], "settings": seeds.to_yaml(told)}
        with identity, broker(place, tmp_path, certificate=signer.certificate, **given) as url:
            guest.write_all(seeds.ec2(metadata_url=identity.url, link=guest.link))
            script = (EXAMPLE / "byteor-broker-token").read_text()
            guest.write("/usr/local/libexec/byteor-broker-token", script, mode=0o755)
            unit = (EXAMPLE / UNIT).read_text()
            asks = f"Environment=IMDS={identity.url}\nEnvironment=BROKER={url}"
            unit = unit.replace("Environment=BROKER=https://broker.example/v1/token", asks)
            assert asks in unit
            guest.write(f"/etc/systemd/system/{UNIT}", unit)
            guest.symlink(f"/etc/systemd/system/multi-user.target.wants/{UNIT}", f"../{UNIT}")
            guest.boot()
            agent_id = hosts.wait_for_agent(guest, plane)
            hosts.wait_for_beat(guest, plane, agent_id)
            hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
            boot = guest.look()
            assert hosts.failed(boot) == []
            assert ordering_cycles(boot.console) == []
            found = guest.scan(token)
            assert found.hits == [] and found.unread == []
            assert len(hosts.enrollments(plane)) == 1
            assert hosts.objections(plane) == []
