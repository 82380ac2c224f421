"""``byteor-agent status``: show the agent's health, from what it and the activator left on disk.

Needs no root, and works while the agent is down, was killed, or has not run since boot. What is
read here was written by others: a damaged file is a problem in the document, never an error, and a
member of a wrong type is as if it were absent. The JSON is `status.json` with ``state``, ``age_s``,
``last_verdict`` and the problems of now.
``byteor-firstboot status``, ``verify`` and ``upload --wait`` look through this module.

If the agent runs is told by the lock that it holds, not by its own file: a pid there could be
anybody's. Only a user who may not look at the lock is told by the pid.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from firstboot.agent.artifacts import memory
from firstboot.agent.problems import Problem, of_the_activation, of_the_expiry, unique
from firstboot.base import documents, files
from firstboot.base.clock import Clock, instant
from firstboot.base.errors import ByteorError, LocalFault, NoToken, Refused
from firstboot.base.layout import Layout
from firstboot.commands import agent_page
from firstboot.commands.agent_page import word
from firstboot.commands.agent_stored import Stored, loops
from firstboot.commands.watching import Seen, watch, watch_arguments
from firstboot.exchange import verdicts
from firstboot.exchange.wake import is_running

# The loops write at every attempt, and no healthy period or pause is longer than this.
SILENT_S = 2 * 3600.0 + 300.0
LIMIT = 100  # problems: more were never ours
DEFAULT_PERIOD_S = 30.0
FIRST = "heartbeat"
status_arguments = watch_arguments


def status_command(arguments: argparse.Namespace) -> int:
    """Print what is known; the JSON in every state.

    LocalFault (7) when the agent has not run since boot, NoToken (3) when it has no identity.
    """
    clock, layout = Clock(), arguments.layout

    def page(seen: Seen) -> list[str]:
        if isinstance(seen.stop, NoToken):
            return []
        return agent_page.page(seen.document, now=clock.wall())

    seen = watch(arguments, lambda: _seen(layout, clock), page)
    if isinstance(seen.stop, NoToken):
        raise seen.stop
    if seen.document["state"] == agent_page.NEVER_RAN:
        raise LocalFault(seen.said[0], hint=seen.said[1])
    return 0


def _seen(layout: Layout, clock: Clock) -> Seen:
    document = look(layout, clock)
    stop: ByteorError | None = key_refused(document)
    if could_not_run(layout, document):
        stop = NoToken("this host is not enrolled", hint="byteor-firstboot status")
    return Seen(
        document=document,
        online=is_online(document, clock),
        trouble=first_problem(document) if stop is None else (str(stop), stop.hint),
        stop=stop,
        final=isinstance(stop, Refused),
    )


def could_not_run(layout: Layout, document: Mapping[str, Any]) -> bool:
    """Return True where no agent has run since boot, and none was enrolled."""
    return document["state"] == agent_page.NEVER_RAN and not layout.settings.exists()


def first_problem(document: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return the sentence and the hint of the first problem."""
    return next(((row["detail"], row["hint"]) for row in document["problems"]), None)


def is_online(document: Mapping[str, Any], clock: Clock) -> bool:
    """Return True while the control plane accepts the heartbeats of an agent that runs."""
    age, period = last_beat(document, clock.wall())
    return bool(document["running"]) and age is not None and age <= 2 * period


def last_beat(document: Mapping[str, Any], now: float) -> tuple[float | None, float]:
    """Return the age of the last accepted heartbeat, and their period, in seconds."""
    loop = document["loops"].get(FIRST, {})
    period, last = loop.get("period_s") or 0.0, instant(loop.get("last_success_at"))
    return now - last if last is not None else None, period if period > 0 else DEFAULT_PERIOD_S


def key_refused(document: Mapping[str, Any]) -> Refused | None:
    """Return the refusal of the heartbeats of an agent that runs, as the error that it is.

    What a stopped agent wrote does not count: its key may have been replaced since.
    """
    loop = document["loops"].get(FIRST)
    if loop is None or not document["running"] or loop["outcome"] != "refused":
        return None
    return Refused(word(loop["problem"]), hint=loop["hint"] and word(loop["hint"]))


# -- the document


def look(layout: Layout, clock: Clock) -> dict[str, Any]:
    """Return the document of ``--json``; `state` says what the agent does now."""
    fault, now = None, clock.wall()
    try:
        stored = files.read_json(layout.agent_status) or {}
    except LocalFault as error:
        stored, fault = {}, str(error)
    shown = documents.parse(Stored, stored)
    written = instant(shown.written_at)
    age = max(0, int(now - written)) if written is not None else None
    state = _state(layout, shown, age) if stored else agent_page.NEVER_RAN
    if fault is not None:
        state = agent_page.UNREADABLE
    seen, told = verdicts.seen(layout), _told(stored.get("problems"))
    codes = {problem.code for problem in told}
    expires = shown.identity.expires_at if shown.identity is not None else None
    # What can be told without the agent, which may be down; it knows best what it says itself.
    ours = [*of_the_expiry(expires, now), *of_the_activation(seen, now)]
    ours = [problem for problem in ours if problem.code not in codes]
    said = fault or agent_page.STATES[state][1]
    down = [Problem(f"agent_{state}", said, start_hint(layout, state))] if said is not None else []
    problems = unique([*down, *told, *ours])
    sending = memory.progress(layout) if state == agent_page.RUNNING else None
    return {
        **asdict(shown),
        "v": 1,
        "state": state,
        "running": state == agent_page.RUNNING,
        "age_s": age,
        # The activator's own files are newer than what an agent wrote that is down.
        "deployment": seen.deployment,
        "signing_keys": seen.signing_keys,
        "last_verdict": seen.last_verdict,
        "loops": loops(stored.get("loops")),
        "upload": sending and asdict(sending),
        "problems": [problem.shown() for problem in problems],
        "status": "degraded" if problems else "ok",
    }


def _state(layout: Layout, shown: Stored, age: int | None) -> str:
    if shown.running is not True:  # also until the next agent has written
        return agent_page.STOPPED
    held = is_running(layout)
    if not (_alive(shown.pid) if held is None else held):
        return agent_page.GONE
    return agent_page.RUNNING if age is not None and age <= SILENT_S else agent_page.SILENT


def _alive(pid: int | None) -> bool:
    if not pid or pid >= 1 << 31:
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:  # else it is there, and another user's
        return not isinstance(error, ProcessLookupError)
    return True


def start_hint(layout: Layout, state: str) -> str:
    """Return what to do about an agent that does not run."""
    if not layout.is_host:
        return f"byteor-agent run --root {layout.root}"
    if state == agent_page.STOPPED:
        return "systemctl start byteor-agent"
    if state == agent_page.NEVER_RAN:
        return "byteor-firstboot status; if that is well: systemctl status byteor-agent"
    return "systemctl status byteor-agent, or journalctl -u byteor-agent"


def _told(rows: object) -> list[Problem]:
    """Return the agent's own problems, as far as they are of their shape."""
    found = []
    for row in rows[:LIMIT] if isinstance(rows, list) else ():
        with suppress(documents.Malformed):
            found.append(documents.parse(Problem, row))
    return found
