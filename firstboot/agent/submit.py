"""Who runs the activator once we have asked: systemd's path unit on a host, else a child of ours."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable, Protocol

from firstboot.base import log, systemd
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout

# A bundle of gigabytes on a slow disk, then two activations with their health gates: as the unit's own limit.
LONGEST_S = 3 * 3600.0


class Activator(Protocol):
    """Root's side of the conversation, or whoever plays it under ``--root``."""

    finishes: bool  # whether somebody else finishes an activation that was interrupted

    def start(self, alive: Callable[[float], None]) -> None:
        """It has been asked; return when it has answered, or at once where it will call us."""

    def end(self) -> None:
        """The agent stops."""


class PathUnit:
    """``byteor-activate.path`` has seen the request already; SIGUSR1 comes when the activator is done."""

    finishes = True

    def start(self, alive: Callable[[float], None]) -> None:
        pass

    def end(self) -> None:
        pass


class Child:
    """``python -m firstboot agent activate``, for trees and containers: one at a time, whichever loop asks."""

    finishes = False

    def __init__(
        self, layout: Layout, *, config: Path | None, finished: Callable[[], None]
    ) -> None:
        self._command = [sys.executable, "-m", "firstboot", "agent", "activate"]
        self._command += ["--root", str(layout.root)]
        if config is not None:
            self._command += ["--config", str(config)]
        self._finished = finished
        self._running = threading.Lock()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def start(self, alive: Callable[[float], None]) -> None:
        alive(2 * LONGEST_S)  # our turn may come after the other loop's
        with self._running:
            process = self._begin()
            if process is None:
                return
            code = process.wait()
        if code and not self._ended:
            log.warning("the activator did not do its part", exit_code=code)
        self._finished()

    def _begin(self) -> subprocess.Popen[bytes] | None:
        with self._starting:
            if self._ended:
                return None
            try:
                # What it says on stderr is ours; no identity is in our environment any more (`arrival`).
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
            except OSError as error:
                raise LocalFault(f"cannot run the activator: {type(error).__name__}") from error
            return self._process

    def end(self) -> None:
        """Stop it wherever it is: its journal says where to go on."""
        with self._starting:
            self._ended = True
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()


def choose(layout: Layout, *, config: Path | None, finished: Callable[[], None]) -> Activator:
    """The one for this tree; `finished` is called each time a child of ours has ended.

    `config`: the file of the settings where no first boot has frozen any.
    """
    return (
        PathUnit()
        if layout.is_host and systemd.booted()
        else Child(layout, config=config, finished=finished)
    )
