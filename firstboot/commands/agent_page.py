"""The page of ``byteor-agent status``, and how a terminal shows what others wrote.

It says ages and not dates, since nobody subtracts at night.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from firstboot.agent.artifacts.spool import MOST_BYTES, MOST_ENTRIES
from firstboot.base.clock import instant

LONGEST_WORD = 300
COLUMNS, NEVER = 100, "never"
# State of the agent -> its word
STATES = {
    "running": "running",
    "stopped": "stopped",
    "gone": "NOT RUNNING",
    "silent": "SILENT",
    "never_ran": "not running: it has not run since boot",
    "unreadable": "unknown: status.json is damaged",
}


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
    if download is not None:
        said = _so_far(download["deployment_id"], download["bytes"], download["size"])
        lines.append(fact("downloading", said))
    upload = document.get("upload")
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
    loop = (document.get("loops") or {}).get("heartbeat")
    if loop:
        due = instant(loop.get("next_attempt_at"))
        coming = f", next {until(due - now)}" if document.get("running") and due is not None else ""
        lines.append(fact("last contact", _ago(loop.get("last_success_at"), now) + coming))
    return [*lines, *_facts(document, now=now), *_problems(document)]


def _headline(document: Mapping[str, Any]) -> str:
    count = len(document.get("problems") or [])
    verdict = "ok" if not count else f"DEGRADED, {count} problem{'s' if count > 1 else ''}"
    identity = document.get("identity") or {}
    name = word(identity.get("name") or "no name")
    named = f"{word(identity.get('agent_id'))} ({name})" if identity else "no identity"
    return fact("agent", f"{verdict}; {STATES[document['state']]}; {named}")


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
        code = f": {word(verdict['code'])}" if verdict.get("code") else ""
        lines.append(fact("last verdict", f"{of} {word(verdict.get('verdict'))}{code}{at}"))
    keys = document.get("signing_keys")
    if keys:
        said = f"version {word(keys.get('version'))}, from {word(keys.get('source'))}"
        if keys.get("source") == "closed":
            said = "none trusted: the key ring was damaged"
        lines.append(fact("signing keys", said))
    spool = document.get("spool")
    if spool:
        most = f"{_size(MOST_BYTES)} and {MOST_ENTRIES} artifacts"
        kept = f", {_size(spool['bytes'])} of {most}" if spool["bytes"] is not None else ""
        counts = [word(spool[name] or 0) for name in ("pending", "quarantined")]
        lines.append(fact("spool", f"{counts[0]} waiting, {counts[1]} quarantined{kept}"))
        for row in spool["quarantine"]:
            said = f"{word(row['id'])}, {word(row['kind'])}, refused: {reason(row)}"
            lines.append(fact("", said))
            lines.append(fact("", f"  byteor-agent retry {word(row['id'])}"))
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
    since = f" ({_ago(enrolled, now)})" if instant(enrolled) is not None else ""
    said = f"enrolled {word(enrolled)}{since}; its key "
    end = instant(expires)
    if not expires:
        return f"{said}has no end"
    if end is None:
        return f"{said}ends {word(expires)}"
    return f"{said}ends {word(expires)} ({until(end - now) if end > now else _ago(expires, now)})"


def _loop(name: str, loop: Mapping[str, Any], now: float) -> str:
    last, tried = (_ago(loop.get(key), now) for key in ("last_success_at", "last_attempt_at"))
    if last == NEVER:  # of this run of the agent; what has nothing to send asks nobody
        last = "nothing to send" if loop.get("outcome") == "done" else "not since start"
    due = instant(loop.get("next_attempt_at"))
    coming = until(due - now) if due is not None else "-"
    return f"{word(name):<14} {last:<15} {tried:<15} {coming:<12} {word(loop['failures'] or 0)}"


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


def _ago(value: object, now: float) -> str:
    at = instant(value)
    return f"{span(now - at)} ago" if at is not None else NEVER


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
