"""What this machine needs before it can boot guests: checked, named with the exact command,
installed when asked.

``python3 -m tests.boot.host`` says what is missing, with ``--install`` it is installed (root).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# command that we call -> Debian package that brings it
COMMANDS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "zstd": "zstd",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "mkfs.ext4": "e2fsprogs",
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-system-x86_64": "qemu-system-x86",
    "genisoimage": "genisoimage",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class CannotBoot(Exception):
    """This machine cannot boot guests; the text says what would help."""


def missing_packages() -> list[str]:
    """Debian packages to install before guests can be booted, none of them twice."""
    wanted = {package for command, package in COMMANDS.items() if shutil.which(command) is None}
    if not KEYRING.exists():
        wanted.add("debian-archive-keyring")
    return sorted(wanted)


def install_line(packages: list[str]) -> list[str]:
    """The exact command that installs ``packages``, waiting for another apt rather than failing
    beside it.
    """
    return [
        "apt-get",
        "install",
        "-y",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        *packages,
    ]


def why_not() -> str | None:
    """One sentence that says why no guest can be booted here, or None if guests can."""
    if os.geteuid() != 0:
        return "guests need root: overlay mounts, network links and systemd-nspawn"
    packages = missing_packages()
    if packages:
        return "install what guests need: apt-get update && " + " ".join(install_line(packages))
    return None


def require() -> None:
    """Raise ``CannotBoot`` with the reason unless guests can be booted here."""
    reason = why_not()
    if reason is not None:
        raise CannotBoot(reason)


def install() -> None:
    """Install what is missing from the mirror that this machine is configured for; needs root."""
    packages = missing_packages()
    if not packages:
        return
    if os.geteuid() != 0:
        raise CannotBoot("installing needs root: " + " ".join(install_line(packages)))
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], install_line(packages)):
        subprocess.run(command, check=True, env=quiet, stdout=sys.stderr)


def mirror() -> str:
    """The Debian mirror that this machine's apt is configured for; it is written nowhere but into
    cached roots.
    """
    line_format = "$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(SITE)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", line_format, "Created-By: Packages"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for line in listed.splitlines():
        origin, component, codename, site = line.split("|")
        # bookworm-updates and bookworm-security are other trees; a base root comes from the release
        # itself
        if origin == "Debian" and component == "main" and "-" not in codename:
            return site
    raise CannotBoot("apt knows no Debian mirror with component main: run apt-get update")


def main(argv: list[str]) -> int:
    """Say what is missing, or install it; 0 when guests can be booted."""
    try:
        if argv == ["--install"]:
            install()
        require()
    except CannotBoot as error:
        print(f"boot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
