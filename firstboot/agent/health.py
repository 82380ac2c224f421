"""The agent's condition, for the heartbeat, `status.json` and hints."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from typing import Any

from firstboot import __version__
from firstboot.agent.heartbeat import Facts
from firstboot.agent.problems import (
    Problem,
    of_the_activation,
    of_the_clock,
    of_the_expiry,
    of_the_spool,
    unique,
)
from firstboot.agent.schedule import Agenda, Ask, Outcome
from firstboot.agent.worker import Job
from firstboot.api.messages import HeartbeatReply
from firstboot.base import documents, files, log, systemd
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.documents import lenient
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.exchange import verdicts
from firstboot.exchange.handover import Handover

FIRST, ARTIFACTS, DEPLOYMENTS, DOWNLOAD = "heartbeat", "artifacts", "deployments", "download"
CLOSING_S = 1.0
MOST_PROBLEMS = 50  # status.json is read up to a limit


@dataclass(frozen=True)
class _Before:
    """The last words of an earlier agent of this boot.

    `crashes`: how many times in a row agents ended by an error of their own. `running`: it was
    killed, so that its host is one that is missed, not one of many that come up.
    """

    crashes: int = lenient(0)
    running: bool = lenient(False)


class Condition:
    """Gather from the workers' jobs and the activator's files; for any thread."""

    def __init__(self, layout: Layout, handed: Handover, clock: Clock) -> None:
        self._layout, self._handed, self._clock = layout, handed, clock
        self.agenda, self.jobs = Agenda(), dict[str, Job]()
        self._skew_s: float | None = None
        self._publishing = threading.Lock()
        self._closed, self._said = False, dict[Problem, None]()
        self._started_at = rfc3339(clock.wall())
        try:
            self.before = documents.read(layout.agent_status, _Before) or _Before()
        except LocalFault:
            self.before = _Before()

    def answered(self, hints: HeartbeatReply, skew_s: float | None) -> None:
        """A beat was accepted: ask for the tasks that its hints concern."""
        self._skew_s = skew_s if skew_s is not None else self._skew_s
        for name, job in self.jobs.items():
            if job.work.hinted(hints):
                self.agenda.ask(name, Ask.HINT)

    def facts(self) -> Facts:
        """Return what the next beat says."""
        seen, spool, found = self._look()
        # A beat that arrives proves that the earlier failures of beats are over, unless the
        # control plane refused them.
        over = self.jobs[FIRST].task.outcome is not Outcome.REFUSED
        told = [(p.code, p.detail) for p in found if not (over and p.code == f"{FIRST}_failing")]
        version, pending = seen.signing_keys_version, spool["pending"]
        return Facts(tuple(told), seen.deployment, version, pending, spool["quarantined"])

    def publish(self, *, running: bool = True, crashed: bool = False) -> None:
        """Write `status.json` (README, "JSON"); a full /run must not stop the beats.

        Nothing follows the last word, which does not wait for a thread that is stuck in here.
        """
        if not self._publishing.acquire(timeout=-1 if running else CLOSING_S):
            return
        try:
            if not self._closed:
                self._closed = not running
                self._write(running, crashed)
        except LocalFault as error:
            log.warning(str(error))
        finally:
            self._publishing.release()

    def _write(self, running: bool, crashed: bool) -> None:
        seen, spool, problems = self._look()
        document = {
            "v": 1,
            "running": running,
            "pid": os.getpid(),
            "agent_version": __version__,
            "started_at": self._started_at,
            "written_at": rfc3339(self._clock.wall()),
            "status": "degraded" if problems else "ok",
            "crashes": self._crashes_so_far(crashed),
            "identity": self._handed.shown(),
            "loops": {name: self._shown(name) for name in self.jobs if name != DOWNLOAD},
            "deployment": seen.deployment,
            "signing_keys": seen.signing_keys,
            "spool": spool,
            "clock_skew_s": round(self._skew_s) if self._skew_s is not None else None,
            "problems": [problem.shown() for problem in problems],
        }
        # Without indentation, which the C encoder does not do: it is written several times a
        # minute. On tmpfs, so no fsync.
        data = (json.dumps(document, sort_keys=True) + "\n").encode()
        files.write(self._layout.agent_status, data, mode=0o644, durable=False)
        last = self.jobs[FIRST].last_success_at
        well = f"ok, last beat at {last}" if last is not None else "ok, no beat yet"
        said = f"degraded: {documents.sentence(problems[0].detail)}" if problems else well
        systemd.notify(f"STATUS={said if running else 'stopped'}")
        self._say(problems)

    def _say(self, problems: list[Problem]) -> None:
        """Tell the journal which problems begin and end; a worker tells those of its tasks."""
        now = {problem: None for problem in problems if not problem.code.endswith("_failing")}
        for problem in now:
            if problem not in self._said:
                log.warning(problem.detail, problem=problem.code, hint=problem.hint)
        for code in {problem.code for problem in self._said} - {problem.code for problem in now}:
            log.notice(f"{code} is over")
        self._said = now

    def _shown(self, name: str) -> dict[str, Any]:
        job, download = self.jobs[name], self.jobs.get(DOWNLOAD)
        own = job.work.shown() if name != ARTIFACTS else {}
        if name == DEPLOYMENTS and job.problem is None and download and download.problem:
            job = download  # a failing download is its deployment's
        now = self._clock.monotonic()
        left = self.agenda.when(job.task, now) - now
        at = rfc3339(self._clock.wall() + left) if abs(left) != float("inf") else None
        return {**own, **job.shown(at)}

    def _look(self) -> tuple[verdicts.Seen, dict[str, Any], list[Problem]]:
        """Return what the activator left, what is in the spool, and all present problems."""
        seen, spool = verdicts.seen(self._layout), self.jobs[ARTIFACTS].work.shown()
        found: list[Problem] = []
        # The heartbeat's before all others.
        for name, job in sorted(self.jobs.items(), key=lambda item: not item[1].task.first):
            if job.problem is not None:
                said = DEPLOYMENTS if name == DOWNLOAD else name
                found.append(Problem(f"{said}_failing", job.problem, job.hint))
        for job in self.jobs.values():
            found.extend(job.work.problems())
        found.extend(of_the_spool(spool))
        found.extend(of_the_activation(seen, self._clock.wall()))
        found.extend(of_the_expiry(self._handed.expires_at, self._clock.wall()))
        found.extend(of_the_clock(self._skew_s))
        return seen, spool, unique(found)[:MOST_PROBLEMS]

    def _crashes_so_far(self, crashed: bool) -> int:
        if crashed:
            return self.before.crashes + 1
        return 0 if self.jobs[FIRST].last_success_at is not None else self.before.crashes
