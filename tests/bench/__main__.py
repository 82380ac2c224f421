"""``tests/bench/run``: measure, print one table, draw one picture."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable

from tests.bench import crowd, idle, interpreters, peers, redaction, transfers
from tests.bench.boots import Boots
from tests.bench.interpreters import Interpreter
from tests.bench.processes import Cost, Usage, alternating_calls, usage
from tests.bench.rows import Table
from tests.boot import host
from tests.controlplane import ControlPlane
from tests.fleet import figures
from tests.fleet.scenarios import AFTER_S, BEGINS, TROUBLES

SCRIPT = "script"  # curl, openssl, sed and sync


class Bench:
    """One run: the rows are printed as they are measured."""

    def __init__(
        self, chosen: argparse.Namespace, scratch: Path, memory: Path, plane: ControlPlane
    ) -> None:
        self._chosen, self._scratch, self._memory, self._plane = chosen, scratch, memory, plane
        self._all, lacking = interpreters.found(scratch)
        self.table = Table({it.name: f"{it.python}: {it.said}" for it in self._all})
        self.table.head()
        for sentence in lacking:
            self.table.note(sentence)

    def _add(
        self,
        work: str,
        it: Interpreter,
        values: list[float],
        unit: str,
        digits: int = 2,
        **reach: float,
    ) -> None:
        """Add a row of ours; what is to be reached is meant for Debian's Python alone."""
        self.table.add(
            work, it.name, values, unit, digits, **(reach if it.name == "Debian" else {})
        )

    def boot(self) -> None:
        costs = Boots(self._plane, self._scratch).measure(self._all, runs=self._chosen.runs)
        walls = [cost.wall_s for cost in costs[SCRIPT]]
        self.table.add("first boot: wall", SCRIPT, walls, "s", 3)
        for it in self._all:

            def of(work: str, of: str = it.name) -> list[Cost]:
                return costs[f"{work} {of}"]

            def cpu(work: str) -> list[float]:
                return [cost.cpu_s for cost in of(work)]

            first = [cost.wall_s for cost in of("first")]
            self._add("first boot: wall", it, first, "s", 3)
            self._add(
                "first boot: wall beside the script", it, _ratios(first, walls), "x", most=2.0
            )
            self._add("first boot: CPU", it, cpu("first"), "s")
            beside = _ratios(cpu("first"), cpu("imports"))
            self._add("first boot: CPU beside its imports", it, beside, "x", most=1.1)
            self._add("boot of an enrolled host: CPU of run", it, cpu("run"), "s", most=0.2)
            self._add("  of run, unseal and erase", it, cpu("three"), "s", most=0.55)
            beyond = [large - small for large, small in zip(cpu("large"), cpu("small"))]
            self._add("  1 MiB of base64 in user data, beyond 1 KiB", it, beyond, "s", most=0.25)

    def start(self) -> None:
        def one(it: Interpreter) -> dict[str, float]:
            return idle.started(it, self._plane, Path(tempfile.mkdtemp(dir=self._scratch)) / "host")

        found = alternating_calls(self._all, one, runs=self._chosen.runs)
        for it in self._all:
            agent, unseal = (
                [each[name] for each in found[it.name]] for name in ("agent", "unseal")
            )
            self._add("agent start until the first beat: CPU", it, agent, "s", most=0.17)
            self._add("  unseal, the step before: CPU", it, unseal, "s", most=0.10)

    def beats(self) -> None:
        count = 10_000 if self._chosen.full else self._chosen.beats

        def one(it: Interpreter) -> dict[str, float]:
            place = Path(tempfile.mkdtemp(dir=self._memory)) / "host"
            return idle.many_beats(it, self._plane, place, count)

        found = alternating_calls(self._all, one, runs=3)
        for it in self._all:
            cost = [each["cpu_ms"] for each in found[it.name]]
            self._add("one beat on a kept connection: CPU", it, cost, "ms", most=1.8)
            grown = [each["growth"] * 100 for each in found[it.name]]
            self._add(f"  growth of RSS over {count} beats", it, grown, "%", 1, most=5.0)

    def redaction(self) -> None:
        for it in self._all:
            command = [it.python, redaction.__file__]
            done = subprocess.run(command, env=it.env(), cwd="/", capture_output=True, check=True)
            rates = json.loads(done.stdout)
            self._add("redaction of an incident, a second of CPU", it, rates, "MB", 0, least=20.0)

    def transfer(self) -> None:
        for work, most, mib in (("download", 0.95, self._chosen.bundle), ("upload", 0.85, 64)):
            measure: Callable[..., dict[str, list[Cost]]] = getattr(transfers, work)
            title = f"{work} of {mib} MiB, hashed"
            costs = measure(self._all, self._scratch / work, mib=mib, runs=self._chosen.runs)
            walls = [cost.wall_s for cost in costs["curl"]]
            self.table.add(f"{title}: wall", "curl && openssl", walls, "s", 3)
            for it in self._all:
                ours = [cost.wall_s for cost in costs[it.name]]
                self._add(f"{title}: wall", it, ours, "s", 3)
                beside = _ratios(ours, walls)
                self._add(f"{work}: wall beside curl and openssl", it, beside, "x", most=most)
                growth = [cost.rss_mib for cost in costs[it.name]]
                self._add(f"{work}: growth of RSS", it, growth, "MiB", 1)

    def idle(self) -> None:
        """Run ours and the peers side by side, and read all of them at the end of each minute."""
        minutes = 10 if self._chosen.full else self._chosen.minutes
        with ExitStack() as stack:
            ours = self._residents(stack)
            others = {}
            why_not = host.why_not()
            if why_not is None and not self._chosen.no_peers:
                others = stack.enter_context(peers.running(self._scratch))
            elif why_not is not None:
                self.table.note(f"peers: {why_not}")

            def look() -> dict[str, Usage]:
                """Return the use so far of all that still run."""
                seen = {name: usage(pid) for name, pid in ours.items()}
                return {**seen, **peers.all_used(others)}

            seen = [look()]
            for _ in range(minutes):
                time.sleep(60.0)
                seen.append(look())
        reaches = {it.name: it for it in self._all}
        for name in (*ours, *others):
            if name not in seen[-1] or name not in seen[0]:
                self.table.note(f"{name} did not stay")
                continue
            uses = [each[name] for each in seen if name in each]
            cpu = [(b.cpu_s - a.cpu_s) * 1000 for a, b in zip(uses, uses[1:])]
            switches = [float(b.switches - a.switches) for a, b in zip(uses, uses[1:])]
            memory, threads = [each.rss_mib for each in uses[1:]], [float(uses[-1].threads)]
            for work, values, unit, most in (
                ("RSS", memory, "MiB", 26.0),
                ("threads", threads, "", 4.0),
                ("CPU a minute", cpu, "ms", 5.0),
                ("wake-ups a minute", switches, "", 10.0),
            ):
                title = f"{IDLE}: {work}" if name in reaches else f"peer idle: {work}"
                reach = {"most": most} if name == "Debian" else {}
                self.table.add(title, name, values, unit, int(unit != ""), **reach)

    def _residents(self, stack: ExitStack) -> dict[str, int]:
        """Start an agent on each interpreter; its deployment is active when this returns."""
        self._plane.reset()
        hosts = [idle.enrolled(self._memory / f"idle-{it.name}", self._plane) for it in self._all]
        self._plane.deploy()
        running = [idle.running(it, one) for it, one in zip(self._all, hosts)]
        pids = {it.name: stack.enter_context(one) for it, one in zip(self._all, running)}
        for one in hosts:
            idle.deployed(one)
        return pids

    def fleet(self) -> None:
        """Simulate ten thousand hosts, with three seeds."""
        seeds = range(1, 4)
        for name, title in (("boot", "mass boot"), ("outage: refused or 503", "outage of 10 min")):
            trouble = TROUBLES[name]
            runs = [trouble.run(agents=10_000, seed=seed) for seed in seeds]
            begins = 0.0 if trouble.boots else trouble.ends
            peaks = [figures.peak(run, begins, begins + AFTER_S, width_s=1.0) for run in runs]
            self.table.add(f"{title}: fullest second, of the mean", FLEET, peaks, "x", most=1.4)
            back = [figures.recovery(run) for run in runs]
            nearly_all, everyone = ([each[at] for each in back] for at in (-2, -1))
            self.table.add(f"{title}: 99 % are back after", FLEET, nearly_all, "s", 0, most=60.0)
            self.table.add(f"{title}: all are back after", FLEET, everyone, "s", 0, most=65.0)
            if not trouble.boots:
                loads = [figures.load(run, BEGINS, trouble.ends) for run in runs]
                self.table.add(f"{title}: load in it, of the mean", FLEET, loads, "x", most=0.9)

    def crowd(self) -> None:
        """Run real agents in their processes, as many as memory holds."""
        it = self._all[-1]
        agents = self._chosen.agents or crowd.most()
        seconds = 600.0 if self._chosen.full else self._chosen.minutes * 60.0
        place = self._scratch / "crowd"
        seen = crowd.stand(it, self._plane, place, agents=agents, seconds=seconds)
        title = f"{agents} agents for {seconds / 60:.0f} min"
        self._add(f"{title}: beats", it, [float(seen.beats)], "", 0)
        self._add("  beats missed", it, [float(seen.missed)], "", 0, most=0.0)
        self._add("  longest pause between beats", it, [seen.longest_s], "s", 1)
        self._add("  reference control plane's CPU a beat", it, [seen.plane_ms], "ms")
        self._add("  agent's CPU a beat, all included", it, [seen.agent_ms], "ms")


IDLE, FLEET = "agent idle, deployed", "simulation"
WORKS = ("boot", "start", "beats", "redaction", "transfer", "fleet", "idle")


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Return ours beside theirs, turn by turn."""
    return [our / their for our, their in zip(ours, theirs)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description="What first boot and the agent cost, in one run."
    )
    add = parser.add_argument
    add("--full", action="store_true", help="idle for 10 minutes, 10,000 beats, a crowd of agents")
    add("--minutes", type=int, default=3, metavar="N", help="idle for so long (3)")
    add("--beats", type=int, default=1000, metavar="N", help="beats to take one's cost from (1000)")
    add("--runs", type=int, default=7, metavar="N", help="runs of each whole process (7)")
    add("--bundle", type=int, default=1024, metavar="MIB", help="size of the download (1024)")
    add("--agents", type=int, default=0, metavar="N", help="of the crowd (what memory holds)")
    add("--no-peers", action="store_true", help="do not run other agents beside ours")
    add("--only", action="append", choices=(*WORKS, "crowd"), help="only this; may be repeated")
    add("--json", type=Path, metavar="FILE", help="write all rows there, too")
    add("--picture", type=Path, metavar="FILE", help="draw memory, wake-ups and ratios (PNG)")
    chosen = parser.parse_args()
    works = chosen.only or (*WORKS, *(["crowd"] if chosen.full else []))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # What an agent writes at each beat is on tmpfs, as a host's /run is.
        shm = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=shm)))
        plane = stack.enter_context(ControlPlane(scratch / "plane"))
        bench = Bench(chosen, scratch, memory, plane)
        for work in works:
            getattr(bench, work)()
    if chosen.json is not None:
        bench.table.save(chosen.json)
    if chosen.picture is not None:
        from tests.bench.picture import draw

        draw(bench.table.rows, chosen.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
