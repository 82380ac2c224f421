"""How this agent is, in one place: what a heartbeat says of it, what `status.json` shows, what the plane's hints mean."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from firstboot import __version__
from firstboot.agent.heartbeat import Facts
from firstboot.agent.loop import Loop, Outcome
from firstboot.agent.problems import Problem, of_the_activation, of_the_clock, of_the_key, unique
from firstboot.api.messages import HeartbeatReply
from firstboot.base import files, log
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.exchange import verdicts
from firstboot.exchange.handover import Handover


class Work(Protocol):
    """What a loop does, for every loop but the heartbeat."""

    def run_once(self) -> bool | None:
        """Make one attempt; False when the plane was not asked."""

    def problems(self) -> list[Problem]:
        """Say what is wrong beyond the last attempt's error."""

    def shown(self) -> dict[str, Any]:
        """Return its part of `status.json`."""

    def hinted(self, hints: HeartbeatReply) -> bool:
        """Return True when the hints name something that was not dealt with yet."""

    def nudged(self) -> bool:
        """Return True when there is something to do now: somebody on this host says that something changed."""


class Condition:
    """Gathers from loops, works and the activator's files; `loops` and `works` are filled by the supervisor."""

    def __init__(self, layout: Layout, handed: Handover, *, clock: Clock) -> None:
        self.loops: dict[str, Loop] = {}
        self.works: dict[str, Work] = {}
        before = _before(layout)
        crashes = before.get("crashes")
        self.crashes = crashes if isinstance(crashes, int) and crashes > 0 else 0
        # The agent before us was killed in this boot: its host is one that is missed, not one of many that come up.
        self.killed = before.get("running") is True
        self._layout = layout
        self._status = layout.agent_status
        self._handed = handed
        self._clock = clock
        self._skew_s: float | None = None
        self._publishing = threading.Lock()
        self._closed = False
        self._started_at = rfc3339(clock.wall())

    def answered(self, hints: HeartbeatReply, skew_s: float | None) -> None:
        """A beat was accepted: wake the loops that its hints concern."""
        self._skew_s = skew_s if skew_s is not None else self._skew_s
        for name, work in self.works.items():
            if work.hinted(hints):
                self.loops[name].hint()

    def nudged(self) -> None:
        """The activator ran, the spool has something new: wake the loops that this concerns."""
        for name, work in self.works.items():
            if work.nudged():
                self.loops[name].wake()

    def facts(self) -> Facts:
        """Return what the next beat says."""
        seen = verdicts.seen(self._layout)
        # A beat that arrives proves that the earlier failures of beats are over, unless the plane refused them.
        over = self.loops["heartbeat"].health.outcome != Outcome.REFUSED.value
        problems = [
            (problem.code, problem.detail)
            for problem in self._problems(seen)
            if not (over and problem.code == "heartbeat_failing")
        ]
        spool = self._spool() or {}
        return Facts(
            problems=tuple(problems),
            deployment=seen.deployment,
            signing_keys_version=seen.signing_keys_version,
            pending=spool.get("pending", 0),
            quarantined=spool.get("quarantined", 0),
        )

    def publish(self, *, running: bool = True, crashed: bool = False) -> None:
        """Write `status.json` (README, "JSON"): on tmpfs, so no fsync; a full /run must not stop the beats."""
        with self._publishing:
            if self._closed:
                return  # a loop that ends its attempt after the last word
            self._closed = not running
            seen = verdicts.seen(self._layout)
            problems = self._problems(seen)
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
                "loops": {name: self._loop_shown(name, loop) for name, loop in self.loops.items()},
                "deployment": seen.deployment,
                "signing_keys": seen.signing_keys,
                "spool": self._spool(),
                "clock_skew_s": round(self._skew_s) if self._skew_s is not None else None,
                "problems": [problem.shown() for problem in problems],
            }
            try:
                # Without indentation, which the C encoder does not do: it is written several times a minute.
                data = (json.dumps(document, sort_keys=True) + "\n").encode()
                files.write(self._status, data, mode=0o644, durable=False)
            except LocalFault as error:
                log.warning(str(error))

    def _problems(self, seen: verdicts.Seen) -> list[Problem]:
        found: list[Problem] = []
        for name, loop in self.loops.items():
            if loop.health.problem is not None:
                found.append(Problem(f"{name}_failing", loop.health.problem, loop.health.hint))
        for work in self.works.values():
            found.extend(work.problems())
        found.extend(of_the_activation(seen, self._clock.wall()))
        found.extend(of_the_key(self._handed, self._clock.wall()))
        found.extend(of_the_clock(self._skew_s))
        return unique(found)

    def _spool(self) -> dict[str, Any] | None:
        work = self.works.get("artifacts")
        return work.shown() if work is not None else None

    def _loop_shown(self, name: str, loop: Loop) -> Mapping[str, Any]:
        work = self.works.get(name)
        own = work.shown() if work is not None and name != "artifacts" else {}
        return {**own, **loop.health.shown(), "period_s": loop.schedule.period_s}

    def _crashes_so_far(self, crashed: bool) -> int:
        if crashed:
            return self.crashes + 1
        return 0 if self.loops["heartbeat"].health.last_success_at is not None else self.crashes


def _before(layout: Layout) -> Mapping[str, Any]:
    """What the agent before us wrote down last, if it ran in this boot; `crashes`: how many times in a row by its own error."""
    try:
        return files.read_json(layout.agent_status) or {}
    except LocalFault:
        return {}
