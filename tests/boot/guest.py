"""One guest: boot it under systemd-nspawn on an overlay, ask it, stop it, and boot the same disk
again.

    with Network() as network:
        link = network.new_link()
        guest = Guest("edge-1", [roots.base_root("bookworm")], directory, link=link)
        guest.write_all(seeds.nocloud(text, name="edge-1", link=link))
        guest.start()
        boot = guest.wait_until_up()
        print(boot.cloud_status, boot.failed_units, ordering_cycles(boot.console))
        guest.close()

Commands run in the guest by nsenter: without a machined on this machine there is nothing that
``machinectl shell`` could talk to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.schemas import judge_call

from . import host, roots
from .facts import Boot, Unit, without_escapes
from .network import Link
from .scan import Findings, Hit, scan_bytes, scan_file, scan_processes, scan_tree

BOOT_DEADLINE_S = 90.0
STOP_DEADLINE_S = 45.0
_NSPAWN_RUN = Path("/run/systemd/nspawn")
_IN_MEMORY = ("tmpfs", "ramfs")

_Seen = TypeVar("_Seen")


class GuestError(Exception):
    """A guest did not do what was waited for; the text ends with its console's last lines."""


class Guest:
    """A Debian on a directory of its own above ``lowers`` (topmost first)."""

    def __init__(
        self,
        name: str,
        lowers: Sequence[Path],
        directory: Path,
        *,
        link: Link | None = None,
        layer: roots.Layer | None = None,
    ) -> None:
        host.require()
        self.options: tuple[str, ...] = ()
        """Further options of systemd-nspawn, from the next boot on."""
        self.name, self.link, self.directory = name, link, directory
        directory.mkdir(parents=True, exist_ok=True)
        self.layer = layer if layer is not None else roots.new_layer(directory / "disk", lowers)
        """The disk: ``layer.upper`` holds exactly what was written by ``write`` and by this guest's boots."""
        self.root = roots.mount(self.layer)
        self.consoles: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._started = self._took = 0.0

    # -- the disk, while the guest is down or up

    def write(self, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """Write a file into the guest's root, as whoever makes an image does."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.chmod(mode)

    def write_all(self, files: Mapping[str, str]) -> None:
        """Write several files by their path in the guest."""
        for path, content in files.items():
            self.write(path, content)

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link in the guest's root."""
        link = self.root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    def mask(self, *units: str) -> None:
        """Make systemd refuse to start these units, from the next boot on."""
        for unit in units:
            self.symlink(f"/etc/systemd/system/{unit}", "/dev/null")

    def read(self, path: str) -> bytes:
        """A file of the guest's root, links followed by nobody: links of a guest lead into this
        machine's own files.
        """
        target = self.root / path.lstrip("/")
        if target.is_symlink():
            raise GuestError(f"{path} is a symbolic link in the guest")
        return target.read_bytes()

    # -- up and down

    def start(self) -> None:
        """Power on; returns when the guest's first process runs. ``wait_until_up`` waits for the
        rest.
        """
        if self._process is not None:
            raise GuestError(f"{self.name} is up already")
        _quiet_nspawn()
        console = self.directory / f"console.{len(self.consoles) + 1}"
        self.consoles.append(console)
        machine = self.link.machine if self.link else f"byteor-{os.getpid()}-{id(self) % 10**6}"
        network = "--network-veth" if self.link else "--private-network"
        command = [
            # should this process die, the guest is told to power off
            "setpriv", "--pdeathsig", "TERM", "nice", "-n", "5",
            "systemd-nspawn", "--quiet", "--boot", "--directory", str(self.root), "--machine", machine, network,
            "--register=no", "--keep-unit", "--link-journal=no", "--console=read-only", *self.options,
        ]  # fmt: skip
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        self._started = time.monotonic()
        with open(console, "wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip
        self._leader = self.wait_for(self._find_leader, "its first process", timeout=20)
        if self.link is not None:
            self.link.bring_up()

    def wait_until_up(self, *, timeout: float = BOOT_DEADLINE_S) -> Boot:
        """Wait until systemd has nothing more to start, and look at what the boot came to."""
        self.wait_for(self._is_up, "systemd to finish booting", timeout=timeout, every=0.25)
        self._took = time.monotonic() - self._started
        return self.look()

    def look(self) -> Boot:
        """What this boot has come to by now."""
        status = self.run("cloud-init", "status", "--long", check=False)
        failed = self.run(
            "systemctl", "list-units", "--failed", "--no-legend", "--plain", "--full"
        ).stdout
        return Boot(
            seconds=self._took,
            console=self.console(),
            cloud_status=status.stdout,
            cloud_status_code=status.returncode,
            failed_units=tuple(line.split()[0] for line in failed.splitlines() if line.strip()),
        )

    def boot(self, *, timeout: float = BOOT_DEADLINE_S) -> Boot:
        """``start`` and ``wait_until_up``."""
        self.start()
        return self.wait_until_up(timeout=timeout)

    def reboot(self, *, timeout: float = BOOT_DEADLINE_S) -> Boot:
        """An orderly power-off, then the same disk again."""
        self.stop()
        return self.boot(timeout=timeout)

    def stop(self) -> None:
        """An orderly power-off; at the deadline the guest is killed, and that is an error."""
        if self._process is None:
            return
        self._process.send_signal(
            signal.SIGTERM
        )  # systemd-nspawn passes it on as a request to power off
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise GuestError(
                self._report(f"{self.name} did not power off within {STOP_DEADLINE_S:.0f} s")
            ) from None
        self._process, self._leader = None, 0

    def kill(self) -> None:
        """Pull the plug."""
        if self._process is None:
            return
        if self._leader:
            os.kill(self._leader, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait(10)
        self._process, self._leader = None, 0

    def close(self) -> None:
        """Kill the guest if it is up, and unmount its disk; the upper directory stays for whoever
        wants to look.
        """
        self.kill()
        roots.unmount(self.root)

    # -- asking a guest that is up

    def path(self, path: str) -> Path:
        """A path as the running guest sees it, its own ``/run`` and ``/tmp`` included."""
        return Path(f"/proc/{self._leader}/root") / path.lstrip("/")

    def run(
        self, *command: str, check: bool = True, timeout: float = 60, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in the guest as root; output as text, stderr after stdout in an error."""
        done = subprocess.run(
            self._entered(command), input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
        judge_call(command, done.stdout)
        if check and done.returncode != 0:
            raise GuestError(
                f"{' '.join(command)} ended {done.returncode} in {self.name}:\n{done.stdout}{done.stderr}"
            )
        return done

    def unit(self, name: str) -> Unit:
        """The properties of a unit now."""
        shown = self.run("systemctl", "show", name).stdout
        return Unit(dict(line.split("=", 1) for line in shown.splitlines() if "=" in line))

    def journal(self, *arguments: str) -> str:
        """The journal of this boot, or what ``arguments`` ask for, as a person reads it."""
        return self.run(
            "journalctl", "--no-pager", "--output=short-monotonic", *(arguments or ("-b",))
        ).stdout

    def console(self) -> str:
        """This boot's console without its colours."""
        return without_escapes(self.consoles[-1].read_text(errors="replace"))

    def wait_for(
        self, look: Callable[[], _Seen], what: str, *, timeout: float, every: float = 0.05
    ) -> _Seen:
        """Return the first true thing that ``look`` returns; at the deadline an error with the
        console's end.
        """
        deadline = time.monotonic() + timeout
        while True:
            seen = look()
            if seen:
                return seen
            if self._process is not None and self._process.poll() is not None:
                code, self._process, self._leader = self._process.returncode, None, 0
                raise GuestError(
                    self._report(f"{self.name} ended with {code} while we waited for {what}")
                )
            if time.monotonic() > deadline:
                raise GuestError(self._report(f"{self.name}: waited {timeout:.0f} s for {what}"))
            time.sleep(every)

    def scan(self, secret: str) -> Findings:
        """Every copy of ``secret`` that this running guest has: disk, memory file systems,
        processes, journal,
        consoles.

        The disk is searched where the guest writes, in its upper directory: a secret that was made
        after the lower directories cannot be in those.
        """
        found = scan_tree(self.layer.upper, secret, prefix="")
        for mount in self._memory_mounts():
            found.add(scan_tree(self.path(mount), secret, prefix=mount))
        found.add(scan_processes(self.path("/proc"), secret))
        exported = self.directory / "journal.export"
        with open(exported, "wb") as output:  # every boot's, decompressed, binary fields in full
            command = self._entered(("journalctl", "--output=export", "--all"))
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, check=True, timeout=120
            )
        found.add(scan_file(exported, secret, place="journal"))
        for console in self.consoles:
            found.add(scan_file(console, secret, place=console.name))
            # a console that breaks or colours a line inside the secret
            plain = without_escapes(console.read_text(errors="replace"))
            forms = scan_bytes(plain.encode(), secret)
            found.hits += [Hit(f"{console.name} without escapes", form) for form in sorted(forms)]
        return found

    # -- within

    def _entered(self, command: Sequence[str]) -> list[str]:
        if not self._leader:
            raise GuestError(f"{self.name} is not up")
        return [
            "nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--",
            "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
            "LANG=C.UTF-8",
            *command,
        ]  # fmt: skip

    def _find_leader(self) -> int:
        """The process below systemd-nspawn that is number 1 in a process namespace of its own."""
        if self._process is None:
            return 0
        below = [self._process.pid]
        while below:
            process = below.pop()
            try:
                status = Path(f"/proc/{process}/status").read_text()
                children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            numbers = next(
                line for line in status.splitlines() if line.startswith("NSpid:")
            ).split()[1:]
            comm = Path(f"/proc/{process}/comm").read_text().strip()
            if len(numbers) > 1 and numbers[-1] == "1" and comm == "systemd":
                return process
            below += [int(child) for child in children]
        return 0

    def _is_up(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _memory_mounts(self) -> list[str]:
        mounts = []
        for line in Path(f"/proc/{self._leader}/mountinfo").read_text().splitlines():
            left, right = line.split(" - ")
            point = left.split()[4].encode().decode("unicode_escape")
            if right.split()[0] in _IN_MEMORY and not point.startswith(("/proc", "/sys")):
                mounts.append(point)
        # a mount below another one is entered with that one
        return [
            point
            for point in sorted(set(mounts))
            if not any(point.startswith(f"{other}/") for other in mounts)
        ]

    def _report(self, problem: str) -> str:
        return f"{problem}; its console ended:\n" + "\n".join(self.console().splitlines()[-30:])


def _quiet_nspawn() -> None:
    """A memory file system where systemd-nspawn keeps its sockets; on a disk it complains at every
    end of a guest.
    """
    _NSPAWN_RUN.mkdir(parents=True, exist_ok=True)
    if not _NSPAWN_RUN.is_mount():
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0755", "tmpfs", str(_NSPAWN_RUN)],
            check=True,
        )
