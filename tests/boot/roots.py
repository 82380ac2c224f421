"""Base roots, built once and cached outside the checkout, and overlay layers above them.

A cached base is never written to again: every guest, and every package installed for a session,
lies in an upper directory of its own. So a fresh root costs nothing, and an upper directory holds
exactly what that layer or that boot wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import host

SUITES = ("bookworm", "trixie")

_PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "cloud-init", "procps", "sudo", "openssh-server", "locales",
    "python3", "python3-yaml", "python3-requests", "python3-cryptography", "ca-certificates",
    "iproute2", "ifupdown", "netbase", "cloud-guest-utils", "gdisk",
)  # fmt: skip
# resolved is a package of its own from bookworm on
_PACKAGES_SINCE_BOOKWORM = ("systemd-resolved",)
# With /usr/share/locale left out, cloud-init's locale module fails and the status is `error` unless
# the locale is C.UTF-8 already. The second and third line of the hook make the root a root before
# its first boot: no machine-id, no host keys.
_HOOK = (
    'echo LANG=C.UTF-8 > "$1/etc/default/locale";'
    'echo "locale: C.UTF-8" > "$1/etc/cloud/cloud.cfg.d/99_locale.cfg";'
    'truncate -s 0 "$1/etc/machine-id"; rm -f "$1/var/lib/dbus/machine-id" "$1"/etc/ssh/ssh_host_*;'
    'rm -f "$1/etc/hostname" "$1/etc/resolv.conf"'
)
_OPTIONS = (
    "--variant=minbase", "--mode=root", "--components=main", "--format=directory",
    '--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Check-Valid-Until "false"',
    "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    f"--customize-hook={_HOOK}",
)  # fmt: skip


def cache_directory() -> Path:
    """Where base roots are kept: the user's cache directory, never the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "byteor-firstboot" / "roots"


def _recipe(suite: str, kernel: bool, extra: Sequence[str]) -> list[str]:
    packages = _PACKAGES if suite == "bullseye" else (*_PACKAGES, *_PACKAGES_SINCE_BOOKWORM)
    if kernel:
        packages = (*packages, "linux-image-cloud-amd64")
    packages = (*packages, *extra)
    return [*_OPTIONS, "--include=" + ",".join(packages), suite]


def base_root(suite: str, *, kernel: bool = False, extra: Sequence[str] = ()) -> Path:
    """Return the cached, never-booted root of ``suite``; for QEMU with a kernel in it.

    `extra`: further packages in it.

    Built from the configured mirror if it is not there (about a minute).

    The name carries a hash of the recipe, so a changed recipe makes a new root. Two processes that
    want the same root wait for each other.
    """
    host.require()
    recipe = _recipe(suite, kernel, extra)
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    root = directory / f"{suite}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]}"
    with open(directory / f"{root.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            building = directory / f"{root.name}.building"
            shutil.rmtree(building, ignore_errors=True)
            log = directory / f"{root.name}.log"
            with open(log, "w") as output:
                built = subprocess.run(
                    ["nice", "mmdebstrap", *recipe, str(building), host.mirror()],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False,
                )  # fmt: skip
            if built.returncode != 0:
                raise host.CannotBoot(
                    f"mmdebstrap ended {built.returncode} for {suite}; its output is in {log}"
                )
            building.rename(root)
    return root


@dataclass(frozen=True)
class Layer:
    """A root seen through overlayfs: ``upper`` over ``lowers`` (topmost first)."""

    lowers: tuple[Path, ...]
    upper: Path

    @property
    def stack(self) -> tuple[Path, ...]:
        """What a layer above this one has as its lowers."""
        return (self.upper, *self.lowers)


def new_layer(directory: Path, lowers: Sequence[Path]) -> Layer:
    """An empty layer above ``lowers``, kept in ``directory``."""
    upper = directory / "upper"
    upper.mkdir(parents=True)
    upper.chmod(0o755)  # it becomes the guest's `/`
    return Layer(tuple(lowers), upper)


def copy_layer(layer: Layer, directory: Path) -> Layer:
    """A second system with the same files: what copying a disk does."""
    directory.mkdir(parents=True)
    # cp keeps overlayfs' own marks (whiteouts, trusted.* attributes); shutil.copytree does not
    subprocess.run(["cp", "-a", str(layer.upper), str(directory / "upper")], check=True)
    return Layer(layer.lowers, directory / "upper")


def mount(layer: Layer) -> Path:
    """Mount ``layer`` beside its upper directory and return the root; ``unmount`` undoes it."""
    work, root = layer.upper.with_name("work"), layer.upper.with_name("root")
    work.mkdir(exist_ok=True)
    root.mkdir(exist_ok=True)
    lowers = ":".join(str(lower) for lower in layer.lowers)
    options = f"lowerdir={lowers},upperdir={layer.upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
    return root


def unmount(root: Path) -> None:
    """Undo ``mount``; lazily if something still looks into it, so that no teardown hangs."""
    if not root.is_mount():
        return
    if subprocess.run(["umount", str(root)], check=False, capture_output=True).returncode != 0:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@contextlib.contextmanager
def mounted(layer: Layer) -> Iterator[Path]:
    """The layer's root for the length of a ``with`` block."""
    root = mount(layer)
    try:
        yield root
    finally:
        unmount(root)


def run_in(root: Path, *command: str) -> str:
    """Run ``command`` in a root that is not booted, without a network; its output, and an error
    that shows it.
    """
    done = subprocess.run(
        ["systemd-nspawn", "--quiet", "--directory", str(root), "--register=no", "--keep-unit", "--private-network",
         "--pipe", "--link-journal=no", "--as-pid2", "--setenv=DEBIAN_FRONTEND=noninteractive", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended {done.returncode} in the guest's root:\n{done.stdout}"
        )
    return done.stdout


def install_package(deb: Path, *, lowers: Sequence[Path], directory: Path) -> Layer:
    """A layer in which the Debian package ``deb`` is installed, offline: its dependencies are in
    every base root.
    """
    layer = new_layer(directory, lowers)
    with mounted(layer) as root:
        target = root / "opt" / deb.name
        shutil.copyfile(deb, target)
        run_in(root, "dpkg", "-i", f"/opt/{deb.name}")
        target.unlink()
        # An image is shipped with an empty machine-id; a package script that commits one would make
        # every guest the same host.
        if (root / "etc/machine-id").read_text() != "":
            raise RuntimeError("installing the package gave the image a machine-id")
    return layer
