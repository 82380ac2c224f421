"""The resident process: take the hand-over, start the loops, feed the watchdog, publish status, end in order.

The three values come from `handover`; neither yaml nor cryptography is ever loaded here. The watchdog is fed only while
every loop is within its own deadline, so that a loop that hangs ends the process, and systemd starts another.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from types import FrameType
from typing import Any, Dict, List, Optional

from firstboot import __version__, files, frozen, log, systemd
from firstboot.agent.heartbeat import HeartbeatLoop
from firstboot.agent.loop import Loop, Schedule
from firstboot.api import PlaneApi
from firstboot.clock import Clock, rfc3339
from firstboot.errors import LocalFault
from firstboot.frozen import Settings
from firstboot.handover import Handover, take
from firstboot.layout import Layout
from firstboot.transport import Transport

DEFAULT_PERIOD_S = 30.0
# How often the main thread looks at the loops when no watchdog asks for more.
LOOK_S = 60.0
UNSEAL_TIMEOUT_S = 60


class Supervisor:
    """Owns the loops and `status.json`; `run` returns the exit code."""

    def __init__(self, layout: Layout, handed: Handover, settings: Settings, *, clock: Optional[Clock] = None) -> None:
        self._layout = layout
        self._handed = handed
        self._clock = clock or Clock()
        self._stop = threading.Event()
        self._publishing = threading.Lock()
        self._crash: Optional[str] = None
        self._started_at = rfc3339(self._clock.wall())
        self._api = connect(handed, settings)
        schedule = Schedule(settings.heartbeat_interval_s or DEFAULT_PERIOD_S)
        heartbeat = HeartbeatLoop(
            layout, handed, self._api, schedule=schedule, problems=self._problems, clock=self._clock
        )
        self.loops: List[Loop] = []
        self.loops.append(self._loop("heartbeat", heartbeat.run_once, schedule))

    def _loop(self, name: str, run_once: Any, schedule: Schedule) -> Loop:
        return Loop(
            name,
            run_once,
            schedule=schedule,
            stop=self._stop,
            crashed=self._crashed,
            changed=self.publish,
            clock=self._clock,
        )

    def run(self) -> int:
        """Start everything and stay until a signal or a crash; 0 after an orderly end, 1 after a crash."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        for loop in self.loops:
            loop.start()
        systemd.notify("READY=1", f"STATUS=agent {self._handed.agent_id}")
        log.notice("started", agent_id=self._handed.agent_id, version=__version__)
        period = systemd.watchdog_s()
        pause = period / 2 if period else LOOK_S
        while not self._stop.wait(pause):
            late = [loop.name for loop in self.loops if loop.health.due_by < self._clock.monotonic()]
            if late:
                log.error("a loop is stuck, the watchdog is not fed", loops=",".join(late))
            else:
                systemd.notify("WATCHDOG=1")
        systemd.notify("STOPPING=1")
        self.publish(running=False)
        if self._crash is not None:
            log.error(self._crash)
            return 1
        log.notice("stopped")
        return 0

    def _on_stop(self, number: int, frame: Optional[FrameType]) -> None:
        self._stop.set()

    def _crashed(self, message: str) -> None:
        self._crash = message
        self._stop.set()

    def _problems(self) -> List[Dict[str, str]]:
        """What is wrong now, for the heartbeat and for status: never a secret."""
        return [
            {"code": f"{loop.name}_failing", "detail": loop.health.problem}
            for loop in self.loops
            if loop.health.problem is not None
        ]

    def publish(self, *, running: bool = True) -> None:
        """Write `status.json`: on tmpfs, so no fsync; a full /run must not stop the beats."""
        with self._publishing:
            loops = {}
            for loop in self.loops:
                shown = asdict(loop.health)
                del shown["due_by"]
                loops[loop.name] = {**shown, "period_s": loop.schedule.period_s}
            document = {
                "v": 1,
                "running": running,
                "pid": os.getpid(),
                "agent_version": __version__,
                "started_at": self._started_at,
                "written_at": rfc3339(self._clock.wall()),
                "identity": self._handed.shown(),
                "loops": loops,
                "problems": self._problems(),
            }
            try:
                files.write_json(self._layout.agent_status, document, mode=0o644, durable=False)
            except LocalFault as error:
                log.warning(str(error))


def connect(handed: Handover, settings: Settings) -> PlaneApi:
    """Return the plane's API as this host reaches it."""
    transport = Transport(
        ca_certificates=settings.ca_certificates,
        proxy=handed.proxy or settings.proxy,
        no_proxy=settings.no_proxy,
    )
    return PlaneApi(handed.api_base_url, transport)


def start(layout: Layout) -> int:
    """What ``byteor-agent run`` does: hand-over, frozen settings, supervise."""
    if not layout.is_host:
        code = _unseal(layout)
        if code:
            return code  # the child has said why
    handed = take(layout)
    if handed is None:
        raise LocalFault(
            "no identity was handed over",
            hint="start byteor-agent.service, which runs byteor-firstboot unseal first",
        )
    files.make_directory(layout.agent, 0o700)  # on a host the package has made it, and it is the agent's
    stored = files.read_json(layout.settings)
    settings = Settings() if stored is None else frozen.thaw(stored)
    return Supervisor(layout, handed, settings).run()


def _unseal(layout: Layout) -> int:
    """Without systemd the privileged pre-start step is a child: the key it uses never enters this process."""
    command = [sys.executable, "-m", "firstboot", "unseal", "--root", str(layout.root)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, timeout=UNSEAL_TIMEOUT_S, check=False).returncode
