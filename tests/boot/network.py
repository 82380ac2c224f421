"""The addresses of one session of guests, all on this machine: one for the control plane, one link
per guest.

A guest has a veth link of its own whose other end lies here, and reaches the plane's address, which
lies on the loopback interface, through it. Nothing is routed further. Sessions take different third
octets of 10.77.0.0/16, held by a file lock, so that several can run at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import host

_LOCKS = Path("/run/byteor-boot")
_GUESTS = range(1, 63)
_LINK_DEADLINE_S = 20.0


@dataclass(frozen=True)
class Link:
    """One guest's link: the machine name that names the interface, and the addresses at its two
    ends.
    """

    machine: str
    here: str
    there: str

    @property
    def interface(self) -> str:
        """This machine's end, as systemd-nspawn names it."""
        return f"ve-{self.machine}"

    def bring_up(self) -> None:
        """Give this machine's end its address as soon as systemd-nspawn has made it."""
        deadline = time.monotonic() + _LINK_DEADLINE_S
        while not Path("/sys/class/net", self.interface).exists():
            if time.monotonic() > deadline:
                raise host.CannotBoot(
                    f"{self.interface} did not appear within {_LINK_DEADLINE_S:.0f} s"
                )
            time.sleep(0.02)
        _ip("address", "replace", f"{self.here}/30", "dev", self.interface)
        _ip("link", "set", self.interface, "up")


class Network:
    """A session's addresses; use it in a ``with`` block, or ``close`` it."""

    def __init__(self) -> None:
        host.require()
        self._lock, self._octet = _reserve()
        self._guests = iter(_GUESTS)
        self.plane_address = f"10.77.{self._octet}.1"
        """Where a control plane may listen: reachable from this machine and from every guest, from nowhere else."""
        _ip("address", "replace", f"{self.plane_address}/32", "dev", "lo")

    def new_link(self) -> Link:
        """Addresses for one more guest; they stay its own through its reboots."""
        number = next(self._guests)
        prefix = f"10.77.{self._octet}"
        return Link(
            f"byteor{self._octet}g{number}"[:12],
            f"{prefix}.{4 * number + 1}",
            f"{prefix}.{4 * number + 2}",
        )

    def close(self) -> None:
        """Give the addresses back."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("address", "del", f"{self.plane_address}/32", "dev", "lo")
        self._lock.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reserve() -> tuple[IO[str], int]:
    _LOCKS.mkdir(mode=0o700, exist_ok=True)
    for octet in range(1, 255):
        lock = open(_LOCKS / f"{octet}.lock", "w")  # noqa: SIM115 - held for as long as the session lives
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return lock, octet
    raise host.CannotBoot("every network of 10.77.0.0/16 is taken by another session of guests")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
