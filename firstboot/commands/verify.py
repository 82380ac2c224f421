"""``byteor-firstboot verify``: the install guide's four validation checks, each with what was seen and what to do.

A check that was not made says "not checked" and why, and costs no exit code. Reads what the agent and the activator left
on disk, so it needs no root; the agent-list check takes an operator token, since the runtime key must not list agents.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable

from firstboot.api.client import PlaneApi
from firstboot.api.transport import Transport
from firstboot.base import files
from firstboot.base.clock import Clock, from_rfc3339
from firstboot.base.errors import ByteorError, CheckFailed, Foreign, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.commands import agent_status as agent
from firstboot.commands.agent_status import span, word
from firstboot.exchange import settings as frozen
from firstboot.exchange.settings import Settings
from firstboot.identity import store

OK, FAILED, NOT_CHECKED = "ok", "failed", "not checked"
MARKS = {OK: "+", FAILED: "!", NOT_CHECKED: "-"}
LISTED, BEATING, DEPLOYED, UPLOADED = (
    "agent in the environment's list", "heartbeats arriving", "deployment visible", "artifact upload",
)  # fmt: skip
DEFAULT_PERIOD_S = 30.0
LONGEST_TOKEN = 8192  # characters


@dataclass(frozen=True)
class Check:
    """One of the guide's checks: `result` is ok, failed or not checked; `seen` and `advice` are sentences."""

    check: str
    result: str
    seen: str
    advice: str | None = None


@dataclass(frozen=True)
class Asked:
    """What the caller wants beyond what the disk tells; `operator_token` is empty when stdin held none.

    `upload` sends a test artifact, waits, and returns its id, or raises why the plane has not stored it.
    """

    operator_token: Secret | None = None
    upload_test: bool = False
    upload: Callable[[], str] | None = None


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``verify``."""
    parser.add_argument(
        "--operator-token",
        type="stdin",
        metavar="-",
        help="read an operator token from stdin for the agent-list check",
    )
    parser.add_argument(
        "--upload-test",
        action="store_true",
        help="upload a small diagnostic artifact, for the fourth check",
    )


def verify_command(arguments: argparse.Namespace) -> int:
    """Make the checks, with an operator token from stdin if that was asked for."""

    def upload() -> str:
        from firstboot.commands.upload import upload_test

        return upload_test(arguments.layout)

    token = Secret(sys.stdin.read(LONGEST_TOKEN).strip()) if arguments.operator_token else None
    asked = Asked(token, arguments.upload_test, upload)
    return verify(arguments.layout, asked, as_json=arguments.json)


def verify(layout: Layout, asked: Asked, *, as_json: bool) -> int:
    """Make the checks and print them, one line each; CheckFailed (exit 10) when one failed."""
    clock = Clock()
    document = agent.look(layout, clock)
    checks = [
        _listed(layout, asked.operator_token, document),
        beating(document, now=clock.wall()),
        deployed(document, now=clock.wall()),
        uploaded(asked),
    ]
    if as_json:
        print(json.dumps({"v": 1, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        for check in checks:
            print(f"{MARKS[check.result]} {check.check}: {check.result}: {word(check.seen)}")
            if check.advice:
                print(f"    {word(check.advice)}")
    failed = [check.check for check in checks if check.result == FAILED]
    if failed:
        raise CheckFailed(f"validation failed: {', '.join(failed)}")
    return 0


def _listed(layout: Layout, token: Secret | None, document: Mapping[str, Any]) -> Check:
    if token is None:
        return Check(
            LISTED,
            NOT_CHECKED,
            "needs an operator token",
            "give one on stdin: verify --operator-token -",
        )
    if not token:
        return Check(
            LISTED, NOT_CHECKED, "there is no token on stdin", "verify --operator-token - < FILE"
        )
    try:
        place, agent_id = _place(layout, document)
    except ByteorError as error:
        return Check(LISTED, FAILED, str(error), error.hint)
    transport = Transport(
        ca_certificates=place.ca_certificates, proxy=place.proxy, no_proxy=place.no_proxy
    )
    try:
        with PlaneApi(place.api_base_url or "", transport) as api:
            listing = api.list_agents(
                token,
                org_id=place.org_id or "",
                project_id=place.project_id or "",
                environment_id=place.environment_id or "",
            )
    except ByteorError as error:
        return Check(LISTED, FAILED, str(error), error.hint)
    for row in listing:
        if row.agent_id == agent_id:
            return Check(
                LISTED,
                OK,
                f"{row.name or agent_id}, last heartbeat {row.last_heartbeat_at or 'never'}",
            )
    return Check(
        LISTED,
        FAILED,
        f"{agent_id} is not among {len(listing)} agents",
        "was the agent deleted at the plane?",
    )


def _place(layout: Layout, document: Mapping[str, Any]) -> tuple[Settings, str]:
    """Where to ask and for whom: from the sealed identity where we may read it, else from what the agent wrote."""
    stored = files.read_json(layout.settings)
    settings = frozen.thaw(stored) if stored is not None else Settings()
    shown: Mapping[str, Any] = document["identity"] or {}
    try:
        here = store.required(layout)
    except Foreign:
        raise
    except ByteorError:
        if shown.get("agent_id") is None:
            raise
    else:
        shown = vars(here)
        settings = replace(settings, proxy=settings.proxy or here.proxy)
    found = {name: shown.get(name) or getattr(settings, name) for name in PLACE}
    wanted = {**found, "agent_id": shown.get("agent_id")}
    missing = [name for name, value in wanted.items() if not isinstance(value, str)]
    if missing:
        raise LocalFault(
            f"this host does not know {', '.join(missing)}", hint="byteor-firstboot status"
        )
    return replace(settings, **found), str(wanted["agent_id"])


PLACE = ("api_base_url", "org_id", "project_id", "environment_id")


def beating(document: Mapping[str, Any], *, now: float) -> Check:
    """The last accepted heartbeat is younger than two periods."""
    broken: list[Mapping[str, Any]] = [
        p for p in document["problems"] if p["code"].startswith("agent_")
    ]
    loop = document["loops"].get("heartbeat") or {}
    period = loop.get("period_s")
    period = float(period) if isinstance(period, (int, float)) and period > 0 else DEFAULT_PERIOD_S
    try:
        age = now - from_rfc3339(str(loop.get("last_success_at")))
    except (ValueError, OverflowError):
        age = None
    if age is not None and age <= 2 * period:
        return Check(
            BEATING, OK, f"the last one was accepted {span(age)} ago, one every {period:g} s"
        )
    cause = broken[0] if broken else {"detail": loop.get("problem"), "hint": loop.get("hint")}
    seen = (
        f"the last one was accepted {span(age)} ago"
        if age is not None
        else "no heartbeat was accepted yet"
    )
    return Check(
        BEATING, FAILED, f"{seen}: {cause['detail']}" if cause["detail"] else seen, cause["hint"]
    )


def deployed(document: Mapping[str, Any], *, now: float) -> Check:
    """A deployment is in force, or the plane said that none is assigned."""
    current, verdict = document["deployment"], document["last_verdict"] or {}
    loop = document["loops"].get("deployments")
    if verdict.get("verdict") in ("failed", "refused", "rolled_back"):
        seen = f"{verdict['deployment_id']}, sequence {verdict['sequence']}, {verdict['verdict']}"
        return Check(
            DEPLOYED,
            FAILED,
            f"{seen}: {verdict['reason'] or verdict['code']}",
            "byteor-agent deployments",
        )
    if current is not None:
        seen = f"{current['deployment_id']}, sequence {current['sequence']}, {current['state']}"
        return Check(DEPLOYED, OK if current["state"] == "active" else FAILED, seen)
    if loop is None:
        return Check(
            DEPLOYED, NOT_CHECKED, "the agent has not looked for deployments", "byteor-agent status"
        )
    if loop.get("problem"):
        return Check(DEPLOYED, FAILED, str(loop["problem"]), loop.get("hint"))
    if loop.get("last_success_at"):
        if verdict.get("verdict") == "waiting":
            return Check(
                DEPLOYED,
                NOT_CHECKED,
                f"{verdict['deployment_id']} waits: {verdict['reason'] or verdict['code']}",
            )
        return Check(
            DEPLOYED,
            NOT_CHECKED,
            "the plane was asked and has assigned none",
            "assign one to this environment",
        )
    return Check(
        DEPLOYED, NOT_CHECKED, "the plane was not asked yet", "wait a minute, and verify again"
    )


def uploaded(asked: Asked) -> Check:
    """A small diagnostic went through the spool and the plane has it."""
    if not asked.upload_test:
        return Check(
            UPLOADED,
            NOT_CHECKED,
            "it would leave an artifact at the plane",
            "verify --upload-test makes it",
        )
    if asked.upload is None:
        return Check(UPLOADED, NOT_CHECKED, "this version of the agent does not upload artifacts")
    try:
        return Check(UPLOADED, OK, f"{asked.upload()} is stored by the plane")
    except ByteorError as error:
        return Check(UPLOADED, FAILED, str(error), error.hint or "byteor-agent status")
