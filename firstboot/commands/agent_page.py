"""The page of ``byteor-agent status``, and how a terminal shows what others wrote.

It says ages and not dates, since nobody subtracts at night.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from firstboot.agent.artifacts.spool import MOST_BYTES, MOST_ENTRIES
from firstboot.base.clock import instant
from firstboot.base.log import one_line
from firstboot.exchange.handover import ENVIRONMENT

LONGEST_WORD = 300
COLUMNS, NEVER = 100, "never"
RUNNING, STOPPED, GONE = "running", "stopped", "gone"
SILENT, NEVER_RAN, UNREADABLE = "silent", "never_ran", "unreadable"
# State of the agent -> its word, the sentence of its problem
STATES: dict[str, tuple[str, str | None]] = {
    RUNNING: ("running", None),
    STOPPED: ("stopped", "the agent is stopped"),
    GONE: ("NOT RUNNING", "the agent ended without an orderly stop, and is not running"),
    SILENT: ("SILENT", "the agent has written nothing for hours"),
    NEVER_RAN: ("not running: it has not run since boot", "the agent has not run since boot"),
    UNREADABLE: ("unknown: status.json is damaged", "status.json is damaged"),
}


def show(document: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print a document for programs, or its lines for people."""
    for line in [json.dumps(document, indent=1, sort_keys=True)] if as_json else lines:
        print(line)


def page(document: Mapping[str, Any], *, now: float) -> list[str]:
    """Return the whole page: the verdict first, then facts, then what to do."""
    lines = [_headline(document)]
    identity, loops = document["identity"], document["loops"]
    if identity:
        environment = word(identity["environment_id"] or None)
        where = f"{word(identity['api_base_url'])}, environment {environment}"
        lines += [fact("control plane", where), fact("identity", _identity(identity, now))]
    lines += _facts(document, now=now)
    if document["age_s"] is not None:
        lines.append(fact("written", f"{span(document['age_s'])} ago"))
    download, upload = loops.get("deployments", {}).get("download"), document["upload"]
    if download is not None:
        said = _so_far(download["deployment_id"], download["bytes"], download["size"])
        lines.append(fact("downloading", said))
    if upload is not None:
        lines.append(fact("uploading", _so_far(upload["id"], upload["sent"], upload["size"])))
    if loops:
        columns = f"{'last success':<15} {'last attempt':<15} {'next':<12} failures"
        lines += ["", f"{'loop':<14} {columns}"]
        lines += [_loop(name, loop, now) for name, loop in loops.items()]
    return [*lines, "", *_problems(document)]


def _so_far(name: str, here: int, size: int) -> str:
    percent = f" ({100 * here // size} %)" if size > 0 else ""
    return f"{word(name)}, {_size(here)} of {_size(size)}{percent}"


def summary(document: Mapping[str, Any], *, now: float) -> list[str]:
    """Return a few lines of the page, for ``byteor-firstboot status``."""
    lines = [_headline(document)]
    loop = document["loops"].get("heartbeat")
    if loop:
        due = until(loop["next_attempt_at"], now) if document["running"] else None
        coming = f", next {due}" if due is not None else ""
        lines.append(fact("last contact", _ago(loop["last_success_at"], now) + coming))
    return [*lines, *_facts(document, now=now), *_problems(document)]


def _headline(document: Mapping[str, Any]) -> str:
    count, identity, who = len(document["problems"]), document["identity"], "no identity"
    verdict = "ok" if not count else f"DEGRADED, {count} problem{'s' if count > 1 else ''}"
    if identity:
        who = f"{word(identity['agent_id'])} ({word(identity['name'] or 'no name')})"
    return fact("agent", f"{verdict}; {STATES[document['state']][0]}; {who}")


def _facts(document: Mapping[str, Any], *, now: float) -> list[str]:
    """Return deployment, keys, spool and clock; nothing for what there is none of."""
    lines = []
    deployment, verdict = document["deployment"] or {}, document["last_verdict"]
    if deployment:
        lines.append(fact("deployment", f"{named(deployment)}, {word(deployment['state'])}"))
    if verdict and verdict["deployment_id"] != deployment.get("deployment_id", ""):
        of = verdict["deployment_id"] or "an unverified envelope,"
        code = f": {word(verdict['code'])}" if verdict["code"] else ""
        said = f"{of} {word(verdict['verdict'])}{code} ({_ago(verdict['at'], now)})"
        lines.append(fact("last verdict", said))
    keys, spool, skew = (document[name] for name in ("signing_keys", "spool", "clock_skew_s"))
    if keys:
        said = f"version {keys['version']}, from {word(keys['source'])}"
        if keys["source"] == "closed":
            said = "none trusted: the key ring was damaged"
        lines.append(fact("signing keys", said))
    if spool:
        most = f"{_size(MOST_BYTES)} and {MOST_ENTRIES} artifacts"
        kept = f", {_size(spool['bytes'])} of {most}" if spool["bytes"] is not None else ""
        counts = [word(spool[name] or 0) for name in ("pending", "quarantined")]
        lines.append(fact("spool", f"{counts[0]} waiting, {counts[1]} quarantined{kept}"))
        for row in spool["quarantine"]:
            said = f"{word(row['id'])}, {word(row['kind'])}, refused: {reason(row)}"
            lines += [fact("", said), fact("", f"  byteor-agent retry {word(row['id'])}")]
    if skew is not None and abs(skew) >= 1:
        side = "ahead of" if skew > 0 else "behind"
        lines.append(fact("clock", f"{span(abs(skew))} {side} the control plane's"))
    return lines


def named(deployment: Mapping[str, Any]) -> str:
    """Return a deployment's name for people; one that nobody signed has none."""
    if deployment["deployment_id"] is None:
        return "an unverified envelope"
    return f"{deployment['deployment_id']}, sequence {deployment['sequence']}"


def reason(row: Mapping[str, Any]) -> str:
    """Return why an artifact is in quarantine, in one line."""
    said = [str(row[name]) for name in ("status", "detail") if row.get(name) is not None]
    return word(": ".join(said) or "no reason was kept")


def _problems(document: Mapping[str, Any]) -> list[str]:
    lines = [] if document["problems"] else [fact("problems", "none")]
    for problem in document["problems"]:
        lines.append(wrapped(f"! {word(problem['code'])}: {word(problem['detail'])}", 4))
        if problem["hint"]:
            lines.append(wrapped(f"    {word(problem['hint'])}", 4))
    return lines


def _identity(identity: Mapping[str, Any], now: float) -> str:
    if identity["source"] == ENVIRONMENT:
        return "from the environment: nothing is sealed here"
    enrolled, expires = identity["enrolled_at"], identity["expires_at"]
    since = f" ({_ago(enrolled, now)})" if instant(enrolled) is not None else ""
    end, at = instant(expires), ""
    if end is not None:
        at = f" ({until(expires, now) if end > now else _ago(expires, now)})"
    ends = f"ends {word(expires)}{at}" if expires else "has no end"
    return f"enrolled {word(enrolled)}{since}; its key {ends}"


def _loop(name: str, loop: Mapping[str, Any], now: float) -> str:
    last, tried = (_ago(loop[key], now) for key in ("last_success_at", "last_attempt_at"))
    if last == NEVER:  # of this run of the agent; what has nothing to send asks nobody
        last = "nothing to send" if loop["outcome"] == "done" else "not since start"
    coming = until(loop["next_attempt_at"], now) or "-"
    return f"{word(name):<14} {last:<15} {tried:<15} {coming:<12} {word(loop['failures'] or 0)}"


def fact(name: str, said: str) -> str:
    """Return one fact of a page, in as many lines of 100 columns as it takes."""
    return wrapped(f"{name:<14} {said}", 15)


def wrapped(text: str, indent: int) -> str:
    """Break a line at 100 columns; what cannot be broken, as a path, stays whole."""
    more = " " * indent
    return textwrap.fill(
        text, COLUMNS, subsequent_indent=more, break_long_words=False, break_on_hyphens=False
    )


def word(value: object, limit: int = LONGEST_WORD) -> str:
    """Return a value for a terminal: one line without control characters, of bounded length."""
    return one_line("unknown" if value is None else str(value))[:limit]


def _ago(value: object, now: float) -> str:
    at = instant(value)
    return f"{span(now - at)} ago" if at is not None else NEVER


def until(value: object, now: float) -> str | None:
    """Return when a date is due, in words; None for what is no date."""
    at = instant(value)
    if at is None:
        return None
    return "now" if at - now < 1 else f"in {span(at - now)}"


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
