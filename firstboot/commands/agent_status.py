"""``byteor-agent status``: show the agent's health, from what it and the activator left on disk.

Needs no root, and works while the agent is down, was killed, or has not run since boot. What is
read here was written by others: a damaged file is a problem in the document, never an error, and a
member of a wrong type is as if it were absent. The JSON is `status.json` with ``state``, ``age_s``,
``last_verdict`` and the problems of now. The page says ages and not dates, since nobody subtracts
at night. ``byteor-firstboot status``, ``verify`` and ``upload --wait`` look through this module.
"""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from firstboot.agent.artifacts import memory
from firstboot.agent.problems import Problem, of_the_activation, of_the_expiry, unique
from firstboot.base import files
from firstboot.base.clock import Clock, from_rfc3339
from firstboot.base.errors import ByteorError, LocalFault, NoToken, Refused
from firstboot.base.layout import Layout
from firstboot.commands.watching import Seen, watch, watch_arguments
from firstboot.exchange import verdicts
from firstboot.exchange.wake import is_running

RUNNING, STOPPED, GONE = "running", "stopped", "gone"
SILENT, NEVER_RAN, UNREADABLE = "silent", "never_ran", "unreadable"
# The loops write at every attempt, and no healthy period or pause is longer than this.
SILENT_S = 2 * 3600.0 + 300.0
FAR_S = 1e12  # no clock is further off; infinity is, which JSON from elsewhere may hold
LIMIT = 100  # problems, loops: more were never ours
LONGEST_WORD = 300
COLUMNS = 100
DEFAULT_PERIOD_S = 30.0
FIRST, NO_BEAT = "heartbeat", "no heartbeat was accepted yet"
# State -> (the word of the page, the sentence of its problem)
STATES = {
    RUNNING: ("running", None),
    STOPPED: ("stopped", "the agent is stopped"),
    GONE: ("NOT RUNNING", "the agent ended without an orderly stop, and is not running"),
    SILENT: ("SILENT", "the agent has written nothing for hours"),
    NEVER_RAN: ("not running: it has not run since boot", "the agent has not run since boot"),
    UNREADABLE: ("unknown: status.json is damaged", "status.json is damaged"),
}


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``status``."""
    watch_arguments(parser)


def status_command(arguments: argparse.Namespace) -> int:
    """Print what is known; the JSON in every state.

    LocalFault (7) when the agent has not run since boot, NoToken (3) when it has no identity.
    """
    clock, layout = Clock(), arguments.layout

    def show(seen: Seen) -> None:
        if arguments.json:
            print(json.dumps(seen.document, sort_keys=True, indent=1))
        elif not isinstance(seen.stop, NoToken):
            print("\n".join(page(seen.document, now=clock.wall())))

    seen = watch(arguments, lambda: _seen(layout, clock), show)
    if isinstance(seen.stop, NoToken):
        raise seen.stop
    if seen.document["state"] == NEVER_RAN:
        raise LocalFault(seen.problem, hint=seen.hint)
    return 0


def _seen(layout: Layout, clock: Clock) -> Seen:
    document = look(layout, clock)
    stop: ByteorError | None = key_refused(document)
    if document["state"] == NEVER_RAN and not layout.settings.exists():
        stop = NoToken("this host is not enrolled", hint="byteor-firstboot status")
    online = is_online(layout, document, clock)
    first: dict[str, Any] = next(iter(document["problems"]), {})
    return Seen(
        document=document,
        online=online,
        well=online and not first,
        stop=stop,
        final=isinstance(stop, Refused),
        problem=str(stop or first.get("detail", NO_BEAT)),
        hint=stop.hint if stop is not None else first.get("hint"),
    )


def is_online(layout: Layout, document: Mapping[str, Any], clock: Clock) -> bool:
    """Return True while the control plane accepts the heartbeats of an agent that runs."""
    age, period = last_beat(document, clock.wall())
    beats = bool(document["running"]) and age is not None and age <= 2 * period
    return beats and is_running(layout) is not False


def last_beat(document: Mapping[str, Any], now: float) -> tuple[float | None, float]:
    """Return the age of the last accepted heartbeat, and their period, in seconds."""
    loop = document["loops"].get(FIRST) or {}
    period, last = number(loop.get("period_s")) or 0.0, seconds(loop.get("last_success_at"))
    return now - last if last is not None else None, period if period > 0 else DEFAULT_PERIOD_S


def key_refused(document: Mapping[str, Any]) -> Refused | None:
    """Return the refusal of the heartbeats of an agent that runs, as the error that it is.

    What a stopped agent wrote does not count: its key may have been replaced since.
    """
    loop = document["loops"].get(FIRST) or {}
    if not document["running"] or loop.get("outcome") != "refused":
        return None
    hint = loop.get("hint")
    return Refused(word(loop.get("problem")), hint=word(hint) if hint else None)


# -- the document


def look(layout: Layout, clock: Clock) -> dict[str, Any]:
    """Return the document of ``--json``; `state` says what the agent does now."""
    fault, now = None, clock.wall()
    try:
        stored = files.read_json(layout.agent_status) or {}
    except LocalFault as error:
        stored, fault = {}, str(error)
    written = seconds(stored.get("written_at"))
    age = max(0, int(now - written)) if written is not None else None
    state = _state(stored, age) if fault is None else UNREADABLE
    seen = verdicts.seen(layout)
    skew, loops = stored.get("clock_skew_s"), _mapping(stored.get("loops")) or {}
    document: dict[str, Any] = {
        **stored,
        "v": 1,
        "state": state,
        "running": state == RUNNING,
        "age_s": age,
        "identity": _mapping(stored.get("identity")),
        # The activator's own files are newer than what an agent wrote that is down.
        "deployment": seen.deployment,
        "signing_keys": seen.signing_keys,
        "last_verdict": seen.last_verdict,
        "spool": _mapping(stored.get("spool")),
        "loops": {name: loop for name, loop in list(loops.items())[:LIMIT] if _mapping(loop)},
        "clock_skew_s": skew if number(skew) is not None else None,
    }
    told = _told(stored)
    codes = {problem.code for problem in told}
    expires = (document["identity"] or {}).get("expires_at")
    # What can be told without the agent, which may be down; it knows best what it says itself.
    ours = [
        *of_the_expiry(expires if isinstance(expires, str) else None, now),
        *of_the_activation(seen, now),
    ]
    ours = [problem for problem in ours if problem.code not in codes]
    said = fault or STATES[state][1]
    down = [Problem(f"agent_{state}", said, start_hint(layout))] if said is not None else []
    problems = unique([*down, *told, *ours])
    sending = memory.progress(layout) if state == RUNNING else None
    document["upload"] = asdict(sending) if sending is not None else None
    document["problems"] = [problem.shown() for problem in problems]
    document["status"] = "degraded" if problems else "ok"
    return document


def _mapping(value: object) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


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


def start_hint(layout: Layout) -> str:
    """Return what to do about an agent that does not run."""
    if layout.is_host:
        return "systemctl status byteor-agent, or journalctl -u byteor-agent"
    return f"byteor-agent run --root {layout.root}"


def _told(stored: Mapping[str, Any]) -> list[Problem]:
    """Return the agent's own problems, as far as they are of their shape."""
    found, rows = [], stored.get("problems")
    for row in rows[:LIMIT] if isinstance(rows, list) else ():
        code, detail, hint = (
            value if isinstance(value := (_mapping(row) or {}).get(name), str) else None
            for name in ("code", "detail", "hint")
        )
        if code is not None and detail is not None:
            found.append(Problem(code, detail, hint))
    return found


# -- the page


def page(document: Mapping[str, Any], *, now: float) -> list[str]:
    """Return the whole page: the verdict first, then facts, then what to do."""
    lines = [_headline(document)]
    identity = document.get("identity")
    if identity:
        environment = word(identity.get("environment_id") or "unknown")
        where = f"{word(identity.get('api_base_url'))}, environment {environment}"
        lines += [fact("control plane", where), fact("identity", _identity(identity, now))]
    lines += _facts(document, now=now)
    if document.get("age_s") is not None:
        lines.append(fact("written", f"{span(document['age_s'])} ago"))
    loops = document.get("loops") or {}
    download = (loops.get("deployments") or {}).get("download")
    if isinstance(download, dict):
        said = _so_far(download.get("deployment_id"), download.get("bytes"), download.get("size"))
        lines.append(fact("downloading", said))
    upload = document.get("upload")
    if upload is not None:
        lines.append(fact("uploading", _so_far(upload["id"], upload["sent"], upload["size"])))
    if loops:
        columns = f"{'last success':<14} {'last attempt':<14} {'next':<12} failures"
        lines += ["", f"{'loop':<14} {columns}"]
        lines += [_loop(name, loop, now) for name, loop in loops.items()]
    return [*lines, "", *_problems(document)]


def _so_far(name: object, here: object, size: object) -> str:
    count, whole = (int(number(value) or 0) for value in (here, size))
    percent = f" ({100 * count // whole} %)" if whole > 0 else ""
    return f"{word(name)}, {_size(count)} of {_size(whole)}{percent}"


def summary(document: Mapping[str, Any], *, now: float) -> list[str]:
    """Return a few lines of the page, for ``byteor-firstboot status``."""
    lines = [_headline(document)]
    loop = (document.get("loops") or {}).get("heartbeat")
    if loop:
        due = seconds(loop.get("next_attempt_at"))
        coming = f", next {until(due - now)}" if document.get("running") and due is not None else ""
        lines.append(fact("last contact", _ago(loop.get("last_success_at"), now) + coming))
    return [*lines, *_facts(document, now=now), *_problems(document)]


def _headline(document: Mapping[str, Any]) -> str:
    count = len(document.get("problems") or [])
    verdict = "ok" if not count else f"DEGRADED, {count} problem{'s' if count > 1 else ''}"
    identity = document.get("identity") or {}
    name = word(identity.get("name") or "no name")
    named = f"{word(identity.get('agent_id'))} ({name})" if identity else "no identity"
    return fact("agent", f"{verdict}; {STATES[document['state']][0]}; {named}")


def _facts(document: Mapping[str, Any], *, now: float) -> list[str]:
    """Return deployment, keys, spool and clock; nothing for what there is none of."""
    lines = []
    deployment, verdict = document.get("deployment") or {}, document.get("last_verdict") or {}
    named = word(deployment.get("deployment_id"))
    if deployment:
        said = f"{named}, sequence {word(deployment.get('sequence'))}"
        lines.append(fact("deployment", f"{said}, {word(deployment.get('state'))}"))
    if verdict and verdict.get("deployment_id") != deployment.get("deployment_id", ""):
        of = word(verdict.get("deployment_id") or "an unverified envelope,")
        at = f" ({_ago(verdict.get('at'), now)})" if verdict.get("at") else ""
        lines.append(fact("last verdict", f"{of} {word(verdict.get('verdict'))}{at}"))
    keys = document.get("signing_keys")
    if keys:
        said = f"version {word(keys.get('version'))}, from {word(keys.get('source'))}"
        if keys.get("source") == "closed":
            said = "none trusted: the key ring was damaged"
        lines.append(fact("signing keys", said))
    spool = document.get("spool")
    if spool:
        held = number(spool.get("bytes"))
        kept = f", {_size(int(held))}" if held is not None else ""
        counts = [word(spool.get(name, 0)) for name in ("pending", "quarantined")]
        lines.append(fact("spool", f"{counts[0]} waiting, {counts[1]} quarantined{kept}"))
        rows = spool.get("quarantine")
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict):
                said = f"{word(row.get('id'))}, {word(row.get('kind'))}, refused: {reason(row)}"
                lines.append(fact("", said))
                lines.append(fact("", f"  byteor-agent retry {word(row.get('id'))}"))
    skew = document.get("clock_skew_s")
    if skew is not None and abs(skew) >= 1:
        side = "ahead of" if skew > 0 else "behind"
        lines.append(fact("clock", f"{span(abs(skew))} {side} the control plane's"))
    return lines


def reason(row: Mapping[str, Any]) -> str:
    """Return why an artifact is in quarantine, in one line."""
    said = [str(row[name]) for name in ("status", "detail") if row.get(name) is not None]
    return word(": ".join(said) or "no reason was kept")


def _problems(document: Mapping[str, Any]) -> list[str]:
    lines = [] if document.get("problems") else [fact("problems", "none")]
    for problem in document.get("problems") or ():
        lines.append(wrapped(f"! {word(problem['code'])}: {word(problem['detail'])}", 4))
        if problem.get("hint"):
            lines.append(wrapped(f"    {word(problem['hint'])}", 4))
    return lines


def _identity(identity: Mapping[str, Any], now: float) -> str:
    if identity.get("source") == "environment":
        return "from the environment: nothing is sealed here"
    enrolled, expires = identity.get("enrolled_at"), identity.get("expires_at")
    since = f" ({_ago(enrolled, now)})" if seconds(enrolled) is not None else ""
    said = f"enrolled {word(enrolled)}{since}; its key "
    end = seconds(expires)
    if not expires:
        return f"{said}has no end"
    if end is None:
        return f"{said}ends {word(expires)}"
    return f"{said}ends {word(expires)} ({until(end - now) if end > now else _ago(expires, now)})"


def _loop(name: str, loop: Mapping[str, Any], now: float) -> str:
    last, tried = (_ago(loop.get(key), now) for key in ("last_success_at", "last_attempt_at"))
    due = seconds(loop.get("next_attempt_at"))
    coming = until(due - now) if due is not None else "-"
    return f"{word(name):<14} {last:<14} {tried:<14} {coming:<12} {word(loop.get('failures', 0))}"


def fact(name: str, said: str) -> str:
    """Return one fact of a page, in as many lines of 100 columns as it takes."""
    return wrapped(f"{name:<14} {said}", 15)


def wrapped(text: str, indent: int) -> str:
    """Break a line at 100 columns; what cannot be broken, as a path, stays whole."""
    width, more = COLUMNS, " " * indent
    return textwrap.fill(
        text, width, subsequent_indent=more, break_long_words=False, break_on_hyphens=False
    )


def word(value: object, limit: int = LONGEST_WORD) -> str:
    """Return a value for a terminal: one line without control characters, of bounded length."""
    text = "unknown" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text)[:limit]


def number(value: object) -> float | None:
    """Return a number that others wrote, None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < FAR_S else None  # type: ignore[arg-type]


def seconds(value: object) -> float | None:
    """Return the seconds since the epoch of a date, None for anything else."""
    try:
        return from_rfc3339(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def _ago(value: object, now: float) -> str:
    at = seconds(value)
    return f"{span(now - at)} ago" if at is not None else "never"


def until(left: float) -> str:
    """Return when something is due, in words."""
    return "now" if left < 1 else f"in {span(left)}"


def span(length: float) -> str:
    """Return a length of time, in seconds, in its largest unit."""
    whole = max(0, int(length))
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {name}"
    return f"{whole} s"


def _size(count: int) -> str:
    for size, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count} bytes"
