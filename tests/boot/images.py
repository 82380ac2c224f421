"""Judge an image: nothing is left in it, and two guests from it are two hosts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.controlplane import ControlPlane

from . import hosts, roots, seeds
from .facts import Boot, ordering_cycles
from .guest import Guest

RECIPES = Path(__file__).resolve().parents[2] / "image-build/recipes"
IDENTITY = "/var/lib/byteor/identity"


def left_in(root: Path) -> str:
    """What ``generalize --check --root`` of this checkout finds in a root that is not booted."""
    command = str(Path(sys.executable).parent / "byteor-firstboot")
    done = subprocess.run(
        [command, "generalize", "--check", "--root", str(root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else f"exit {done.returncode}\n{done.stdout}{done.stderr}"


def seed(guest: Guest, plane: ControlPlane, token: str, *, name: str) -> None:
    """Give a guest that is down the user data of a host of its own."""
    text = seeds.user_data(hosts.settings(plane, token), body={"hostname": name})
    guest.write_all(seeds.nocloud(text, name=name, link=guest.link))


def complaints(guest: Guest, boot: Boot) -> list[str]:
    """What is wrong with a boot: units of ours or cloud-init's, cycles, cloud-init's status."""
    found = [f"{unit} failed" for unit in hosts.failed(boot)] + ordering_cycles(boot.console)
    if boot.cloud_status_code:
        found.append(boot.cloud_status)
    return found


def two_hosts(
    layer: roots.Layer, new_guest: Callable[..., Guest], plane: ControlPlane, directory: Path
) -> list[tuple[str, str, bytes]]:
    """Boot two guests from one disk, one after the other; agent, machine-id and sealed file."""
    found = []
    for name in ("one", "two"):
        before = len(plane.agents())
        disk = roots.copy_layer(layer, directory / name)
        guest = new_guest(f"{directory.name}-{name}", layer=disk)
        seed(guest, plane, hosts.mint(plane), name=guest.name)
        guest.boot()
        agent = hosts.wait_for_agent(guest, plane, agents=before + 1)
        hosts.wait_for_beat(guest, plane, agent)
        hosts.wait_until_ended(guest, hosts.FIRSTBOOT)
        assert complaints(guest, guest.look()) == []
        found.append((agent, guest.read("/etc/machine-id").decode(), guest.read(hosts.SEALED)))
        guest.stop()
    return found
