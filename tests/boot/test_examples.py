"""The drop-ins of image-build/examples in a guest: the runtime runs as its own user with this
host's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane

from . import hosts, seeds
from .guest import Guest
from .network import Network

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).resolve().parents[2] / "image-build/examples"
RUNTIME = "byteor-runtime.service"
USER = "daemon"
UNIT = f"""[Unit]
Description=Stand-in for the vendor's runtime
[Service]
User={USER}
ExecStart=/usr/bin/byteor-runtime
NoNewPrivileges=yes
ProtectSystem=strict
"""


@dataclass
class Seen:
    """A started runtime: the lines of its environment that are ours, its user ids, and what stayed
    on disk of the key.
    """

    environ: list[str]
    uids: list[str]
    failed: list[str]
    copies: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def seen(
    suite: str,
    image: Sequence[Path],
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, dict[str, Seen]]]:
    """Enroll, then start the runtime with one example after the other."""
    with ControlPlane(tmp_path_factory.mktemp("plane"), host=network.plane_address) as plane:
        token, guest = hosts.mint(plane), new_guest(f"examples-{suite}", image)
        text = seeds.user_data(hosts.settings(plane, token), body={"hostname": guest.name})
        guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
        guest.write(f"/etc/systemd/system/{RUNTIME}", UNIT)
        guest.write("/usr/bin/byteor-runtime", "#!/bin/sh\nexec sleep infinity\n", mode=0o755)
        guest.boot()
        agent_id = hosts.wait_for_agent(guest, plane)
        hosts.wait_for_beat(guest, plane, agent_id)
        yield agent_id, {which: started(guest, which) for which in ("exec", "credential")}


def started(guest: Guest, which: str) -> Seen:
    """Install one example, start the runtime, look at its process, and take the example away
    again.
    """
    # What a guest that runs is given goes through it: its root is an overlay.
    for path in [path for path in (EXAMPLES / which).rglob("*") if path.is_file()]:
        target = f"/etc/systemd/system/{path.relative_to(EXAMPLES / which)}"
        text = path.read_text().replace("--user byteor", f"--user {USER}")
        guest.run("mkdir", "-p", str(Path(target).parent))
        guest.run("sh", "-c", 'printf %s "$1" > "$2"', "sh", text, target)
    guest.run("systemctl", "daemon-reload")
    guest.run("systemctl", "start", RUNTIME)
    pid = guest.unit(RUNTIME)["MainPID"]
    guest.wait_for(
        lambda: "sleep" in guest.run("cat", f"/proc/{pid}/comm").stdout, "the runtime", timeout=60
    )
    environ = guest.run("sh", "-c", f"tr '\\0' '\\n' < /proc/{pid}/environ").stdout
    uids = guest.run("sh", "-c", f"grep ^Uid /proc/{pid}/status").stdout.split()[1:]
    ours = sorted(line for line in environ.splitlines() if line.startswith("BYTEOR_"))
    key = ours[0].partition("=")[2] if ours else "none"
    found = guest.run(
        "grep", "-rlF", key, "/etc", "/run/byteor-identity", "/var/lib/byteor", "/tmp", check=False
    ).stdout
    guest.run("systemctl", "stop", RUNTIME)
    seen = Seen(ours, uids, hosts.failed(guest.look()), found.splitlines())
    guest.run("rm", "-r", f"/etc/systemd/system/{RUNTIME}.d")
    return seen


@pytest.mark.parametrize("which", ["exec", "credential"])
def test_the_runtime_has_the_identity_and_is_not_root(
    seen: tuple[str, dict[str, Seen]], which: str
) -> None:
    """Three variables with this agent's id, all user ids the unit's own, no failed unit, the key in
    no file.
    """
    agent_id, runtimes = seen
    runtime = runtimes[which]
    assert [line.partition("=")[0] for line in runtime.environ] == [
        "BYTEOR_AGENT_API_KEY", "BYTEOR_AGENT_ID", "BYTEOR_API_BASE_URL",
    ]  # fmt: skip
    assert (
        runtime.environ[1] == f"BYTEOR_AGENT_ID={agent_id}" and runtime.environ[0].partition("=")[2]
    )
    assert len(set(runtime.uids)) == 1 and runtime.uids[0] != "0"
    assert runtime.failed == [] and runtime.copies == []
