"""Talk to systemd: readiness, watchdog, credentials, starting a unit without waiting.

Protocols: sd_notify(3), systemd.exec(5) "CREDENTIALS". Outside systemd the functions do nothing, or
return None.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from firstboot.base.errors import LocalFault

START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 120  # longer than any TimeoutStopSec= of ours
NOTIFY_S = 5.0


def booted() -> bool:
    """Return True when systemd is this system's init (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def under_systemd(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True inside a unit, where http is refused even towards loopback (contract 1)."""
    return bool(environ.get("INVOCATION_ID"))


def inside(unit: str) -> bool:
    """Return True for a process of `unit`, as its control group tells (cgroups(7))."""
    try:
        return f"/{unit}\n" in Path("/proc/self/cgroup").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1`` to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(NOTIFY_S)  # a manager that reads nothing must not hang the agent
            channel.sendto("\n".join(assignments).encode(), address)
    except OSError:
        pass  # a manager that went away must not take the agent with it


def watchdog_s() -> float | None:
    """Return the watchdog's period in seconds, None when there is none for this process."""
    period = os.environ.get("WATCHDOG_USEC", "")
    owner = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not period.isdigit() or owner != str(os.getpid()):
        return None
    return int(period) / 1e6 or None


def credentials_directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the directory of this unit's credentials, or None."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory) if directory else None


def start(unit: str, *, restart: bool = False) -> None:
    """Queue a start (or restart) job for `unit` and return at once; LocalFault if that fails.

    Never waits for the job: a blocking start from inside cloud-final hangs the boot (CLOUD-INIT.md,
    section 5).
    """
    words = ("--no-block", "restart" if restart else "start", unit)
    command("systemctl", *words, doing=f"start {unit}", hint=f"systemctl status {unit}")


def stop(*units: str) -> None:
    """Stop those of `units` that there are, and wait for their processes."""
    known = [*filter(knows, units)]
    if known:
        hint = f"systemctl status {' '.join(known)}"
        words = ("systemctl", "stop", *known)
        command(*words, doing="stop our units", hint=hint, timeout_s=STOP_TIMEOUT_S)


def knows(unit: str) -> bool:
    """Return False when systemd has no such unit; True when it cannot be asked."""
    words = ("systemctl", "show", "-p", "LoadState", unit)
    try:
        said = command(*words, doing=f"tell of {unit}", hint=f"systemctl status {unit}")
    except LocalFault:
        return True
    return said.strip() != "LoadState=not-found"


def reload() -> None:
    """Let systemd read unit files again; LocalFault if that fails."""
    command("systemctl", "daemon-reload", doing="read its units again", hint="systemctl status")


def command(*words: str, doing: str, hint: str, timeout_s: int = START_TIMEOUT_S) -> str:
    """Run a command of systemd's and return what it printed; LocalFault when it fails or hangs."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = f"cannot ask systemd to {doing}: {type(error).__name__}"
        raise LocalFault(reason, hint=hint) from error
    if done.returncode:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        raise LocalFault(f"systemd does not {doing}: {reason}", hint=hint)
    return done.stdout
