"""What a process used: memory, CPU time and context switches out of /proc, and whole commands run
to their end.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """CPU of the process itself and of the children it waited for; both kinds of context switches
    of all threads.
    """

    rss_mib: float
    anonymous_mib: float
    cpu_s: float
    children_s: float
    switches: int
    threads: int
    descriptors: int


def usage(pid: int) -> Usage:
    """What `pid` has used until now."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    memory = {
        name: int(re.search(rf"^{name}:\s+(\d+)", rollup, re.M).group(1)) / 1024
        for name in ("Rss", "Anonymous")
    }  # type: ignore[union-attr]
    # schedstat counts nanoseconds; /proc/PID/stat ticks of 10 ms, which is more than a minute of
    # idling.
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    cpu = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    switches = sum(
        int(count)
        for task in tasks
        for count in re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())
    )
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = (int(stat[13]) + int(stat[14])) * TICK_S
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Usage(
        memory["Rss"], memory["Anonymous"], cpu, children, switches, len(tasks), descriptors
    )


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float
    rss_mib: float


def whole(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    accepted: tuple[int, ...] = (0,),
) -> Cost:
    """Run a command to its end: wall, CPU with its children, the largest process."""
    began = time.perf_counter()
    process = subprocess.Popen(
        list(command),
        env=env,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode not in accepted:
        raise RuntimeError(
            f"{command[0]} ended with {process.returncode}: {said.decode(errors='replace')[-2000:]}"
        )
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def alternating(works: Mapping[str, Callable[[], Cost]], *, runs: int) -> dict[str, list[Cost]]:
    """Each of `works` `runs` times, in turns, so that what the machine does meanwhile hits all of
    them; one run before.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for turn in range(runs + 1):
        for name, work in works.items():
            cost = work()
            if turn:
                costs[name].append(cost)
    return costs


def alternating_calls(whos: Sequence[Any], call: Callable[[Any], Any], *, runs: int) -> Any:
    """Call with each of `whos` in turns; return the results by their names."""
    found: dict[str, list[Any]] = {who.name: [] for who in whos}
    for _ in range(runs):
        for who in whos:
            found[who.name].append(call(who))
    return found
