"""Other agents as Debian ships them, idle in a root of their own, without a network."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from tests.bench.processes import Usage, usage
from tests.boot import roots

PACKAGES = (
    "google-guest-agent",
    "waagent",
    "mender-client",
    "buildbot-worker",
    "puppet-agent",
)
_SERVERLESS = "--server 127.0.0.1 --confdir /tmp/puppet --vardir /tmp/puppet"
# name -> the shell line that stays in the foreground and finds no server
PEERS = {
    "google-guest-agent": "exec google_guest_agent",
    "WALinuxAgent": "exec waagent -daemon",
    "mender-client": 'mkdir -p /data/mender; echo \'{"ServerURL": "https://127.0.0.1"}\''
    " > /etc/mender/mender.conf; exec mender --no-syslog daemon",
    "buildbot-worker": "cd /tmp && buildbot-worker create-worker w 127.0.0.1 w p"
    " && exec buildbot-worker start --nodaemon w",
    "puppet agent": f"exec puppet agent --no-daemonize {_SERVERLESS}",
}
SETTLE_S = 20.0


@contextlib.contextmanager
def running(scratch: Path) -> Iterator[dict[str, int]]:
    """Run all of them; yields the id of each one's nspawn, below which its processes are."""
    base = roots.base_root("bookworm", extra=PACKAGES)
    with contextlib.ExitStack() as stack:
        leaders = {}
        for name, line in PEERS.items():
            layer = roots.new_layer(scratch / name.replace(" ", "-"), [base])
            root = stack.enter_context(roots.mounted(layer))
            command = ["systemd-nspawn", "--quiet", "--directory", str(root), "--register=no"]
            command += ["--keep-unit", "--private-network", "--link-journal=no", "--as-pid2"]
            null = subprocess.DEVNULL
            process = subprocess.Popen(
                [*command, "sh", "-c", line], stdin=null, stdout=null, stderr=null
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            leaders[name] = process.pid
        time.sleep(SETTLE_S)
        yield leaders


def all_used(leaders: dict[str, int]) -> dict[str, Usage]:
    """Return the use of each, summed over its processes; those that did not stay are left out."""
    found = {}
    for name, leader in leaders.items():
        uses = [usage(pid) for pid in _below(leader) if not _nspawn(pid)]
        if uses:
            totals = [sum(getattr(use, field.name) for use in uses) for field in fields(Usage)]
            found[name] = Usage(*totals)
    return found


def _below(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *_below(child))]


def _nspawn(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith(("(sd-", "systemd-nspawn"))
