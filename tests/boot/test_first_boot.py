"""One host's life: enrolled by itself from recommended user data, rebooted twice, its disk
copied.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane import ControlPlane

from . import hosts, roots, seeds
from .facts import Boot, Unit, ordering_cycles
from .guest import Guest
from .network import Network
from .scan import Findings, canary

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

REBOOTS = 2
# systemd-analyze counts exposure in tenths: at most 2.0
EXPOSURE_TENTHS = "20"


@dataclass
class Life:
    """What was seen, in the order in which it happened."""

    guest: Guest
    plane: ControlPlane
    token: str
    # before the plane was up
    early: Boot
    early_final: Unit
    early_firstboot: Unit
    # when the host had enrolled
    agent_id: str = ""
    enrolled: Boot | None = None
    enrollments: int = 0
    found: list[Findings] = field(default_factory=list)
    status: Mapping[str, Any] = field(default_factory=dict)
    exposure: str = ""
    exposure_code: int = -1
    sealing: list[str] = field(default_factory=list)
    sealed: bytes = b""
    beat_before_kill: Mapping[str, Any] = field(default_factory=dict)
    beat_after_kill: Mapping[str, Any] = field(default_factory=dict)
    killed: str = ""
    restarted: str = ""
    frozen: str = ""
    thawed: str = ""
    watchdog_said: str = ""
    reloaded: str = ""
    # after each reboot
    reboots: list[Boot] = field(default_factory=list)
    beats: list[Mapping[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def life(
    suite: str,
    image: Sequence[Path],
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Life]:
    """Live it once; the tests look at what was seen."""
    with ControlPlane(tmp_path_factory.mktemp("plane"), host=network.plane_address) as plane:
        token, guest = hosts.mint(plane), new_guest(f"edge-{suite}", image)
        plane.stop()
        text = seeds.user_data(
            hosts.settings(plane, token), body={"hostname": guest.name, "runcmd": [["true"]]}
        )
        guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
        early = guest.boot()
        life = Life(
            guest,
            plane,
            token,
            early,
            guest.unit("cloud-final.service"),
            guest.unit(hosts.FIRSTBOOT),
        )
        plane.start()
        _enroll(life)
        _kill_agent(life)
        _freeze_agent(life)
        for _ in range(REBOOTS):
            _reboot(life)
        guest.stop()
        yield life


def _enroll(life: Life) -> None:
    guest = life.guest
    life.agent_id = hosts.wait_for_agent(guest, life.plane)
    hosts.wait_for_beat(guest, life.plane, life.agent_id)
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    life.enrolled = guest.look()
    life.enrollments = len(hosts.enrollments(life.plane))
    life.found.append(guest.scan(life.token))
    life.status = json.loads(guest.run("byteor-firstboot", "status", "--json").stdout)
    # below the threshold systemd-analyze ends 0
    security = guest.run(
        "systemd-analyze",
        "security",
        "--no-pager",
        f"--threshold={EXPOSURE_TENTHS}",
        hosts.AGENT,
        check=False,
    )
    life.exposure, life.exposure_code = security.stdout, security.returncode
    life.sealing = sorted(
        path.name for path in guest.path("/var/lib/byteor/identity").glob("sealing.*")
    )
    life.sealed = guest.read(hosts.SEALED)


def _kill_agent(life: Life) -> None:
    guest, before = life.guest, len(hosts.beats(life.plane, life.agent_id))
    life.beat_before_kill = hosts.beats(life.plane, life.agent_id)[-1]
    life.killed = guest.unit(hosts.AGENT)["MainPID"]
    guest.run("kill", "-KILL", life.killed)
    life.beat_after_kill = hosts.wait_for_beat(guest, life.plane, life.agent_id, after=before)
    life.restarted = guest.unit(hosts.AGENT)["MainPID"]


def _freeze_agent(life: Life) -> None:
    """Stop the process without ending it, under a watchdog that is short enough for a test; and
    reload it before.
    """
    guest = life.guest
    drop_in = guest.path("/run/systemd/system/byteor-agent.service.d/short.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=8s\n")
    guest.run("systemctl", "daemon-reload")
    guest.run("systemctl", "restart", hosts.AGENT)
    life.frozen = guest.unit(hosts.AGENT)["MainPID"]
    guest.run("systemctl", "reload", hosts.AGENT)
    guest.wait_for(
        lambda: "settings read again" in guest.journal("-b", "-u", hosts.AGENT),
        "the reload",
        timeout=20,
        every=0.5,
    )
    life.reloaded = guest.unit(hosts.AGENT)["MainPID"]
    before = len(hosts.beats(life.plane, life.agent_id))
    guest.run("kill", "-STOP", life.frozen)
    guest.wait_for(
        lambda: guest.unit(hosts.AGENT)["MainPID"] not in ("0", life.frozen),
        "another agent",
        timeout=60,
        every=0.5,
    )
    hosts.wait_for_beat(guest, life.plane, life.agent_id, after=before)
    life.thawed = guest.unit(hosts.AGENT)["MainPID"]
    life.watchdog_said = guest.journal("-b", "-u", hosts.AGENT)


def _reboot(life: Life) -> None:
    guest = life.guest
    guest.stop()
    before = len(hosts.beats(life.plane, life.agent_id))
    guest.boot()
    life.beats.append(hosts.wait_for_beat(guest, life.plane, life.agent_id, after=before))
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    life.reboots.append(guest.look())
    life.found.append(guest.scan(life.token))


def test_boot_does_not_wait_for_a_plane_that_is_away(life: Life) -> None:
    """With the plane away the whole boot ends, cloud-final included, while first boot goes on
    trying.
    """
    assert life.early_final["ActiveState"] == "active"
    assert life.early_final.seconds("ActiveEnterTimestampMonotonic") > 0
    assert life.early_firstboot["ActiveState"] in ("activating", "active")
    assert hosts.failed(life.early) == []


def test_host_enrolls_by_itself_once_the_plane_is_up(life: Life) -> None:
    """One agent, named as the host, from one presentation of the token; the plane found nothing to
    object to.
    """
    agents = life.plane.agents()
    assert [agent["agent_id"] for agent in agents] == [life.agent_id]
    assert agents[0]["name"].startswith(life.guest.name)
    assert life.enrollments == 1
    assert hosts.objections(life.plane) == []


def test_host_says_that_it_is_enrolled(life: Life) -> None:
    """`status` gives the state and the agent, and has no problem to report."""
    assert life.status["state"] == "enrolled"
    assert life.status["agent_id"] == life.agent_id
    assert life.status["problem"] is None


def test_cloud_init_is_clean(life: Life) -> None:
    """cloud-init reports done with exit code 0 and no warning, after enrollment and after every
    reboot.
    """
    assert life.enrolled is not None
    for boot in (life.early, life.enrolled, *life.reboots):
        assert boot.cloud_status_code == 0, boot.cloud_status
        assert "status: done" in boot.cloud_status
        assert "degraded" not in boot.cloud_status


def test_no_unit_fails_and_no_ordering_cycle_is_reported(life: Life) -> None:
    """In no boot is there a failed unit of ours or of cloud-init, or an ordering cycle on the
    console.
    """
    assert life.enrolled is not None
    for boot in (life.early, life.enrolled, *life.reboots):
        assert hosts.failed(boot) == []
        assert ordering_cycles(boot.console) == []


def test_token_is_nowhere(life: Life) -> None:
    """After enrollment and after each reboot no copy is on the disk, in memory file systems,
    journal or console.
    """
    assert len(life.found) == 1 + REBOOTS
    for found in life.found:
        assert found.hits == []
        assert found.unread == []
        assert found.files > 50


def test_same_scan_finds_the_copies_when_erasing_is_skipped(
    suite: str, image: Sequence[Path], life: Life, new_guest: Callable[..., Guest]
) -> None:
    """The same image and user data with our units masked: the scan finds at least the leak map's
    four copies.
    """
    token, guest = canary(), new_guest(f"masked-{suite}", image)
    guest.mask(hosts.FIRSTBOOT, "byteor-firstboot.path", hosts.ERASE)
    text = seeds.user_data(
        hosts.settings(life.plane, f"bet_{token}"), body={"hostname": guest.name}
    )
    guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
    guest.boot()
    assert len(guest.scan(token).places) >= 4


def test_identity_is_sealed_under_the_systemd_host_key(life: Life) -> None:
    """Where systemd has host keys, `auto` uses one; the private directory holds no key file."""
    assert life.sealing == ["sealing.cred"]


def test_agent_unit_is_hardened_and_works(life: Life) -> None:
    """`systemd-analyze security` counts at most 2.0 for the agent that has just beaten."""
    assert life.exposure_code == 0, life.exposure


def test_agent_that_was_killed_beats_again(life: Life) -> None:
    """After kill -9 systemd starts another agent, whose sequence goes on above the last one's."""
    assert life.restarted not in ("0", life.killed)
    assert life.beat_after_kill["sequence"] > life.beat_before_kill["sequence"]
    assert life.beat_after_kill["boot_id"] == life.beat_before_kill["boot_id"]


def test_agent_that_hangs_is_ended_by_the_watchdog_and_comes_back(life: Life) -> None:
    """A process that is stopped feeds no watchdog: systemd ends it, and the next one beats."""
    assert life.thawed not in ("0", life.frozen)
    assert "Watchdog timeout" in life.watchdog_said


def test_reload_reads_the_settings_in_the_same_process(life: Life) -> None:
    """`systemctl reload` costs no beat and no start."""
    assert life.reloaded == life.frozen


def test_reboots_enroll_nothing_and_the_agent_beats_again(life: Life) -> None:
    """Two reboots send no token; after each the same agent beats, with a new boot id and a higher
    sequence.
    """
    assert len(hosts.enrollments(life.plane)) == life.enrollments
    sequences = [life.beat_after_kill["sequence"], *(beat["sequence"] for beat in life.beats)]
    assert sequences == sorted(set(sequences))
    assert (
        len({life.beat_after_kill["boot_id"], *(beat["boot_id"] for beat in life.beats)})
        == 1 + REBOOTS
    )


def test_copied_disk_with_another_machine_id_stops_and_harms_nothing(
    life: Life, new_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    """A clone ends with exit 8 and leaves the sealed file as it is; with its machine-id back it
    opens and beats.
    """
    requests, before = len(life.plane.requests()), len(hosts.beats(life.plane, life.agent_id))
    machine_id = life.guest.read("/etc/machine-id")
    # at the addresses of the first, which is off: they are on the disk that was copied
    disk = roots.copy_layer(life.guest.layer, tmp_path / "disk")
    clone = new_guest(f"{life.guest.name}-2", layer=disk, link=life.guest.link)
    clone.write("/etc/machine-id", f"{uuid.uuid4().hex}\n", mode=0o444)
    clone.boot()
    hosts.wait_until_ended(clone, hosts.FIRSTBOOT)
    assert clone.unit(hosts.FIRSTBOOT)["ExecMainStatus"] == "8"
    assert clone.unit(hosts.AGENT)["ActiveState"] == "inactive"
    assert clone.read(hosts.SEALED) == life.sealed
    assert len(life.plane.requests()) == requests
    clone.stop()
    clone.write("/etc/machine-id", machine_id, mode=0o444)
    clone.boot()
    hosts.wait_for_beat(clone, life.plane, life.agent_id, after=before)
    assert clone.read(hosts.SEALED) == life.sealed
    assert len(hosts.enrollments(life.plane)) == life.enrollments
