"""As many real agents as the machine's memory holds, against the reference control plane."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.idle import beats
from tests.bench.interpreters import Interpreter
from tests.bench.processes import usage
from tests.controlplane import ControlPlane
from tests.fleet.test_smoke import enrolled
from tests.integration.host import Host

PERIOD_S = 30.0
MISSED_S = 1.5 * PERIOD_S  # the schedule's own noise is a tenth
EACH_MIB = 40
AT_ONCE = 10


@dataclass(frozen=True)
class Seen:
    """What `minutes` of it came to; `missed`: pauses of an agent between beats that were longer
    than one and a half periods.
    """

    agents: int
    beats: int
    missed: int
    longest_s: float
    plane_ms: float
    agent_ms: float


def most() -> int:
    """Return how many agents half of the memory that is free holds, at most 200."""
    free = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
    return min(200, int(free) // 1024 // 2 // EACH_MIB)


def stand(
    interpreter: Interpreter, plane: ControlPlane, directory: Path, *, agents: int, seconds: float
) -> Seen:
    """Start them, wait until each has beaten, and watch for `seconds`."""
    plane.reset()
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(agents):
            processes.append(_started(stack, interpreter, plane, directory / str(number), number))
            if number % AT_ONCE == AT_ONCE - 1:
                plane.agents()  # when it answers, the control plane has kept up
        _all_beat(plane, agents)
        began, before = time.time(), beats(plane)
        plane_cpu = usage(plane.pid).cpu_s
        cpu = sum(usage(pid).cpu_s for pid in processes)
        time.sleep(seconds)
        counted = beats(plane) - before
        plane_cpu = usage(plane.pid).cpu_s - plane_cpu
        cpu = sum(usage(pid).cpu_s for pid in processes) - cpu
        pauses = _pauses(plane, since=began)
    late = [pause for pause in pauses if pause > MISSED_S]
    scale = 1000 / max(1, counted)
    return Seen(agents, counted, len(late), max(pauses), plane_cpu * scale, cpu * scale)


def _started(
    stack: contextlib.ExitStack, it: Interpreter, plane: ControlPlane, root: Path, number: int
) -> int:
    host, handed = Host(root, plane), enrolled(plane, number)
    host.defaults()
    identity = {
        "BYTEOR_API_BASE_URL": plane.base_url,
        "BYTEOR_AGENT_ID": handed.agent_id,
        "BYTEOR_AGENT_API_KEY": handed.api_key.reveal(),
    }
    command = it.command("byteor-agent", "run", "--root", str(root))
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env={**it.env(), **identity}, cwd="/", stdin=null, stdout=null, stderr=null
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process.pid


def _all_beat(plane: ControlPlane, agents: int) -> None:
    def each() -> bool:
        return sum(agent["heartbeats"] > 0 for agent in plane.agents()) == agents

    plane.wait_for(each, limit_s=600.0)


def _pauses(plane: ControlPlane, *, since: float) -> list[float]:
    """Return the pauses between the beats of each agent, the first and last one's included."""
    times: dict[str, list[float]] = {}
    for request in plane.requests("heartbeat"):
        times.setdefault(request["agent_id"], []).append(request["at"])
    now = time.time()
    return [
        later - earlier
        for seen in times.values()
        for earlier, later in zip(seen, [*seen[1:], now])
        if later > since
    ]
