"""Controls: in guests without our package, every check that the other boot tests rest on is seen to
fire.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import seeds
from .ec2 import MetadataService
from .facts import Boot, ordering_cycles
from .guest import Guest
from .network import Network
from .scan import Findings, canary

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

# Two units of our own that each want to be after the other: systemd drops one of them, and nothing
# of cloud-init.
CYCLE = """\
[Unit]
After=planted-{other}.service
Wants=planted-{other}.service
[Service]
Type=oneshot
ExecStart=/bin/true
"""
FAILING = "[Service]\nType=oneshot\nExecStart=/bin/false\n"


@dataclass(frozen=True)
class Plain:
    """A guest whose token nobody erases, and what was seen of it."""

    guest: Guest
    boot: Boot
    planted: Boot
    token: str
    found: Findings
    found_at_reboot: Findings


def plant(guest: Guest) -> None:
    """Plant an ordering cycle and a failing unit."""
    wants = "/etc/systemd/system/multi-user.target.wants"
    for this, other in (("one", "two"), ("two", "one")):
        guest.write(f"/etc/systemd/system/planted-{this}.service", CYCLE.format(other=other))
        guest.symlink(f"{wants}/planted-{this}.service", f"../planted-{this}.service")
    guest.write("/etc/systemd/system/planted-failing.service", FAILING)
    guest.symlink(f"{wants}/planted-failing.service", "../planted-failing.service")


@pytest.fixture(scope="module")
def plain(base: Path, suite: str, new_guest: Callable[..., Guest]) -> Plain:
    """A boot with a token in the recommended form and nobody to erase it, then one with faults
    planted.
    """
    token, guest = canary(), new_guest(f"plain-{suite}", [base])
    text = seeds.user_data(
        {"enrollment_token": f"bet_{token}"}, body={"hostname": guest.name, "runcmd": [["true"]]}
    )
    guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
    boot = guest.boot()
    found = guest.scan(token)
    guest.stop()
    plant(guest)
    planted = guest.boot()
    guest.run("logger", "--", f"said in the journal: {token}")
    guest.run("sh", "-c", f"echo {token} > /run/copy; echo {token} > /tmp/copy")
    guest.run("sh", "-c", f"TOKEN={token} setsid sleep 300 > /dev/null 2>&1 &")
    return Plain(guest, boot, planted, token, found, guest.scan(token))


def test_plain_guest_boots_clean(plain: Plain) -> None:
    """Without our package a guest boots without a failed unit, a warning of cloud-init or an
    ordering cycle.
    """
    assert plain.boot.cloud_status_code == 0, plain.boot.cloud_status
    assert "status: done" in plain.boot.cloud_status
    assert "degraded" not in plain.boot.cloud_status
    assert plain.boot.failed_units == ()
    assert ordering_cycles(plain.boot.console) == []


def test_scan_finds_the_copies_that_cloud_init_makes(plain: Plain) -> None:
    """With nobody erasing, the token lies in the four places that the leak map lists for the
    comment form.
    """
    instance = f"/var/lib/cloud/instances/i-{plain.guest.name}"
    assert plain.found.places == {
        f"{seeds.NOCLOUD}/user-data",
        f"{instance}/obj.pkl",
        f"{instance}/user-data.txt",
        f"{instance}/user-data.txt.i",
    }
    assert plain.found.unread == []


def test_scan_finds_copies_outside_the_disk(plain: Plain) -> None:
    """Copies planted in the journal, in a process's environment, in `/run` and in `/tmp` are
    found.
    """
    places = plain.found_at_reboot.places
    assert {"journal", "/run/copy", "/tmp/copy"} <= places
    assert any(place.endswith("/environ") for place in places)


def test_planted_ordering_cycle_is_seen_on_the_console(plain: Plain) -> None:
    """The console check fires on a planted cycle, and names it."""
    assert any("planted-" in line for line in ordering_cycles(plain.planted.console))


def test_planted_failing_unit_is_seen(plain: Plain) -> None:
    """The check for failed units names the one that was planted."""
    assert plain.planted.failed_units == ("planted-failing.service",)


def test_metadata_service_brings_the_user_data_back_at_every_boot(
    base: Path, suite: str, new_guest: Callable[..., Guest], network: Network
) -> None:
    """cloud-init's EC2 datasource refills every copy at the next boot, whatever was erased in
    between.
    """
    token, guest = canary(), new_guest(f"ec2-{suite}", [base])
    text = seeds.user_data({"enrollment_token": f"bet_{token}"}, body={"hostname": guest.name})
    assert guest.link is not None
    service = MetadataService(
        network.plane_address, instance_id="i-0abc", hostname=guest.name, user_data=text
    )
    with service:
        guest.write_all(seeds.ec2(metadata_url=service.url, link=guest.link))
        for fetched in (1, 2):
            boot = guest.boot()
            assert "status: done" in boot.cloud_status
            assert boot.failed_units == ()
            assert service.asked["user-data"] == fetched
            assert len(guest.scan(token).places) == 3
            for copy in ("obj.pkl", "user-data.txt", "user-data.txt.i"):
                path = f"/var/lib/cloud/instances/i-0abc/{copy}"
                guest.write(
                    path, guest.read(path).replace(token.encode(), b"x" * len(token)), mode=0o600
                )
            assert guest.scan(token).hits == []
            guest.stop()
