"""Waiting until an artifact has left the spool: read from what the agent writes there, so that nobody has to talk to it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from threading import Event
from typing import Any

from firstboot.agent.artifacts import stock
from firstboot.agent.artifacts.spool import Added
from firstboot.base import files, log
from firstboot.base.clock import Clock, monotonic
from firstboot.base.errors import Corrupt, LocalFault, Refused, TryAgain
from firstboot.base.layout import Layout
from firstboot.commands.agent_status import GONE, NEVER_RAN, STOPPED, look, reason

POLL_S = 0.25
AGENT_BACK_S = 45.0  # systemd starts it again after ten seconds
BAR = 30  # characters


def failures(layout: Layout) -> object:
    """The loop's count of failures, to be taken before the agent is told of anything new."""
    return (look(layout, Clock())["loops"].get("artifacts") or {}).get("failures")


def wait(layout: Layout, added: Added, *, before: object, limit_s: float | None = None) -> str:
    """Return the id that the plane gave it. The artifact stays in the spool when this raises, or is interrupted.

    `before`: what `failures` said. Refused: it is in quarantine, or the plane refuses this agent's uploads. LocalFault: no
    agent runs. TryAgain: it took longer than `limit_s`.
    """
    began = seen_alive = monotonic()
    missed = 0
    shown, pause = _Shown(), Event()
    try:
        while True:
            if added.id in stock.ids(layout.spool):
                missed = 0
                document = look(layout, Clock())
                _raise_refusal(document, before)
                if document["state"] not in (STOPPED, GONE, NEVER_RAN):
                    seen_alive = monotonic()
                shown.waiting(layout, added.id)
            elif added.id in stock.ids(layout.quarantine):
                raise _refused(layout, added.id)
            else:
                artifact_id = _artifact_id(layout, added.sha256)
                missed += 1
                if artifact_id is not None or missed > 1:  # it may have moved between two looks
                    return artifact_id or "an artifact whose id was not kept"
            if monotonic() - seen_alive > min(AGENT_BACK_S, limit_s or AGENT_BACK_S):
                raise LocalFault(
                    f"the agent is not running; {added.id} stays in the spool",
                    hint="systemctl status byteor-agent",
                )
            if limit_s is not None and monotonic() - began > limit_s:
                raise TryAgain(
                    f"{added.id} was not uploaded within {limit_s:.0f} s",
                    hint="byteor-agent status says why",
                )
            pause.wait(POLL_S)
    except KeyboardInterrupt:
        shown.over()
        log.notice(f"{added.id} stays in the spool, and is uploaded when it can be")
        raise
    finally:
        shown.over()


def _raise_refusal(document: Mapping[str, Any], before: object) -> None:
    """The loop was refused once more since we came: without a person it stays so, and nobody waits for that at a prompt."""
    loop = document["loops"].get("artifacts") or {}
    if loop.get("outcome") == "refused" and loop.get("failures") != before:
        hint = loop.get("hint")
        raise Refused(
            f"{loop.get('problem')}; it stays in the spool",
            hint=hint if isinstance(hint, str) else None,
        )


def _refused(layout: Layout, entry_id: str) -> Refused:
    row = stock.refusal(layout.quarantine / entry_id)
    return Refused(
        f"the plane refused {entry_id}: {reason(row)}",
        hint=f"it is kept; byteor-agent retry {entry_id} sends it again",
    )


def _artifact_id(layout: Layout, sha256: str) -> str | None:
    try:
        return next(
            (row.artifact_id for row in stock.uploaded(layout) if row.sha256 == sha256), None
        )
    except Corrupt:
        return None


class _Shown:
    """One line on stderr: a bar that moves on a terminal, else a sentence."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._said = False
        self._width = 0

    def waiting(self, layout: Layout, entry_id: str) -> None:
        if not self._terminal:
            if not self._said:
                log.notice("waiting until it is uploaded")
            self._said = True
            return
        progress = _progress(layout)
        if progress.get("id") == entry_id and progress.get("size"):
            sent, size = progress["sent"], progress["size"]
            line = f"[{'#' * (BAR * sent // size):<{BAR}}] {sent / (1 << 20):.1f} of {size / (1 << 20):.1f} MiB"
        else:
            before = sum(
                1
                for other in stock.ids(layout.spool)
                if stock.number(other) < stock.number(entry_id)
            )
            line = f"waiting, {before} before it" if before else "waiting"
        sys.stderr.write(f"\r{line:<{self._width}}")
        sys.stderr.flush()
        self._width = len(line)

    def over(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0


def _progress(layout: Layout) -> dict[str, Any]:
    try:
        said = files.read_json(layout.upload_progress) or {}
    except LocalFault:
        return {}
    counts = [said.get(name) for name in ("sent", "size")]
    whole = all(
        isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts
    )
    return said if whole and said["sent"] <= said["size"] else {}
