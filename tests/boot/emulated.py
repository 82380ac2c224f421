"""A guest with a disk of its own under QEMU: for what only the writes to a real disk can show.

Slower than `guest` (emulated processors: one to three minutes a boot), and with a real ext4, a seed
on a CD-ROM image, and a log of every write to the disk. The root has no boot loader and no initrd:
the cloud kernel finds an NVMe disk by itself.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import host, power, roots
from .scan import scan_bytes

BOOT_LIMIT_S = 900
DISK_BYTES = 2 << 30
# This machine's loopback, as QEMU's user network shows it to the guest.
PLANE_ADDRESS = "10.0.2.2"

_NETWORK = """\
[Match]
Name=en* eth*
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
_CLOUD = "datasource_list: [ NoCloud, None ]\nnetwork: {config: disabled}\n"
# cloud-final comes after multi-user.target: a job wanted by that target would close a cycle.
_JOB = """\
[Unit]
After=cloud-final.service
ConditionKernelCommandLine=job
SuccessAction=poweroff
FailureAction=poweroff
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'cat /dev/disk/by-id/*labjob | tr -d "\\\\000" > /run/job && sh /run/job'
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
"""
_MASKED = (
    "networking.service", "apt-daily.timer", "apt-daily-upgrade.timer", "fstrim.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "dpkg-db-backup.timer", "systemd-networkd-wait-online.service",
    "systemd-timesyncd.service", "getty@tty1.service", "serial-getty@ttyS0.service", "ssh.service",
)  # fmt: skip
_QEMU = (
    "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2",
    "-m", "1024", "-display", "none", "-monitor", "none", "-no-reboot", "-nodefaults", "-no-user-config",
    "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0",
)  # fmt: skip
# Never tsc=reliable: an emulated clock that was calibrated wrong runs several times too fast.
_KERNEL = (
    "root=/dev/nvme0n1 rw console=ttyS0 job net.ifnames=0 systemd.show_status=0 mitigations=off"
    " random.trust_cpu=on panic=-1 tsc=unstable"
)


@dataclass(frozen=True)
class Image:
    """A kernel, and a disk with a root that was never booted."""

    kernel: Path
    disk: Path


def make_image(suite: str, package: Path, directory: Path, *, enable: Sequence[str] = ()) -> Image:
    """Build a disk of ``suite`` with our package installed and the units ``enable`` enabled."""
    host.require()
    base = roots.base_root(suite, kernel=True)
    layer = roots.install_package(package, lowers=[base], directory=directory / "layer")
    disk, kernel = directory / "disk.img", directory / "vmlinuz"
    with roots.mounted(layer) as root:
        _prepare(root)
        if enable:
            roots.run_in(root, "systemctl", "enable", *enable)
        shutil.copyfile(next((root / "boot").glob("vmlinuz-*")), kernel)
        with disk.open("wb") as stream:
            stream.truncate(DISK_BYTES)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(disk)], check=True)
    return Image(kernel, disk)


def _prepare(root: Path) -> None:
    units = root / "etc/systemd/system"
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    for target, unit in (("multi-user", "systemd-networkd"), ("cloud-init", "job")):
        wants = units / f"{target}.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        place = "/etc/systemd/system" if unit == "job" else "/lib/systemd/system"
        (wants / f"{unit}.service").symlink_to(f"{place}/{unit}.service")
    (units / "job.service").write_text(_JOB)
    (root / "etc/systemd/network/10-guest.network").write_text(_NETWORK)
    (root / "etc/cloud/cloud.cfg.d/99-guest.cfg").write_text(_CLOUD)
    (root / "etc/fstab").write_text("")
    (root / "etc/hostname").write_text("byteor-guest\n")


class Machine:
    """One disk made from an image; `boot` runs it until its job has ended and it is off."""

    def __init__(self, image: Image, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.disk, self.log = directory / "disk.img", directory / "writes.log"
        self._kernel = image.kernel
        subprocess.run(["cp", "--sparse=always", str(image.disk), str(self.disk)], check=True)

    def boot(self, job: str, *, seed: Path | None) -> str:
        """Boot once with every write recorded; return the console, where the job's output is.

        `job` is a shell script without a secret in it, run as root after cloud-final.
        """
        script, console = self.directory / "job.raw", self.directory / "console"
        script.write_bytes(job.encode().ljust(-(-len(job.encode()) // 512) * 512, b"\0"))
        self.log.write_bytes(b"")
        drives = [
            "-blockdev", f"driver=file,node-name=f0,filename={self.disk}",
            "-blockdev", f"driver=file,node-name=l0,filename={self.log}",
            "-blockdev", "driver=blklogwrites,node-name=d0,file=f0,log=l0,log-super-update-interval=1",
            "-device", "nvme,drive=d0,serial=root0",
            "-drive", f"if=none,id=j0,format=raw,readonly=on,file={script}",
            "-device", "virtio-blk-pci,drive=j0,serial=labjob",
        ]  # fmt: skip
        if seed is not None:
            drives += ["-drive", f"if=none,id=s0,format=raw,readonly=on,file={seed}"]
            drives += ["-device", "virtio-blk-pci,drive=s0,serial=seed0"]
        serial = ["-chardev", f"file,id=c0,path={console}", "-serial", "chardev:c0"]
        kernel = ["-kernel", str(self._kernel), "-append", _KERNEL]
        done = subprocess.run(
            ["nice", "-n", "5", *_QEMU, *serial, *kernel, *drives],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BOOT_LIMIT_S, check=False,
        )  # fmt: skip
        text = console.read_text(errors="replace")
        if done.returncode != 0:
            raise RuntimeError(f"QEMU ended {done.returncode}: {done.stderr}\n{text[-4000:]}")
        return text

    def writes_of(self, secret: str) -> list[tuple[int, set[str]]]:
        """Return the writes of the last boot that held `secret`: number, and the forms found."""
        found = []
        for number, write in enumerate(power.read_log(self.log)):
            forms = scan_bytes(write.data, secret) if write.data.strip(b"\0") else set()
            if forms:
                found.append((number, forms))
        return found


def seed(directory: Path, files: dict[str, bytes]) -> Path:
    """Make a NoCloud seed: a CD-ROM image with these files."""
    place, image = directory / "seed", directory / "seed.iso"
    place.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (place / name).write_bytes(data)
    command = ["genisoimage", "-quiet", "-V", "cidata", "-J", "-r", "-o", str(image), "."]
    subprocess.run(command, cwd=place, check=True)
    return image
