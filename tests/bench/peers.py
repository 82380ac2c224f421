"""Other agents, idle beside ours, where this machine has them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.processes import Usage, usage

# name -> the command that stays in the foreground and finds no server; a directory stands for {}.
PEERS: dict[str, list[str]] = {
    "google-guest-agent": ["google_guest_agent"],
    "WALinuxAgent": ["waagent", "-daemon"],
    "mender-client": ["mender", "daemon"],
    "buildbot-worker": ["buildbot-worker", "start", "--nodaemon", "{}"],
    "puppet agent": [
        "puppet",
        "agent",
        "--no-daemonize",
        "--server",
        "127.0.0.1",
        "--confdir",
        "{}",
        "--vardir",
        "{}",
    ],
    "cloud-init": [],  # never resident: its first boot is the yardstick, and only on a host of its own
}
SETTLE_S = 10.0


def idle(directory: Path, window_s: float) -> Iterator[tuple[str, list[Usage]]]:
    """(name, usage at begin and end of the window); no usage where it is not installed or does not
    stay.
    """
    for name, command in PEERS.items():
        if not command or shutil.which(command[0]) is None:
            yield name, []
            continue
        scratch = directory / name.replace(" ", "-")
        scratch.mkdir()
        if name == "buildbot-worker":
            subprocess.run(
                ["buildbot-worker", "create-worker", str(scratch), "127.0.0.1", "w", "p"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        process = subprocess.Popen(
            [part.replace("{}", str(scratch)) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(SETTLE_S)
            if process.poll() is not None:
                yield name, []
                continue
            begin = usage(process.pid)
            time.sleep(window_s)
            yield name, [begin, usage(process.pid)]
        finally:
            process.kill()
            process.wait()
