"""Hand the activator what it is to judge (contract 5).

On a host systemd's path unit starts it when the request is renamed into place; elsewhere a child of
ours does its work. Its answer is the request's id in ``deployments.json``; a request that stays
unanswered is repeated, at most once a minute, and is a problem after some minutes.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from firstboot.agent.problems import Problem
from firstboot.base import files, log, systemd
from firstboot.base.clock import Clock
from firstboot.base.errors import LocalFault, TryAgain
from firstboot.base.layout import REQUEST, Layout
from firstboot.exchange import faults
from firstboot.exchange.inbox import Request, newest_request, write_request
from firstboot.exchange.verdicts import Record

AGAIN_S = 60.0
SILENT_S = 300.0
BUSY = TryAgain.exit_code
# An activation with a health gate answers its own request at its beginning; what comes meanwhile
# waits for its end.
SILENT_IN_ACTIVATION_S = 3 * 3600.0


class Activator:
    """Root's side of the conversation, started by ``byteor-activate.path``, which saw the request.

    SIGUSR1 comes when it is done; an activation that was interrupted is finished without us.
    """

    finishes = True
    # The exit code with which the last one ended that we started; at BUSY another one is at work.
    exit_code = 0

    def start(self, *, anew: bool) -> None:
        """Run it soon; `anew`: since its last start something new was asked."""

    def reap(self) -> bool:
        """Return True when one that we started has ended."""
        return False

    def end(self) -> None:
        """Stop it: the agent stops."""


class Child(Activator):
    """``byteor-agent activate`` as a child, for trees and containers.

    One at a time; for any thread. Nobody waits for it: the main thread reaps it on SIGCHLD.
    """

    finishes = False

    def __init__(self, layout: Layout, *, config: Path | None) -> None:
        self._command = [sys.executable, "-I", "-m", "firstboot", "agent", "activate"]
        self._command += ["--root", str(layout.root)]
        if config is not None:
            self._command += ["--config", str(config)]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._again = self._ended = False

    def start(self, *, anew: bool) -> None:
        """Start it; one that runs is started again after its end."""
        with self._lock:
            if self._process is not None:
                self._again = self._again or anew
            elif not self._ended:
                self._begin()

    def _begin(self) -> None:
        try:
            # What it says on stderr is ours; no identity is in our environment any more.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        except OSError as error:
            raise LocalFault(f"cannot run the activator: {type(error).__name__}") from error

    def reap(self) -> bool:
        """Return True when it has ended; start the next, if asked."""
        with self._lock:
            code = self._process.poll() if self._process is not None else None
            if code is None:
                return False
            if code and not self._ended:
                log.warning("the activator failed", exit_code=code)
            self._process, self.exit_code = None, code
            if self._again and not self._ended:
                self._again = False
                with log.warned():  # the request stays unanswered, and is repeated
                    self._begin()
            return True

    def end(self) -> None:
        """Stop it wherever it is: its journal says where to go on."""
        with self._lock:
            self._ended = True
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()


def choose(layout: Layout, *, config: Path | None) -> Activator:
    """Return the one for this tree; `config` is its settings file, if any."""
    by_path_unit = layout.is_host and systemd.booted()
    return Activator() if by_path_unit else Child(layout, config=config)


@dataclass
class Inbox:
    """The conversation with the activator; for the control thread.

    One request is answered when the newest one is. Other threads may ask for `problems`.
    """

    layout: Layout
    activator: Activator
    clock: Clock
    over_tls: bool = True
    asked_at: float = float("-inf")  # monotonic
    asked_with: float | None = None  # the offset of the clock then
    _plane_ahead_of_monotonic: float | None = None
    _newest: str | None = None
    _looked: bool = False
    _unanswered_since: float | None = None

    def heard(self, date: float | None) -> None:
        """Note the control plane's time; without verified TLS it is no evidence."""
        if date is not None and self.over_tls:
            self._plane_ahead_of_monotonic = date - self.clock.monotonic()

    @property
    def clock_offset_s(self) -> float | None:
        """Return the seconds by which the control plane's clock is ahead."""
        ahead = self._plane_ahead_of_monotonic
        if ahead is None:
            return None
        return round(ahead + self.clock.monotonic() - self.clock.wall(), 1)

    def put(self, name: str, data: bytes) -> None:
        """Write a file into the inbox, durably."""
        files.make_directory(self.layout.inbox, 0o700)
        files.write(self.layout.inbox / name, data)

    def request(self) -> None:
        """Ask the activator to look; it answers later."""
        files.make_directory(self.layout.inbox, 0o700)
        self.asked_at, self.asked_with = self.clock.monotonic(), self.clock_offset_s
        self._newest, self._looked = secrets.token_hex(16), True
        write_request(self.layout, Request(self._newest, self.asked_with))
        if self._unanswered_since is None:
            self._unanswered_since = self.asked_at
        self.activator.start(anew=True)

    def pending(self, decided: Record) -> bool:
        """Return True while the newest request is unanswered."""
        if not self._looked:
            self._newest, self._looked = newest_request(self.layout), True
        if self._newest in (None, decided.answered.request):
            self._unanswered_since = None
            return False
        if self._unanswered_since is None:
            self._unanswered_since = self.clock.monotonic()
        return True

    def may_repeat(self) -> bool:
        """Return True when a repeat is not too soon, nor before a fault's pause is over."""
        if faults.pause_s(self.layout, self.clock.wall()):
            return False
        return self.clock.monotonic() - self.asked_at >= AGAIN_S

    def was_overlooked(self) -> bool:
        """Return True when an operator's retry came after the newest request.

        An activator that was at its end did not see it, and its start was merged with that run.
        """
        try:
            asked = os.stat(self.layout.inbox / REQUEST).st_mtime
            return self.layout.retry.stat().st_mtime > asked
        except OSError:
            return False

    def finish(self) -> None:
        """Have an interrupted activation finished, where nobody else does it."""
        if not self.activator.finishes and self.interrupted() and self.may_repeat():
            self.asked_at = self.clock.monotonic()
            self.activator.start(anew=False)

    def problems(self) -> list[Problem]:
        """Return the problem of an activator that does not answer, or ends without a word."""
        since, code = self._unanswered_since, self.activator.exit_code
        failed = code not in (0, BUSY)
        if (since is None and not failed) or self.layout.fault.exists():
            return []  # a fault is an answer, and shown
        if since is None or failed:
            return [_of_its_end(code)]
        limit = SILENT_IN_ACTIVATION_S if self.interrupted() else SILENT_S
        if self.clock.monotonic() - since < limit:
            return []
        detail = f"the activator has not answered for over {limit / 60:.0f} min"
        hint = "systemctl status byteor-activate, or journalctl -u byteor-activate"
        return [Problem("activator_silent", detail, hint)]

    def interrupted(self) -> bool:
        """Return True while an activation is under way or was cut."""
        return self.layout.journal.exists()


def _of_its_end(code: int) -> Problem:
    detail = f"the activator ended with exit code {code}, and could not note why"
    hint = "the agent's log says why; the agent's user must own /var/lib/byteor"
    return Problem("activation_failing", detail, hint)
