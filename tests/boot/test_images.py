"""An enrolled host becomes an image: `cloud-init clean` keeps it enrolled, `generalize` does not,
and two guests from the image are two hosts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane

from . import hosts, images
from .guest import Guest
from .network import Network

pytestmark = [
    pytest.mark.boot,
    pytest.mark.timeout(600),
    # cloud-init 25.1 runs clean.d just as 22.4 does; three boots are enough.
    pytest.mark.parametrize("suite", ["bookworm"], indirect=True, scope="session"),
]


@dataclass
class Seen:
    """A host's way to an image, and what two guests from it were."""

    agent_id: str
    cleaned: str
    after_clean: dict[str, object]
    beat_after_clean: bool
    generalized: str
    provisioned: str
    left: str
    hosts: list[tuple[str, str, bytes]]


@pytest.fixture(scope="module")
def seen(
    suite: str,
    image: Sequence[Path],
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Seen]:
    """Live it once; the tests look at what was seen."""
    with ControlPlane(tmp_path_factory.mktemp("plane"), host=network.plane_address) as plane:
        guest = new_guest(f"builder-{suite}", image)
        images.seed(guest, plane, hosts.mint(plane), name=guest.name)
        guest.write("/opt/provision", (images.RECIPES / "provision").read_text(), mode=0o755)
        guest.boot()
        agent = hosts.wait_for_agent(guest, plane)
        hosts.wait_for_beat(guest, plane, agent)
        hosts.wait_until_ended(guest, hosts.ERASE)
        cleaned = guest.run("cloud-init", "clean")
        status = json.loads(guest.run("byteor-firstboot", "status", "--json").stdout)
        before = len(hosts.beats(plane, agent))
        beat = bool(hosts.wait_for_beat(guest, plane, agent, after=before))
        generalized = guest.run("byteor-firstboot", "generalize", "--yes").stdout
        provisioned = guest.run("/opt/provision").stdout
        guest.stop()
        left = images.left_in(guest.root)
        (guest.root / "opt/provision").unlink()
        guest.close()
        found = images.two_hosts(
            guest.layer, new_guest, plane, tmp_path_factory.mktemp("clones") / suite
        )
        said = cleaned.stdout + cleaned.stderr
        yield Seen(agent, said, status, beat, generalized, provisioned, left, found)


def test_clean_keeps_the_host_enrolled_and_says_so(seen: Seen) -> None:
    """The agent goes on; the hook's line is shown by cloud-init."""
    assert f"stays enrolled as agent {seen.agent_id}" in seen.cleaned
    assert seen.after_clean["state"] == "enrolled" and seen.beat_after_clean


def test_generalize_names_the_agent_that_stays(seen: Seen) -> None:
    """And what else makes clones alike, which the recipes' script removes."""
    assert f"agent {seen.agent_id} " in seen.generalized
    assert "! /etc/machine-id: " in seen.generalized
    assert "safe to image" in seen.provisioned


def test_nothing_is_left_on_the_disk(seen: Seen) -> None:
    """After the power-off too, at which a system saves this and that."""
    assert seen.left == ""


def test_two_guests_are_two_hosts(seen: Seen) -> None:
    """Two agents, machine-ids and sealed files, and none of the builder's."""
    agents, machine_ids, sealed = (set(column) for column in zip(*seen.hosts))
    assert len(agents) == len(machine_ids) == len(sealed) == 2
    assert seen.agent_id not in agents and "" not in machine_ids
