"""The agent's condition as a page that a tired operator understands at once: the verdict first, then facts, then what to do.

Pure: a document of `status.look` and the time, in; lines, out. Ages and not dates, since nobody subtracts at night.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firstboot.base.clock import from_rfc3339

LONGEST_WORD = 300
WORDS = {
    "running": "running", "stopped": "stopped", "gone": "NOT RUNNING", "silent": "SILENT",
    "never_ran": "not running: it has not run since boot", "unreadable": "unknown: status.json is damaged",
}  # fmt: skip


def page(document: Mapping[str, Any], *, now: float) -> list[str]:
    """The whole of it, for ``byteor-agent status``."""
    identity = document.get("identity") or {}
    lines = [*headline(document)]
    if identity:
        environment = word(identity.get("environment_id") or "unknown")
        lines += [
            _row("plane", f"{word(identity.get('api_base_url'))}, environment {environment}"),
            _row("identity", _identity(identity, now)),
        ]
    lines += facts(document, now=now)
    if document.get("age_s") is not None:
        lines.append(_row("written", f"{span(document['age_s'])} ago"))
    loops = document.get("loops") or {}
    download = (loops.get("deployments") or {}).get("download")
    if isinstance(download, dict):
        lines.append(_row("fetching", _fetching(download)))
    if loops:
        lines += [
            "",
            f"{'loop':<14} {'last success':<14} {'last attempt':<14} {'next':<12} failures",
        ]
        lines += [_loop(name, loop, now) for name, loop in loops.items()]
    return [*lines, "", *problems(document)]


def summary(document: Mapping[str, Any], *, now: float) -> list[str]:
    """A few lines of it, for ``byteor-firstboot status``."""
    contact = _contact(document, now)
    return [*headline(document), *([_row("last contact", contact)] if contact else []), *facts(document, now=now),
            *problems(document)]  # fmt: skip


def headline(document: Mapping[str, Any]) -> list[str]:
    """One line: is anything to be done?"""
    count = len(document.get("problems") or [])
    verdict = "ok" if not count else f"DEGRADED, {count} problem{'s' if count > 1 else ''}"
    identity = document.get("identity") or {}
    who = (
        f"{word(identity.get('agent_id'))} ({word(identity.get('name') or 'no name')})"
        if identity
        else "no identity"
    )
    return [_row("agent", f"{verdict}; {WORDS.get(str(document.get('state')), 'unknown')}; {who}")]


def facts(document: Mapping[str, Any], *, now: float) -> list[str]:
    """Deployment, keys, spool and clock; nothing for what there is none of."""
    lines = []
    deployment, verdict = document.get("deployment"), document.get("last_verdict") or {}
    if deployment:
        said = (
            f"{word(deployment.get('deployment_id'))}, sequence {word(deployment.get('sequence'))}"
        )
        lines.append(_row("deployment", f"{said}, {word(deployment.get('state'))}"))
    if verdict and (
        not deployment or verdict.get("deployment_id") != deployment.get("deployment_id")
    ):
        at = since(verdict.get("at"), now)
        lines.append(
            _row(
                "last verdict",
                f"{word(verdict.get('deployment_id'))} {word(verdict.get('verdict'))}{at}",
            )
        )
    keys = document.get("signing_keys")
    if keys:
        said = f"version {word(keys.get('version'))}, from {word(keys.get('source'))}"
        lines.append(
            _row(
                "signing keys",
                "none count: the key ring was damaged" if keys.get("source") == "closed" else said,
            )
        )
    spool = document.get("spool")
    if spool:
        kept = f", {_size(spool['bytes'])}" if isinstance(spool.get("bytes"), int) else ""
        waiting = f"{word(spool.get('pending', 0))} waiting, {word(spool.get('quarantined', 0))} quarantined"
        lines.append(_row("spool", waiting + kept))
        rows = spool.get("quarantine")
        for row in rows if isinstance(rows, list) else ():
            lines += _quarantined(row) if isinstance(row, dict) else []
    skew = document.get("clock_skew_s")
    if skew is not None and abs(skew) >= 1:
        lines.append(
            _row("clock", f"{span(abs(skew))} {'ahead of' if skew > 0 else 'behind'} the plane's")
        )
    return lines


def _quarantined(row: Mapping[str, Any]) -> list[str]:
    """One artifact that the plane refused, why, and how to send it again."""
    why = ": ".join(word(row[name]) for name in ("status", "detail") if row.get(name) is not None)
    named = word(row.get("id"))
    return [
        _row("", f"{named}, {word(row.get('kind'))}, refused: {why}"),
        _row("", f"  byteor-agent retry {named}"),
    ]


def problems(document: Mapping[str, Any]) -> list[str]:
    """Each with its code, its sentence and what to do."""
    found = document.get("problems") or []
    lines = [] if found else [_row("problems", "none")]
    for problem in found:
        lines.append(f"! {word(problem['code'])}: {word(problem['detail'])}")
        if problem.get("hint"):
            lines.append(f"    {word(problem['hint'])}")
    return lines


def _row(name: str, said: str) -> str:
    return f"{name:<14} {said}"


def _identity(identity: Mapping[str, Any], now: float) -> str:
    if identity.get("source") == "environment":
        return "from the environment: nothing is sealed here"
    expires = identity.get("expires_at")
    until = (
        f"its key ends {word(expires)}{_until(expires, now)}" if expires else "its key has no end"
    )
    return f"enrolled {word(identity.get('enrolled_at'))}{since(identity.get('enrolled_at'), now)}; {until}"


def _contact(document: Mapping[str, Any], now: float) -> str | None:
    loop = (document.get("loops") or {}).get("heartbeat")
    if not loop:
        return None
    last = _seconds(loop.get("last_success_at"))
    due = _seconds(loop.get("next_attempt_at"))
    said = f"{span(now - last)} ago" if last is not None else "never"
    coming = document.get("running") and due is not None
    return said + (f", next {_in(due - now)}" if coming and due is not None else "")


def _fetching(download: Mapping[str, Any]) -> str:
    here, size = (
        value if isinstance(value := download.get(key), int) else 0 for key in ("bytes", "size")
    )
    percent = f" ({100 * here // size} %)" if size > 0 else ""
    return f"{word(download.get('deployment_id'))}, {_size(here)} of {_size(size)}{percent}"


def _loop(name: str, loop: Mapping[str, Any], now: float) -> str:
    last, tried, due = (
        _seconds(loop.get(key)) for key in ("last_success_at", "last_attempt_at", "next_attempt_at")
    )
    columns: dict[str, str] = {
        "success": f"{span(now - last)} ago" if last is not None else "never",
        "attempt": f"{span(now - tried)} ago" if tried is not None else "never",
        "next": _in(due - now) if due is not None else "-",
    }
    failures = word(loop.get("failures", 0))
    return f"{word(name):<14} {columns['success']:<14} {columns['attempt']:<14} {columns['next']:<12} {failures}"


def word(value: object) -> str:
    """A value for a terminal: one line without control characters, and not without end."""
    return "".join(c if c.isprintable() else " " for c in str(value))[:LONGEST_WORD]


def _seconds(value: object) -> float | None:
    try:
        return from_rfc3339(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def since(value: object, now: float) -> str:
    """`` (3 days ago)`` for a date, nothing for anything else."""
    at = _seconds(value)
    return f" ({span(now - at)} ago)" if at is not None else ""


def _until(value: object, now: float) -> str:
    """`` (in 3 days)`` for a date to come, `` (3 days ago)`` for one that is over."""
    at = _seconds(value)
    if at is None:
        return ""
    return f" (in {span(at - now)})" if at > now else since(value, now)


def _in(seconds: float) -> str:
    return "now" if seconds < 1 else f"in {span(seconds)}"


def span(seconds: float) -> str:
    """A length of time in its one or two largest units."""
    whole = max(0, int(seconds))
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {name}"
    return f"{whole} s"


def _size(count: int) -> str:
    for size, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count} bytes"
