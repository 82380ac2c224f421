"""Tell the runtime that ``current`` changed, and watch whether it stays healthy (contract 3).

By default `byteor-runtime.service` is reloaded or restarted, where it exists, and has to stay
active for the window. ``activation`` in firstboot.yaml may name another `unit`, a `command` in
place of the reload, a `health` check in place of staying active, and another `window_s`. Commands
run as root, on a systemd host in transient units: outside the activator's sandbox, time-limited,
gone with all they started. A check may fail while the runtime is coming up; once it has succeeded
it must go on to, and it must have by the end of the window.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
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
JOURNAL_LINES = "60"
OURS = ("systemctl", "systemd-run", "journalctl")
NO_UNIT = "no_unit"


@dataclass(frozen=True)
class Gate:
    """The end of an activation: `code` None for healthy, then `note` is for the report.

    `output` is what was printed.
    """

    code: str | None = None
    reason: str | None = None
    note: str | None = None
    output: bytes = b""

    @property
    def healthy(self) -> bool:
        """Return True when it is to stay."""
        return self.code is None


@dataclass(frozen=True)
class Runtime:
    """The setting ``activation``. `managed`: systemd is here and its units are ours to act on."""

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
        """Make the runtime take what ``current`` names, and judge it for the window.

        LocalFault if systemd does not answer.
        """
        loaded = self._load_state()
        unit = self.unit if loaded == "loaded" else None
        is_default = loaded == "not-found" and self.unit == DEFAULT_UNIT
        if loaded is not None and unit is None and not is_default:
            return Gate("unit_not_loaded", f"{self.unit} is {loaded}")
        code: int | None = 0
        output, did = b"", ""
        if self.command:
            did, (code, output) = self.command[0], self._run(self.command, COMMAND_LIMIT_S)
        elif unit is not None:
            argv = ["systemctl", "reload-or-restart", "--", unit]
            did = f"systemctl reload-or-restart {unit}"
            code, output = _call(argv, COMMAND_LIMIT_S)
        if code != 0:
            return Gate("activation_failed", f"{did} {_ended(code)}", output=output)
        return self._watch(unit, output, note=None if unit is not None or self.command else NO_UNIT)

    def diagnostic(self, gate: Gate) -> bytes:
        """Return the output and the unit's last journal lines, redacted: to find the cause by."""
        parts = [f"{gate.code}: {gate.reason}\n".encode(), gate.output]
        if self.managed and self.unit is not None:
            # Not -b: in a container journalctl sees another boot than the one that was written.
            argv = ["journalctl", "--no-pager", "-o", "short-iso", "-n", JOURNAL_LINES]
            lines = _call([*argv, "-u", self.unit], HEALTH_LIMIT_S)[1]
            parts += [f"\n-- last lines of {self.unit}\n".encode(), lines]
        return redact(b"".join(parts))[0]

    def _load_state(self) -> str | None:
        """Return systemd's word about the unit: loaded, not-found, masked; None without systemd."""
        if self.unit is None or not self.managed:
            return None
        end = monotonic() + ANSWER_S
        while True:
            said = _facts(self.unit).get("LoadState")
            if said:
                return said
            if monotonic() >= end:
                why = f"systemd does not say whether there is a unit {self.unit}"
                raise LocalFault(why, hint="systemctl status")
            threading.Event().wait(LOOK_EVERY_S)

    def _watch(self, unit: str | None, output: bytes, *, note: str | None) -> Gate:
        """Look again and again until the window is over: at the check, or else at the unit."""
        end = monotonic() + self.window_s
        was_healthy = False
        began = _facts(unit).get("InvocationID") if unit is not None else None
        while self.health or unit is not None:
            if self.health:
                limit = min(HEALTH_LIMIT_S, max(1.0, end - monotonic()))
                code, said = self._run(self.health, limit)
                if code != 0 and (was_healthy or monotonic() >= end):
                    why = f"the health check {self.health[0]} {_ended(code)}"
                    return Gate("health_check_failed", why, output=output + said)
                was_healthy = code == 0
            elif unit is not None:
                now = _facts(unit)
                state = now.get("ActiveState")
                if state is None and monotonic() < end + ANSWER_S:
                    # systemd itself is being replaced: that says nothing about the unit.
                    threading.Event().wait(LOOK_EVERY_S)
                    continue
                why = f"{unit} is {state or 'not known to systemd'}"
                if state in ("active", "reloading"):
                    why = ""
                    if began is not None and now.get("InvocationID") != began:
                        why = f"{unit} ended and was started again"  # it did not stay active
                if why:
                    return Gate("unit_not_active", why, output=output)
                began = now.get("InvocationID")
            left = end - monotonic()
            if left <= 0:
                break
            threading.Event().wait(min(LOOK_EVERY_S, left))
        return Gate(note=note, output=output)

    def _run(self, argv: tuple[str, ...], limit_s: float) -> tuple[int | None, bytes]:
        if not self.managed:
            return _call(list(argv), limit_s)
        # What does not end is killed, so that the way back need not wait for it.
        unit = ["systemd-run", "--wait", "--collect", "--pipe", "--quiet", "--service-type=exec"]
        unit += [f"--property=RuntimeMaxSec={limit_s:.0f}", "--property=TimeoutStopSec=1"]
        return _call([*unit, "--", *argv], limit_s + SLACK_S)


def _facts(unit: str) -> Mapping[str, str]:
    """Return some of ``systemctl show``; nothing when systemd does not answer."""
    names = "LoadState,ActiveState,InvocationID"
    _, output = _call(["systemctl", "show", "--property", names, "--", unit], HEALTH_LIMIT_S)
    lines = output.decode("utf-8", "replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _ended(code: int | None) -> str:
    return "did not end in time" if code is None else f"ended with exit code {code}"


def _call(argv: list[str], limit_s: float) -> tuple[int | None, bytes]:
    """Run a command to its end; return its exit code and the last of what it printed.

    None: it did not end in time, and was killed.
    """
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
            why = f"cannot run {argv[0]}: {type(error).__name__}"
            raise LocalFault(why, hint=f"check that {argv[0]} is installed") from error
        return 127, f"{argv[0]}: {getattr(error, 'strerror', None) or 'cannot be run'}\n".encode()
    kept = bytearray()
    printed = threading.Thread(target=_drain, args=(process.stdout, kept), daemon=True)
    printed.start()
    code: int | None
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = None
    printed.join(DRAIN_S)  # no longer: a daemon that it left behind may hold the pipe for ever
    return code, bytes(kept)


def _drain(output: BufferedReader, kept: bytearray) -> None:
    """Read all that is printed and keep the end, so that nothing is filled by it."""
    with output:
        for piece in iter(lambda: output.read1(OUTPUT_LIMIT), b""):
            kept += piece
            del kept[:-OUTPUT_LIMIT]
