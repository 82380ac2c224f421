"""How the agent is, from what it and the activator left on disk: for ``status`` of both commands and for ``verify``.

Needs no root, and works while the agent is down, was killed, or has not run since boot. What is read here was written by
others: a damaged file is a problem in the document, never an error, and a member of a wrong type is as if it were absent.
The JSON is `status.json` with ``state``, ``age_s``, ``last_verdict`` and the problems of now (README, "JSON").
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from firstboot.agent.problems import Problem, of_the_activation, of_the_expiry, unique
from firstboot.base import files
from firstboot.base.clock import Clock, from_rfc3339
from firstboot.base.errors import LocalFault, NoToken
from firstboot.base.layout import Layout
from firstboot.commands.page import page
from firstboot.exchange import activation

RUNNING, STOPPED, GONE, SILENT, NEVER_RAN, UNREADABLE = (
    "running",
    "stopped",
    "gone",
    "silent",
    "never_ran",
    "unreadable",
)
# The loops write at every attempt, and no healthy period or pause is longer than this.
SILENT_S = 2 * 3600.0 + 300.0
FAR_S = 1e12  # no clock is further off; infinity is, which JSON from elsewhere may hold
LIMIT = 100  # problems, loops: more were never ours
MAPPINGS = ("identity", "deployment", "signing_keys", "spool")


def status(layout: Layout, *, as_json: bool) -> int:
    """Print what is known; LocalFault (7) when the agent has not run since boot, NoToken (3) when it has no identity."""
    clock = Clock()
    document = look(layout, clock)
    never = document["state"] == NEVER_RAN
    if not never or layout.settings.exists():
        if as_json:
            print(json.dumps(document, sort_keys=True, indent=1))
        else:
            sys.stdout.write("\n".join(page(document, now=clock.wall())) + "\n")
    if never and layout.settings.exists():
        raise LocalFault("the agent has not run since boot", hint=_start(layout))
    if never:
        raise NoToken("this host is not enrolled", hint="byteor-firstboot status says where it is")
    return 0


def look(layout: Layout, clock: Clock) -> dict[str, Any]:
    """Return the document of ``byteor-agent status --json``; `state` says what the agent does now."""
    stored, fault = _stored(layout)
    now = clock.wall()
    age = _age(stored, now)
    state = _state(stored, age) if fault is None else UNREADABLE
    seen = activation.read(layout)
    document: dict[str, Any] = {
        **stored,
        "v": 1,
        "state": state,
        "running": state == RUNNING,
        "age_s": age,
    }
    for name in MAPPINGS:
        document[name] = stored.get(name) if isinstance(stored.get(name), dict) else None
    # The activator's own files are newer than what an agent wrote that is down.
    document["deployment"], document["signing_keys"] = seen.deployment, seen.signing_keys
    document["last_verdict"] = seen.last_verdict
    loops = stored.get("loops")
    pairs = list(loops.items())[:LIMIT] if isinstance(loops, dict) else []
    document["loops"] = {name: loop for name, loop in pairs if isinstance(loop, dict)}
    skew = stored.get("clock_skew_s")
    is_number = isinstance(skew, (int, float)) and not isinstance(skew, bool) and abs(skew) < FAR_S
    document["clock_skew_s"] = skew if is_number else None
    told = _told(stored)
    codes = {problem.code for problem in told}
    # What the agent says of a thing itself, it says best.
    ours = [problem for problem in _of_the_rest(document, seen, now) if problem.code not in codes]
    problems = unique([*_of_the_agent(layout, state, fault), *told, *ours])
    document["problems"] = [problem.shown() for problem in problems]
    document["status"] = "degraded" if problems else "ok"
    return document


def _stored(layout: Layout) -> tuple[dict[str, Any], str | None]:
    try:
        return files.read_json(layout.agent_status) or {}, None
    except LocalFault as error:
        return {}, str(error)


def _age(stored: Mapping[str, Any], now: float) -> int | None:
    try:
        return max(0, int(now - from_rfc3339(str(stored.get("written_at")))))
    except (ValueError, OverflowError):
        return None


def _state(stored: Mapping[str, Any], age: int | None) -> str:
    if not stored:
        return NEVER_RAN
    if stored.get("running") is not True:
        return STOPPED
    if not _alive(stored.get("pid")):
        return GONE
    return RUNNING if age is not None and age <= SILENT_S else SILENT


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 1 << 31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there, and another user's
    return True


def _start(layout: Layout) -> str:
    if layout.is_host:
        return "systemctl status byteor-agent, or journalctl -u byteor-agent"
    return f"byteor-agent run --root {layout.root}"


def _of_the_agent(layout: Layout, state: str, fault: str | None) -> list[Problem]:
    said = {
        STOPPED: "the agent is stopped",
        GONE: "the agent ended without an orderly stop, and is not running",
        SILENT: "the agent has written nothing for hours",
        UNREADABLE: fault or "",
        NEVER_RAN: "the agent has not run since boot",
    }
    return [Problem(f"agent_{state}", said[state], _start(layout))] if state in said else []


def _told(stored: Mapping[str, Any]) -> list[Problem]:
    """What the agent wrote down itself, as far as it is of its shape."""
    found = []
    rows = stored.get("problems")
    for row in rows[:LIMIT] if isinstance(rows, list) else ():
        if (
            isinstance(row, dict)
            and isinstance(row.get("code"), str)
            and isinstance(row.get("detail"), str)
        ):
            hint = row.get("hint")
            found.append(
                Problem(row["code"], row["detail"], hint if isinstance(hint, str) else None)
            )
    return found


def _of_the_rest(
    document: Mapping[str, Any], seen: activation.Activation, now: float
) -> list[Problem]:
    """What can be told without the agent, which may be down: the key's end, the activator's files."""
    found: list[Problem] = []
    expires = (document["identity"] or {}).get("expires_at")
    found.extend(of_the_expiry(expires if isinstance(expires, str) else None, now))
    found.extend(of_the_activation(seen, now))
    return found
