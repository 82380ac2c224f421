"""Telling the runtime that ``current`` changed, and watching whether it stays healthy: the health gate of contract 3.

By default `byteor-runtime.service` is reloaded or restarted, where it exists, and has to stay active for the window.
``activation`` in firstboot.yaml may name another `unit`, a `command` in place of the reload, a `health` check in place of
staying active, and another `window_s`. Commands run as root, on a systemd host in transient units of their own: outside the
activator's sandbox, time-limited, gone with all they started. A check may fail while the runtime is coming up; once it
has succeeded it must go on to, and it must have by the end of the window.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstboot.base import systemd
from firstboot.base.clock import monotonic
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.base.redaction import redact

DEFAULT_UNIT = "byteor-runtime.service"
DEFAULT_WINDOW_S = 10.0
COMMAND_LIMIT_S = 120.0
HEALTH_LIMIT_S = 30.0  # of one check
LOOK_EVERY_S = 0.5
ANSWER_S = 20.0  # systemd may be re-executing itself
SLACK_S = 5.0  # for systemd-run beside the command's own time
DRAIN_S = 0.5
OUTPUT_LIMIT = 64 * 1024  # bytes kept of what was printed, the last ones
JOURNAL_LINES = 60
OURS = ("systemctl", "systemd-run", "journalctl")
NO_UNIT = "no_unit"


@dataclass(frozen=True)
class Gate:
    """How an activation ended: `code` None for healthy, then `note` is for the report; `output` is what was printed."""

    code: str | None = None
    reason: str | None = None
    note: str | None = None
    output: bytes = b""

    @property
    def healthy(self) -> bool:
        return self.code is None


@dataclass(frozen=True)
class Runtime:
    """What ``activation`` in firstboot.yaml says. `managed`: systemd is here and its units are ours to act on."""

    unit: str | None
    command: tuple[str, ...]
    health: tuple[str, ...]
    window_s: float
    managed: bool

    @classmethod
    def configured(cls, layout: Layout, activation: Mapping[str, Any] | None) -> Runtime:
        """Read the frozen setting; None is the default of contract 3."""
        said = activation or {}
        managed = layout.is_host and systemd.booted()
        window = said.get("window_s")
        return cls(
            unit=said.get("unit") or (None if said.get("command") else DEFAULT_UNIT),
            command=tuple(said.get("command") or ()),
            health=tuple(said.get("health") or ()),
            window_s=float(window) if isinstance(window, (int, float)) else DEFAULT_WINDOW_S,
            managed=managed,
        )

    def activate(self) -> Gate:
        """Make the runtime take what ``current`` names, and judge it for the window; LocalFault if systemd does not answer."""
        loaded = self._load_state()
        unit = self.unit if loaded == "loaded" else None
        if (
            loaded is not None
            and unit is None
            and (loaded != "not-found" or self.unit != DEFAULT_UNIT)
        ):
            return Gate("unit_not_loaded", f"{self.unit} is {loaded}")
        output = b""
        if self.command:
            code, output = self._run(self.command, COMMAND_LIMIT_S)
            if code != 0:
                return Gate("activation_failed", f"{self.command[0]} {_ended(code)}", output=output)
        elif unit is not None:
            code, output = _call(["systemctl", "reload-or-restart", "--", unit], COMMAND_LIMIT_S)
            if code != 0:
                return Gate(
                    "activation_failed",
                    f"systemctl reload-or-restart {unit} {_ended(code)}",
                    output=output,
                )
        return self._watch(unit, output, note=None if unit is not None or self.command else NO_UNIT)

    def diagnostic(self, gate: Gate) -> bytes:
        """What a person needs who looks for the cause: the output and the unit's last journal lines, redacted."""
        parts = [f"{gate.code}: {gate.reason}\n".encode(), gate.output]
        if self.managed and self.unit is not None:
            # Not -b: in a container the boot that journalctl sees is not the one that journald wrote.
            journal = [
                "journalctl",
                "--no-pager",
                "-o",
                "short-iso",
                "-n",
                str(JOURNAL_LINES),
                "-u",
                self.unit,
            ]
            parts += [
                f"\n-- last lines of {self.unit}\n".encode(),
                _call(journal, HEALTH_LIMIT_S)[1],
            ]
        return redact(b"".join(parts))[0]

    def _load_state(self) -> str | None:
        """systemd's word about the unit (loaded, not-found, masked …); None where there is none to act on."""
        if self.unit is None or not self.managed:
            return None
        end = monotonic() + ANSWER_S
        while True:
            said = _facts(self.unit).get("LoadState")
            if said:
                return said
            if monotonic() >= end:
                raise LocalFault(
                    f"systemd does not say whether there is a unit {self.unit}",
                    hint="systemctl status",
                )
            threading.Event().wait(LOOK_EVERY_S)

    def _watch(self, unit: str | None, output: bytes, *, note: str | None) -> Gate:
        """Look again and again until the window is over, at the check or else at the unit, as far as there is one."""
        end = monotonic() + self.window_s
        pause, was_healthy = threading.Event(), False
        began = _facts(unit).get("InvocationID") if unit is not None else None
        while self.health or unit is not None:
            if self.health:
                code, said = self._run(
                    self.health, min(HEALTH_LIMIT_S, max(1.0, end - monotonic()))
                )
                if code != 0 and (was_healthy or monotonic() >= end):
                    return Gate(
                        "health_check_failed",
                        f"{self.health[0]} {_ended(code)}",
                        output=output + said,
                    )
                was_healthy = code == 0
            elif unit is not None:
                now = _facts(unit)
                state = now.get("ActiveState")
                if state is None and monotonic() < end + ANSWER_S:
                    pause.wait(
                        LOOK_EVERY_S
                    )  # systemd itself is being replaced: that says nothing about the unit
                    continue
                if state not in ("active", "reloading"):
                    return Gate(
                        "unit_not_active",
                        f"{unit} is {state or 'not known to systemd'}",
                        output=output,
                    )
                if (
                    began is not None and now.get("InvocationID") != began
                ):  # it came back: it did not stay active
                    return Gate(
                        "unit_not_active", f"{unit} ended and was started again", output=output
                    )
                began = now.get("InvocationID")
            left = end - monotonic()
            if left <= 0:
                break
            pause.wait(min(LOOK_EVERY_S, left))
        return Gate(note=note, output=output)

    def _run(self, argv: tuple[str, ...], limit_s: float) -> tuple[int | None, bytes]:
        if not self.managed:
            return _call(list(argv), limit_s)
        # What does not end is killed, so that the way back need not wait for it.
        limits = [f"--property=RuntimeMaxSec={limit_s:.0f}", "--property=TimeoutStopSec=1"]
        unit = [
            "systemd-run",
            "--wait",
            "--collect",
            "--pipe",
            "--quiet",
            "--service-type=exec",
            *limits,
        ]
        return _call([*unit, "--", *argv], limit_s + SLACK_S)


def _facts(unit: str) -> Mapping[str, str]:
    """Some of ``systemctl show``; empty when systemd does not answer."""
    names = "LoadState,ActiveState,InvocationID"
    _, output = _call(["systemctl", "show", "--property", names, "--", unit], HEALTH_LIMIT_S)
    return dict(
        line.split("=", 1) for line in output.decode("utf-8", "replace").splitlines() if "=" in line
    )


def _ended(code: int | None) -> str:
    return "did not end in time" if code is None else f"ended with exit code {code}"


def _call(argv: list[str], limit_s: float) -> tuple[int | None, bytes]:
    """Run a command to its end; exit code (None: not in time, and ended) and the last of what it printed on both channels."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a null byte
        if argv[0] in OURS:
            raise LocalFault(f"cannot run {argv[0]}: {type(error).__name__}") from error
        return 127, f"{argv[0]}: {getattr(error, 'strerror', None) or 'cannot be run'}\n".encode()
    printed = _Tail(process)
    printed.start()
    code: int | None
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = None
    printed.join(DRAIN_S)  # no longer: a daemon that it left behind may hold the pipe for ever
    return code, bytes(printed.kept)


class _Tail(threading.Thread):
    """Reads all that is printed and keeps the end: neither disk nor memory is filled by a talkative command."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self.kept = bytearray()
        self._process = process

    def run(self) -> None:
        """Thread body."""
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for piece in iter(lambda: stream.read1(OUTPUT_LIMIT), b""):  # type: ignore[attr-defined]
                self.kept += piece
                del self.kept[:-OUTPUT_LIMIT]
