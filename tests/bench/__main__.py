"""``tests/bench/run``: measure, print one table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable

from tests.bench import idle, interpreters, peers, redaction, transfers
from tests.bench.boots import Boots
from tests.bench.processes import Cost, middle
from tests.controlplane import ControlPlane


class Bench:
    """One run: the rows are printed as they are measured."""

    def __init__(self, chosen: argparse.Namespace, scratch: Path, plane: ControlPlane) -> None:
        self._chosen, self._scratch, self._plane = chosen, scratch, plane
        self._all, self._lacking = interpreters.found(scratch)

    def head(self) -> None:
        print(f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
        for interpreter in self._all:
            print(f"  {interpreter.name}: {interpreter.python}: {interpreter.said}")
        for lacking in self._lacking:
            print(f"  SKIPPED: {lacking}")

    def row(self, work: str, who: str, value: str, reach: str = "") -> None:
        print(f"{work:<44} {who:<20} {value:<42} {reach}", flush=True)

    def idle(self) -> None:
        minutes = 10 if self._chosen.full else max(1, round(self._chosen.window / 60))
        minute_s = 60.0 if self._chosen.full or self._chosen.window >= 60 else self._chosen.window
        for interpreter in self._all:
            self._plane.reset()
            host = idle.enrolled(self._scratch / f"idle-{interpreter.name}", self._plane)
            with idle.running(interpreter, host) as pid:
                idle.wait_for_beats(self._plane, 1, every_s=0.2)
                seen = idle.window(pid, minutes, minute_s=minute_s)
            scale, last = 60.0 / minute_s, seen[-1]
            cpu = [(b.cpu_s - a.cpu_s) * 1000 * scale for a, b in zip(seen, seen[1:])]
            switches = [(b.switches - a.switches) * scale for a, b in zip(seen, seen[1:])]
            name = interpreter.name
            memory = f"{last.rss_mib:.1f} MiB ({last.anonymous_mib:.1f} anonymous)"
            self.row("agent idle: RSS", name, memory, "<= 30, aim 27 on Debian")
            spans = f"{minutes} x {minute_s:.0f} s"
            self.row(
                f"agent idle: CPU a minute, {spans}",
                name,
                middle(cpu, unit=" ms", digits=1),
                "<= 8 ms",
            )
            self.row(
                "agent idle: context switches a minute", name, middle(switches, digits=0), "<= 16"
            )
            self.row(
                "agent idle: threads, descriptors", name, f"{last.threads}, {last.descriptors}"
            )

    def peers(self) -> None:
        for name, seen in peers.idle(self._scratch, min(60.0, self._chosen.window)):
            if not seen:
                self.row("peer idle", name, "not installed, or it did not stay")
                continue
            begin, end = seen
            scale = 60.0 / min(60.0, self._chosen.window)
            self.row(
                "peer idle: RSS", name, f"{end.rss_mib:.1f} MiB ({end.anonymous_mib:.1f} anonymous)"
            )
            self.row(
                "peer idle: CPU a minute",
                name,
                f"{(end.cpu_s - begin.cpu_s) * 1000 * scale:.1f} ms",
            )
            self.row(
                "peer idle: context switches a minute",
                name,
                f"{(end.switches - begin.switches) * scale:.0f}",
            )

    def start(self) -> None:
        for interpreter in self._all:
            found = [
                idle.started(
                    interpreter, self._plane, self._scratch / f"start-{interpreter.name}-{turn}"
                )
                for turn in range(self._chosen.runs)
            ]
            agent = [each["agent"] for each in found]
            self.row(
                "agent start until the first beat: CPU",
                interpreter.name,
                middle(agent, unit=" s"),
                "<= 0.45 s",
            )
            unseal = [each["unseal"] for each in found]
            self.row(
                "  its pre-start step, unseal: CPU", interpreter.name, middle(unseal, unit=" s")
            )

    def beats(self) -> None:
        count = 10_000 if self._chosen.full else self._chosen.beats
        for interpreter in self._all:
            found = idle.many_beats(
                interpreter, self._plane, self._scratch / f"beats-{interpreter.name}", count
            )
            cost = f"{found['cpu_ms']:.2f} ms"
            self.row(
                f"one beat ({found['beats']:.0f}, period 5 ms): CPU",
                interpreter.name,
                cost,
                "<= 2 ms",
            )
            grown = f"{found['growth'] * 100:+.1f} % to {found['rss_mib']:.1f} MiB"
            self.row("  growth of RSS over these", interpreter.name, grown, "<= 5 % over 10,000")

    def boot(self) -> None:
        costs = Boots(self._plane, self._scratch).measure(self._all, runs=self._chosen.runs)
        self._against("first boot: script (curl, openssl, sed, sync)", "script", costs["script"])
        for interpreter in self._all:
            name = interpreter.name
            first, again, bare = (costs[f"{work} {name}"] for work in ("first", "again", "python"))
            self._against("first boot", name, first, to=costs["script"], reach="<= 7 x")
            self.row(
                "boot of an enrolled host: CPU",
                name,
                middle([c.cpu_s for c in again], unit=" s"),
                "<= 0.25 s",
            )
            self.row(
                "  an interpreter that does nothing: CPU",
                name,
                middle([c.cpu_s for c in bare], unit=" s", digits=3),
            )
        if shutil.which("cloud-init") is None:
            self.row("first boot", "cloud-init", "not installed", "ours <= 0.6 x")

    def redaction(self) -> None:
        for interpreter in self._all:
            command = [interpreter.python, redaction.__file__]
            done = subprocess.run(
                command, env=interpreter.env(), cwd="/", capture_output=True, check=True
            )
            self.row(
                "redaction of an incident, a second of CPU",
                interpreter.name,
                middle(json.loads(done.stdout), unit=" MB", digits=0),
                ">= 20 MB",
            )

    def transfer(self) -> None:
        for work, reach, mib in (
            ("download", "<= 1.2 x", self._chosen.bundle),
            ("upload", "<= 1.25 x", 64),
        ):
            measure: Callable[..., dict[str, list[Cost]]] = getattr(transfers, work)
            title = f"{work}, {mib} MiB, hashed"
            costs = measure(self._all, self._scratch / work, mib=mib, runs=self._chosen.runs)
            self._against(title, "curl && openssl", costs["curl"])
            for interpreter in self._all:
                self._against(
                    title, interpreter.name, costs[interpreter.name], to=costs["curl"], reach=reach
                )
                rss = middle(
                    [cost.rss_mib for cost in costs[interpreter.name]], unit=" MiB", digits=1
                )
                self.row("  growth of RSS", interpreter.name, rss, "flat")
                alone = [cost.wall_s for cost in costs[f"{interpreter.name}, whole"]]
                self.row(
                    "  with the interpreter's start: wall",
                    interpreter.name,
                    middle(alone, unit=" s", digits=3),
                )

    def _against(
        self,
        work: str,
        who: str,
        costs: list[Cost],
        *,
        to: list[Cost] | None = None,
        reach: str = "",
    ) -> None:
        wall = middle([cost.wall_s for cost in costs], unit=" s", digits=3)
        if to is not None:
            ratio = statistics.median(cost.wall_s for cost in costs) / statistics.median(
                cost.wall_s for cost in to
            )
            wall = f"{ratio:.2f} x, {wall}"
        self.row(f"{work}: wall", who, wall, reach)
        self.row(f"{work}: CPU", who, middle([cost.cpu_s for cost in costs], unit=" s"))


WORKS = ("boot", "start", "beats", "redaction", "transfer", "idle", "peers")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description="What first boot and the agent cost, in one run."
    )
    parser.add_argument(
        "--full", action="store_true", help="idle for ten minutes, and 10,000 beats"
    )
    parser.add_argument(
        "--window", type=float, default=60.0, metavar="SECONDS", help="idle for so long (60)"
    )
    parser.add_argument(
        "--beats",
        type=int,
        default=1000,
        metavar="N",
        help="beats to take the cost of one from (1000)",
    )
    parser.add_argument(
        "--runs", type=int, default=7, metavar="N", help="runs of each whole process (7)"
    )
    parser.add_argument(
        "--bundle", type=int, default=1024, metavar="MIB", help="size of the download (1024)"
    )
    parser.add_argument("--only", action="append", choices=WORKS, help="only this; may be repeated")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ControlPlane(Path(scratch) / "plane") as plane:
        bench = Bench(chosen, Path(scratch), plane)
        bench.head()
        bench.row("WORK", "WHO", "MEDIAN (SMALLEST–LARGEST)", "REACH")
        for work in chosen.only or WORKS:
            getattr(bench, work)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
