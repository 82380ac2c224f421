"""The resident process: workers, watchdog, signals, an end in order.

The watchdog is fed only while each worker is within its own deadline, so that one that hangs ends
the process, and systemd starts another. SIGTERM ends it, SIGHUP makes it read the settings again,
SIGUSR1 says that something on this host changed (the activator ran), SIGUSR2 that the spool has
something new. Neither yaml nor cryptography is ever loaded here.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from firstboot import __version__
from firstboot.agent import control, startup, submit
from firstboot.agent.control import Control
from firstboot.agent.health import ARTIFACTS, DEPLOYMENTS, Condition
from firstboot.agent.schedule import Ask, Schedule
from firstboot.agent.signals import ENDING, Signals
from firstboot.agent.submit import Inbox
from firstboot.agent.transfer import Transfer
from firstboot.agent.worker import Context, Crew, Worker
from firstboot.api import tls
from firstboot.api.client import PlaneApi
from firstboot.api.transport import Transport
from firstboot.base import log, systemd
from firstboot.base.clock import Clock
from firstboot.base.errors import ByteorError
from firstboot.base.layout import Layout, SettledLayout
from firstboot.exchange.handover import ENVIRONMENT, Handover
from firstboot.exchange.settings import Settings

DEFAULT_PERIOD_S = 30.0
# How often the main thread looks at the workers when no watchdog asks for more.
LOOK_S = 60.0
# After a crash systemd starts us again in 10 s; the n-th in a row begins its tasks this much later,
# up to five minutes.
CRASH_PAUSE_S, LONGEST_CRASH_PAUSE_S = 10.0, 300.0
# systemd's pause and our start: after a kill the next beat comes within one period all the same.
RESTART_S = 12.0


class Supervisor:
    """Own the workers and `status.json`; `run` returns the exit code."""

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        settings: Settings,
        signals: Signals,
        *,
        config: Path | None = None,
    ) -> None:
        self._layout, self._handed, self._signals, self._config = layout, handed, signals, config
        self._clock, self._crash = Clock(), ""
        condition = self._condition = Condition(layout, handed, self._clock)
        crew = Crew(self._crashed, condition.publish, condition.agenda, condition.jobs)
        self._crew = crew
        period = self._period = Schedule(settings.heartbeat_interval_s or DEFAULT_PERIOD_S)
        # One splay for all: the first look at deployments comes with the first beat (contract 2.3).
        spread_s = period.period_s
        if condition.before.running:
            spread_s = max(1.0, spread_s - RESTART_S)
        splay_s = Schedule(spread_s).first_delay(crew.chance)
        splay_s = self._splay_s = splay_s + _crash_pause(condition.before.crashes)
        file = (config or layout.image_defaults) if handed.source == ENVIRONMENT else None
        self._activator = submit.choose(layout, config=file)
        transfer = Transfer(crew, self._context(settings), period, splay_s, self._brought)
        over_tls = handed.api_base_url.startswith("https:")
        inbox = Inbox(layout, self._activator, self._clock, over_tls)
        context = self._context(settings, deadline_s=control.DEADLINE_S)
        self._control = Control(crew, context, period, splay_s, condition, transfer, inbox)
        self._transfer = transfer
        self._workers: tuple[Worker, ...] = (self._control, transfer)
        if transfer.download is None:
            log.notice(
                "no deployments: the settings name no org_id, project_id and environment_id"
                " to verify them by"
            )

    def _context(self, settings: Settings, **options: float) -> Context:
        transport = _transport(self._handed, settings)
        api = PlaneApi(self._handed.api_base_url, transport, clock=self._clock, **options)
        return Context(self._layout, self._handed, api, self._clock)

    def _brought(self) -> None:
        self._control.wake(DEPLOYMENTS)

    def run(self) -> int:
        """Stay until a signal (0) or a crash (1); return the exit code."""
        self._signals.at_once = False
        self._condition.publish()
        for worker in self._workers:
            worker.start()
        systemd.notify("READY=1")
        log.notice("started", agent_id=self._handed.agent_id, version=__version__)
        period = systemd.watchdog_s()
        while not self._crew.stop.is_set():
            for number in dict.fromkeys(self._signals.wait(period / 2 if period else LOOK_S)):
                self._follow(number)
            self._feed(bool(period))
        systemd.notify("STOPPING=1")
        self._activator.end()
        self._condition.publish(running=False, crashed=bool(self._crash))
        if self._crash:
            log.error(self._crash)
            return 1
        log.notice("stopped")
        return 0

    def _follow(self, number: int) -> None:
        """Do what a signal asks."""
        if number in ENDING:
            self._crew.stop.set()
        elif number == signal.SIGHUP:
            self._read_settings_again()
        elif number == signal.SIGUSR2:
            self._transfer.wake(ARTIFACTS)
        elif number == signal.SIGUSR1 or (number == signal.SIGCHLD and self._activator.reap()):
            for worker in self._workers:
                worker.nudge()

    def _feed(self, watched: bool) -> None:
        late = [w.name for w in self._workers if w.due_by < self._clock.monotonic()]
        if not late:
            systemd.notify("WATCHDOG=1")
        elif watched:
            log.error("a worker is stuck, the watchdog is not fed", workers=",".join(late))
        else:
            self._crashed(f"stuck, and nobody watches: worker {', '.join(late)}")

    def _crashed(self, message: str) -> None:
        self._crash = message
        self._signals.send(signal.SIGTERM)

    def _read_settings_again(self) -> None:
        """Use new trust, proxy and period from the next request on."""
        systemd.notify("RELOADING=1")
        tls.forget()
        try:
            try:
                self._signals.at_once = True
                settings = startup.settings_again(self._layout, self._handed, config=self._config)
                transports = [_transport(self._handed, settings) for _ in self._workers]
            finally:
                self._signals.at_once = False
        except SystemExit:
            self._signals.at_once = False  # `run` ends in order: the signal is in the pipe
        except ByteorError as error:
            log.warning(f"the settings were not read again: {error}", hint=error.hint)
        else:
            self._period.period_s = settings.heartbeat_interval_s or DEFAULT_PERIOD_S
            for worker, transport in zip(self._workers, transports):
                worker.api.reconnect(transport)
            log.notice("settings read again")
            for name, job in self._crew.jobs.items():
                if not job.task.on_demand or job.problem is not None:
                    self._crew.agenda.ask(name, Ask.ANEW)
            for worker in self._workers:
                worker.wake()
        systemd.notify("READY=1")


def _crash_pause(crashes: int) -> float:
    return min(LONGEST_CRASH_PAUSE_S, CRASH_PAUSE_S * (2.0 ** min(crashes, 10) - 1.0))


def _transport(handed: Handover, settings: Settings) -> Transport:
    return Transport(
        ca_certificates=settings.ca_certificates,
        proxy=settings.proxy or handed.proxy,
        no_proxy=settings.no_proxy,
    )


def start(layout: Layout, signals: Signals, *, config: Path | None) -> int:
    """Run the agent: hand-over or environment, settings, supervise."""
    with startup.alone(layout):
        try:
            handed, settings = startup.arrive(layout, config=config, environ=os.environ)
        except startup.ChildFailed as error:
            return error.exit_code  # the child has said why
        return Supervisor(
            SettledLayout(layout.root), handed, settings, signals, config=config
        ).run()
