"""The resident agent: start, idling for a window, the cost of a beat and what ten thousand of them
leave behind.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.interpreters import Interpreter
from tests.bench.processes import usage
from tests.controlplane import ControlPlane
from tests.integration.host import Host

FAST_PERIOD_S = 0.005
# The resident process with another default period, and nothing else changed: the plane and the
# settings name none.
_FAST = f"from firstboot.agent import supervisor\nsupervisor.DEFAULT_PERIOD_S = {FAST_PERIOD_S}"


def enrolled(directory: Path, plane: ControlPlane, **settings: Any) -> Host:
    """A host that has been through first boot; its trust is the plane's CA file."""
    host = Host(directory, plane)
    host.defaults(**settings)
    host.token(plane.mint())
    done = host.run()
    if done.code:
        raise RuntimeError(f"first boot failed: {done.err}")
    return host


@contextlib.contextmanager
def running(interpreter: Interpreter, host: Host, *, before: str = "") -> Iterator[int]:
    """The agent's process id, while it runs."""
    command = interpreter.command("byteor-agent", "run", "--root", str(host.root), before=before)
    process = subprocess.Popen(
        command,
        env=interpreter.env(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def beats(plane: ControlPlane) -> int:
    return sum(int(agent["heartbeats"]) for agent in plane.agents())


def wait_for_beats(
    plane: ControlPlane, count: int, *, limit_s: float = 600.0, every_s: float = 0.02
) -> None:
    until = time.monotonic() + limit_s
    while beats(plane) < count:
        if time.monotonic() > until:
            raise RuntimeError(f"{beats(plane)} beats instead of {count} within {limit_s} s")
        time.sleep(every_s)


def deployed(host: Host, *, limit_s: float = 120.0) -> None:
    """Wait until the agent of `host` has activated what the control plane assigned."""
    host.plane.wait_for(host.path("var/lib/byteor/current/spec.kv").exists, limit_s=limit_s)


def started(interpreter: Interpreter, plane: ControlPlane, directory: Path) -> dict[str, float]:
    """CPU seconds until the plane accepted the first beat: of the agent, and of `unseal`, its child
    without systemd.
    """
    plane.reset()
    host = enrolled(directory, plane)
    with running(interpreter, host, before=_FAST) as pid:
        wait_for_beats(plane, 1, every_s=0.005)
        used = usage(pid)
    return {"agent": used.cpu_s, "unseal": used.children_s}


def many_beats(
    interpreter: Interpreter, plane: ControlPlane, directory: Path, count: int
) -> dict[str, float]:
    """Return CPU ms and bytes of one beat, and how `count` of them made memory grow.

    At a period of 5 ms instead of 30 s, on one kept connection.
    """
    plane.reset()
    host = enrolled(directory, plane)
    with running(interpreter, host, before=_FAST) as pid:
        wait_for_beats(plane, 200)
        first, beaten = usage(pid), beats(plane)
        wait_for_beats(plane, beaten + count, every_s=0.2)
        last, now = usage(pid), beats(plane)
    return {
        "cpu_ms": (last.cpu_s - first.cpu_s) * 1000 / (now - beaten),
        "beats": float(now - beaten),
        "growth": last.rss_mib / first.rss_mib - 1.0,
        "rss_mib": last.rss_mib,
    }
