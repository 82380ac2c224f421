"""First boot of a real Debian guest, told as it happens: what ``./image-build/demo --boot`` shows.

Everything is built, booted and stopped here; nothing but the cached base root stays.
"""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from tests.controlplane import ControlPlane

from . import hosts, roots, seeds
from .facts import ordering_cycles
from .guest import Guest
from .network import Network
from .scan import Findings

TOP = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
NAME = "edge-node-01"


class RehearsalFailed(Exception):
    """The guest's first boot did not end as it should; the text says where."""


class Teller(Protocol):
    """What a rehearsal tells its steps to; the demo's ``Story`` is one."""

    def step(self, title: str) -> None:
        """Begin a numbered step."""

    def say(self, text: str = "") -> None:
        """Show some lines."""

    def took(self) -> None:
        """Show how long the step took."""


def rehearse(story: Teller, *, suite: str = SUITE) -> None:
    """Tell one first boot from the image to the second boot; ``RehearsalFailed`` says what was
    wrong.
    """
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="byteor-rehearsal-", dir="/var/tmp")
            )
        )
        network = stack.enter_context(Network())

        story.step(f"A Debian image ({suite}) with our package in it")
        image = _image(scratch, suite)
        story.took()

        story.step(
            "The reference control plane, a one-time token, and user data with it in a comment block"
        )
        plane = stack.enter_context(ControlPlane(scratch / "plane", host=network.plane_address))
        token = hosts.mint(plane)
        text = seeds.user_data(hosts.settings(plane, token), body={"hostname": NAME})
        story.say(
            "\n".join(
                line
                for line in text.replace(token, f"{token[:8]}…").splitlines()
                if "#    " not in line
            )
        )
        story.took()

        guest = Guest(NAME, image, scratch / "guest", link=network.new_link())
        stack.callback(guest.close)
        guest.write_all(seeds.nocloud(text, name=NAME, link=guest.link))
        _first_boot(story, guest, plane, token)
        _second_boot(story, guest, plane, token)


def _image(scratch: Path, suite: str) -> tuple[Path, ...]:
    base = roots.base_root(suite)
    subprocess.run(
        [str(TOP / "image-build/build-deb"), str(scratch)], check=True, stdout=subprocess.DEVNULL
    )
    deb = next(scratch.glob("*.deb"))
    return roots.install_package(deb, lowers=[base], directory=scratch / "image").stack


def _first_boot(story: Teller, guest: Guest, plane: ControlPlane, token: str) -> None:
    story.step("Power on: systemd, cloud-init, and then nobody does anything")
    boot = guest.boot()
    story.say(f"the boot ended after {boot.seconds:.1f} s")
    agent_id = hosts.wait_for_agent(guest, plane)
    hosts.wait_for_beat(guest, plane, agent_id)
    hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
    agent = plane.agents()[0]
    story.say(
        f"the control plane shows agent {agent_id} ({agent['name']}), "
        f"heartbeats accepted: {agent['heartbeats']}"
    )
    story.took()

    story.step("What the host says")
    story.say(guest.run("byteor-firstboot", "status").stdout)
    story.say("\n".join(hosts.ours(guest)))
    _check_boot(story, guest)

    story.step("The token's places: disk, memory file systems, processes, journal, console")
    _check_gone(story, guest.scan(token))
    story.took()

    story.step("The install guide's four validation checks, on the guest")
    command = ("byteor-firstboot", "verify", "--operator-token", "-")
    story.say(guest.run(*command, stdin=plane.operator_token).stdout)


def _second_boot(story: Teller, guest: Guest, plane: ControlPlane, token: str) -> None:
    story.step("Power off and on again: nothing is enrolled, the agent beats")
    agent_id = str(plane.agents()[0]["agent_id"])
    before = len(hosts.beats(plane, agent_id))
    guest.reboot()
    beat = hosts.wait_for_beat(guest, plane, agent_id, after=before)
    story.say(
        f"beat {beat['sequence']} of the same agent; tokens presented in all: {len(hosts.enrollments(plane))}"
    )
    _check_boot(story, guest)
    _check_gone(story, guest.scan(token))
    if len(hosts.enrollments(plane)) != 1 or hosts.objections(plane):
        raise RehearsalFailed("the control plane recorded what should not have happened")
    guest.stop()
    story.took()


def _check_boot(story: Teller, guest: Guest) -> None:
    boot = guest.look()
    failed = hosts.failed(boot)
    story.say(
        f"cloud-init {boot.cloud_status.splitlines()[0]}, failed units: {', '.join(failed) or 'none'}"
    )
    if boot.cloud_status_code or failed or ordering_cycles(boot.console):
        raise RehearsalFailed(boot.cloud_status + "\n".join(ordering_cycles(boot.console)))


def _check_gone(story: Teller, found: Findings) -> None:
    story.say(f"looked at {found.files} files, {found.octets / 1e6:.1f} MB: {len(found)} copies")
    if found.hits or found.unread:
        raise RehearsalFailed(", ".join([*map(str, found), *found.unread]))
