"""The resident process: start the loops, feed the watchdog, follow signals, publish status, end in order.

The watchdog is fed only while every loop is within its own deadline, so that a loop that hangs ends the process, and
systemd starts another. SIGTERM ends it, SIGHUP makes it read the settings again, SIGUSR1 says that something on this host
changed: the activator ran. SIGUSR2: the spool has something new. Neither yaml nor cryptography is ever loaded here.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Callable

from firstboot import __version__
from firstboot.agent import deployments, keysets, reports, startup, submit
from firstboot.agent.artifacts import sender
from firstboot.agent.artifacts.sender import ArtifactsLoop
from firstboot.agent.deployments import DeploymentsLoop
from firstboot.agent.health import Condition, Work
from firstboot.agent.heartbeat import HeartbeatLoop
from firstboot.agent.inbox import Inbox
from firstboot.agent.keysets import KeySetsLoop
from firstboot.agent.loop import Loop, Schedule
from firstboot.agent.pace import Pace, PaceIfAsking
from firstboot.agent.reports import ReportsLoop
from firstboot.api.client import PlaneApi
from firstboot.api.transport import Transport
from firstboot.base import log, systemd
from firstboot.base.clock import Clock, rng
from firstboot.base.errors import ByteorError
from firstboot.base.layout import Layout, SettledLayout
from firstboot.exchange.handover import ENVIRONMENT, Handover
from firstboot.exchange.settings import Settings

DEFAULT_PERIOD_S = 30.0
WAKING = (signal.SIGUSR1, signal.SIGUSR2)  # something on this host is new; the spool has something
# How often the main thread looks at the loops when no watchdog asks for more.
LOOK_S = 60.0
# After a crash systemd starts us again in 10 s; the n-th in a row begins its loops this much later, up to five minutes.
CRASH_PAUSE_S, LONGEST_CRASH_PAUSE_S = 10.0, 300.0
# systemd's pause and our start: after a kill the next beat comes within one period all the same.
RESTART_S = 12.0


class Supervisor:
    """Owns the loops and `status.json`; `run` returns the exit code."""

    def __init__(
        self, layout: Layout, handed: Handover, settings: Settings, *, config: Path | None = None
    ) -> None:
        self._layout = layout
        self._config = config
        self._handed = handed
        self._settings = settings
        self._clock = Clock()
        self._stop = threading.Event()
        # What the main thread is to look at: signals, and ends. A signal handler may put into this queue at any moment.
        self._events: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._crash: str | None = None
        self._condition = Condition(layout, handed, clock=self._clock)
        self._apis: list[PlaneApi] = []
        self._pace = Pace()
        self.loops = self._condition.loops
        self._period = Schedule(settings.heartbeat_interval_s or DEFAULT_PERIOD_S)
        # One splay for all: the first look at deployments comes with the first beat (contract 2.3).
        spread = (
            Schedule(max(1.0, self._period.period_s - RESTART_S))
            if self._condition.killed
            else self._period
        )
        self._splay_s = spread.first_delay(rng()) + _crash_pause(self._condition.crashes)
        beat = HeartbeatLoop(
            layout,
            handed,
            self._api(),
            schedule=self._period,
            facts=self._condition.facts,
            answered=self._condition.answered,
            clock=self._clock,
        )
        self._start("heartbeat", beat.run_once, self._period)
        settings_file = (config or layout.image_defaults) if handed.source == ENVIRONMENT else None
        self._activator = submit.choose(
            layout, config=settings_file, finished=lambda: self._events.put(signal.SIGUSR1)
        )
        if handed.org_id and handed.project_id and handed.environment_id:
            self._start_fetching()
        else:
            log.notice(
                "no deployments here: the settings name no org_id, project_id and environment_id to verify them by"
            )
        self._start_telling()

    def _start_fetching(self) -> None:
        """What comes from the plane to be judged; what both share is the inbox."""
        layout, handed, clock = self._layout, self._handed, self._clock
        inbox = Inbox(
            layout, self._activator, clock=clock, over_tls=handed.api_base_url.startswith("https:")
        )
        daily = Schedule(keysets.PERIOD_S)
        keys = KeySetsLoop(
            layout,
            handed,
            self._api(),
            schedule=daily,
            inbox=inbox,
            alive=self._alive("keysets"),
            clock=clock,
        )
        each_minute = Schedule(deployments.PERIOD_S)
        fetch = DeploymentsLoop(
            layout,
            handed,
            self._api(),
            schedule=each_minute,
            inbox=inbox,
            alive=self._alive("deployments"),
            changed=self._condition.publish,
            keys_wanted=lambda: self.loops["keysets"].hint(),
            clock=clock,
        )
        first_s = keys.first_delay(rng(), splay_s=self._splay_s)
        self._start("keysets", keys.run_once, daily, work=keys, first_delay_s=first_s)
        self._start("deployments", fetch.run_once, each_minute, work=fetch)

    def _start_telling(self) -> None:
        """What goes to the plane."""
        layout, handed, clock = self._layout, self._handed, self._clock
        told = ReportsLoop(
            layout, handed, self._api(), spooled=lambda: self._wake("artifacts"), clock=clock
        )
        told_s, tells = Schedule(reports.PERIOD_S), PaceIfAsking(self._pace, told.nudged)
        self._start("reports", told.run_once, told_s, work=told, pace=tells)
        sent = ArtifactsLoop(
            layout, handed, self._api(), clock=clock, alive=self._alive("artifacts")
        )
        each_period = Schedule(min(2 * self._period.period_s, sender.LONGEST_PERIOD_S))
        self._start(
            "artifacts",
            sent.run_once,
            each_period,
            work=sent,
            pace=PaceIfAsking(self._pace, sent.nudged),
        )

    def _alive(self, name: str) -> Callable[..., None]:
        return lambda *for_s: self.loops[name].alive(*for_s)

    def _wake(self, name: str) -> None:
        if name in self.loops:
            self.loops[name].wake()

    def _api(self) -> PlaneApi:
        """A connection for one more thread."""
        api = PlaneApi(
            self._handed.api_base_url, _transport(self._handed, self._settings), clock=self._clock
        )
        self._apis.append(api)
        return api

    def _start(
        self,
        name: str,
        run_once: Callable[[], bool | None],
        schedule: Schedule,
        *,
        work: Work | None = None,
        first_delay_s: float | None = None,
        pace: Pace | None = None,
    ) -> None:
        if work is not None:
            self._condition.works[name] = work
        self.loops[name] = Loop(
            name,
            run_once,
            schedule=schedule,
            stop=self._stop,
            crashed=self._crashed,
            changed=self._condition.publish,
            first_delay_s=self._splay_s if first_delay_s is None else first_delay_s,
            pace=pace or self._pace,
            clock=self._clock,
        )

    def run(self) -> int:
        """Start everything and stay until a signal or a crash; 0 after an orderly end, 1 after a crash."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_signal)
        for number in WAKING:
            signal.signal(number, self._on_signal)
        for loop in self.loops.values():
            loop.start()
        systemd.notify("READY=1", f"STATUS=agent {self._handed.agent_id}")
        log.notice("started", agent_id=self._handed.agent_id, version=__version__)
        period = systemd.watchdog_s()
        pause = period / 2 if period else LOOK_S
        while not self._stop.is_set():
            self._follow(pause)
            self._feed()
        systemd.notify("STOPPING=1")
        self._activator.end()
        self._condition.publish(running=False, crashed=self._crash is not None)
        if self._crash is not None:
            log.error(self._crash)
            return 1
        log.notice("stopped")
        return 0

    def _follow(self, pause: float) -> None:
        """Wait for an event, but no longer than `pause`, and do what it asks."""
        try:
            event = self._events.get(timeout=pause)
        except queue.Empty:
            return
        if event == signal.SIGHUP:
            self._read_settings_again()
        elif event == signal.SIGUSR1:
            self._condition.nudged()
        elif event == signal.SIGUSR2:
            self._wake("artifacts")

    def _feed(self) -> None:
        late = [
            name
            for name, loop in self.loops.items()
            if loop.health.due_by < self._clock.monotonic()
        ]
        if late:
            log.error("a loop is stuck, the watchdog is not fed", loops=",".join(late))
        else:
            systemd.notify("WATCHDOG=1")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Runs between any two instructions of the main thread: it takes no lock that this thread could hold.
        if number not in (signal.SIGHUP, *WAKING):
            self._stop.set()
        self._events.put(number)

    def _crashed(self, message: str) -> None:
        self._crash = message
        self._stop.set()
        self._events.put(signal.SIGTERM)

    def _read_settings_again(self) -> None:
        """SIGHUP: new trust, proxy and period from the next request on; invalid settings change nothing."""
        systemd.notify("RELOADING=1")
        try:
            settings = startup.settings_again(self._layout, self._handed, config=self._config)
            transports = [_transport(self._handed, settings) for _ in self._apis]
        except ByteorError as error:
            log.warning(f"the settings were not read again: {error}", hint=error.hint)
        else:
            self._settings = settings
            self._period.period_s = settings.heartbeat_interval_s or DEFAULT_PERIOD_S
            for api, transport in zip(self._apis, transports):
                api.reconnect(transport)
            log.notice("settings read again")
            for loop in self.loops.values():
                loop.wake(anew=True)
        systemd.notify("READY=1")


def _crash_pause(crashes: int) -> float:
    return min(LONGEST_CRASH_PAUSE_S, CRASH_PAUSE_S * (2.0 ** min(crashes, 10) - 1.0))


def _transport(handed: Handover, settings: Settings) -> Transport:
    return Transport(
        ca_certificates=settings.ca_certificates,
        proxy=settings.proxy or handed.proxy,
        no_proxy=settings.no_proxy,
    )


def start(layout: Layout, *, config: Path | None) -> int:
    """What ``byteor-agent run`` does: hand-over or environment, settings, supervise."""
    for number in WAKING:
        signal.signal(
            number, signal.SIG_IGN
        )  # until there are loops to wake: it would end the process
    with startup.alone(layout):
        try:
            handed, settings = startup.arrive(layout, config=config, environ=os.environ)
        except startup.ChildFailed as error:
            return error.exit_code  # the child has said why
        return Supervisor(SettledLayout(layout.root), handed, settings, config=config).run()
