"""``byteor-firstboot verify``: run the install guide's four validation checks.

Each says what was seen and what to do. A check that was not made says "not checked" and why, and
costs no exit code. Reads what the agent and the activator left on disk, so it needs no root; the
agent-list check takes an operator token, since the runtime key must not list agents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

from firstboot.base import systemd
from firstboot.base.clock import Clock
from firstboot.base.documents import base_url
from firstboot.base.errors import ByteorError, CheckFailed, Foreign, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.commands import agent_status as agent
from firstboot.commands.agent_page import NEVER_RAN, named, show, span, word
from firstboot.commands.flags import flag
from firstboot.commands.upload import upload_test
from firstboot.commands.watching import NO_BEAT
from firstboot.exchange import settings as frozen
from firstboot.exchange.settings import Settings
from firstboot.identity import store
from firstboot.provision import preflight
from firstboot.provision.schema import PLACE, ROUTING
from firstboot.provision.sources import in_force

OK, FAILED, NOT_CHECKED = "ok", "failed", "not checked"
MARKS = {OK: "+", FAILED: "!", NOT_CHECKED: "-"}
CHECKS = (
    "agent in the environment's list",
    "heartbeats arriving",
    "deployment visible",
    "artifact upload",
)
LONGEST_TOKEN = 8192  # characters


@dataclass(frozen=True)
class Check:
    """One of the guide's checks: `result` is one of `MARKS`; `seen` and `advice` are sentences."""

    check: str
    result: str
    seen: str
    advice: str | None = None


class Unknown(LocalFault):
    """This host does not know where to ask."""


Seen = tuple[str, str, Optional[str]]  # result, what was seen, what to do


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``verify``."""
    parser.add_argument(
        "--operator-token",
        type="stdin",
        metavar="-",
        help="read an operator token from stdin for the agent-list check",
    )
    flag(parser, "--upload-test", "upload a small diagnostic artifact, for the fourth check")


def verify_command(arguments: argparse.Namespace) -> int:
    """Make the checks and print them, one line each; CheckFailed (exit 10) when one failed."""
    layout = arguments.layout
    token = Secret(sys.stdin.read(LONGEST_TOKEN).strip()) if arguments.operator_token else None
    upload = partial(upload_test, layout) if arguments.upload_test else None
    made = checks(layout, token=token, config=arguments.config, upload=upload)
    lines = []
    for check in made:
        lines.append(f"{MARKS[check.result]} {check.check}: {check.result}: {word(check.seen)}")
        lines += [f"    {word(check.advice)}"] if check.advice else []
    show(shown(made), lines, as_json=arguments.json)
    failed = [check.check for check in made if check.result == FAILED]
    if failed:
        raise CheckFailed(f"validation failed: {', '.join(failed)}")
    return 0


def checks(
    layout: Layout,
    *,
    token: Secret | None = None,
    config: Path | None = None,
    upload: Callable[[], str] | None = None,
) -> list[Check]:
    """Make the four checks; the first needs an operator's `token`, the last sends with `upload`.

    On a host without an identity one check fails and says so; the others have nothing to look at.
    """
    clock = Clock()
    document = agent.look(layout, clock)
    makers: tuple[Callable[[], Seen], ...] = (
        lambda: _listed(layout, token, document, config=config),
        lambda: _beating(layout, document, now=clock.wall()),
        lambda: deployed(document),
        lambda: uploaded(upload),
    )
    why = _without_identity(layout, document)
    if why is not None:
        none, hint = (NOT_CHECKED, why, None), "byteor-firstboot status"
        makers = (lambda: none, lambda: (FAILED, why, hint), lambda: none, lambda: none)
    return [judge(name, make) for name, make in zip(CHECKS, makers)]


def judge(name: str, make: Callable[[], Seen]) -> Check:
    """Make one check; an error fails it, unless this host does not know where to ask."""
    try:
        return Check(name, *make())
    except ByteorError as error:
        result = NOT_CHECKED if isinstance(error, Unknown) else FAILED
        return Check(name, result, str(error), error.hint)


def shown(made: list[Check]) -> dict[str, Any]:
    """Return the document of ``--json``."""
    return {"v": 1, "checks": [asdict(check) for check in made]}


def _listed(
    layout: Layout, token: Secret | None, document: Mapping[str, Any], *, config: Path | None
) -> Seen:
    """Look for this agent in the environment's list."""
    if token is None:
        advice = "give one on stdin: verify --operator-token -"
        return NOT_CHECKED, "needs an operator token", advice
    if not token:
        return NOT_CHECKED, "there is no token on stdin", "verify --operator-token - < FILE"
    place, agent_id = _place(layout, document, config=config)
    with preflight.plane(place) as api:
        listing = api.list_agents(
            token,
            org_id=place.org_id or "",
            project_id=place.project_id or "",
            environment_id=place.environment_id or "",
        )
    for row in listing:
        if row.agent_id == agent_id:
            last = row.last_heartbeat_at or "never"
            return OK, f"{row.name or agent_id}, last heartbeat {last}", None
    seen = f"{agent_id} is not among {len(listing)} agents"
    return FAILED, seen, "check if the agent was deleted at the control plane"


def _place(
    layout: Layout, document: Mapping[str, Any], *, config: Path | None
) -> tuple[Settings, str]:
    """Return where to ask and for which agent; an operator's token goes nowhere else.

    From the sealed identity where we may read it, else from root's settings.json: never from a file
    of the agent's user, who could choose the address. The agent's id alone may come from there.
    """
    try:
        here = store.required(layout)
    except ByteorError as error:
        agent_id = (document["identity"] or {}).get("agent_id")
        try:
            settings = in_force(layout, config=config)
        except LocalFault:
            raise error from None
        if agent_id is None or isinstance(error, Foreign):
            raise
    else:
        agent_id, names = here.agent_id, ROUTING if here.routed else PLACE
        settings = Settings() if here.routed else frozen.load(layout)
        settings = replace(settings, **{name: getattr(here, name) for name in names})
    missing = [name for name in PLACE if getattr(settings, name) is None]
    if missing:
        raise Unknown(f"this host does not know {', '.join(missing)}", hint="byteor-firstboot run")
    try:
        url = base_url(settings.api_base_url or "", under_systemd=systemd.under_systemd())
    except ValueError as error:
        raise Unknown(f"api_base_url {error}", hint="byteor-firstboot run") from error
    return replace(settings, api_base_url=url), agent_id


def _beating(layout: Layout, document: Mapping[str, Any], *, now: float) -> Seen:
    """Judge by the agent that runs, then by what it wrote: two periods at most."""
    age, period = agent.last_beat(document, now)
    seen = NO_BEAT
    if age is not None:
        seen = f"the last one was accepted {span(age)} ago"
        if age <= 2 * period and not document["running"]:
            advice = agent.start_hint(layout, document["state"])
            return FAILED, f"the agent does not run; {seen}", advice
        if age <= 2 * period:
            return OK, f"{seen}, one every {period:g} s", None
    loop = document["loops"].get(agent.FIRST, {})
    broken = [row for row in document["problems"] if row["code"].startswith("agent_")]
    cause = broken[0] if broken else {"detail": loop.get("problem"), "hint": loop.get("hint")}
    return FAILED, f"{seen}: {cause['detail']}" if cause["detail"] else seen, cause["hint"]


def _without_identity(layout: Layout, document: Mapping[str, Any]) -> str | None:
    """Return why there is no agent that could have run, None where there is one."""
    if document["state"] != NEVER_RAN:
        return None
    if agent.could_not_run(layout, document):
        return "this host is not enrolled"
    with suppress(LocalFault):  # this user cannot tell
        if store.look(layout).state is store.State.FOREIGN:
            return "the identity on this disk belongs to another host"
    return None


def deployed(document: Mapping[str, Any]) -> Seen:
    """Judge if a deployment is active, or none is assigned."""
    current, verdict = document["deployment"], document["last_verdict"] or {}
    why = verdict.get("reason") or verdict.get("code")
    if verdict.get("verdict") in ("failed", "refused", "rolled_back"):
        seen = f"{named(verdict)}, {verdict['verdict']}: {why}"
        return FAILED, seen, "byteor-agent deployments"
    if current is not None:
        seen = f"{named(current)}, {current['state']}"
        return OK if current["state"] == "active" else FAILED, seen, None
    loop = document["loops"].get("deployments")
    if loop is None:
        return NOT_CHECKED, "the agent has not looked for deployments", "byteor-agent status"
    if loop["problem"]:
        return FAILED, loop["problem"], loop["hint"]
    if not loop["last_success_at"]:
        seen = "the control plane was not asked yet"
        return NOT_CHECKED, seen, "wait a minute, then verify again"
    if verdict.get("verdict") == "waiting":
        return NOT_CHECKED, f"{verdict['deployment_id']} waits: {why}", None
    seen = "the control plane was asked and has assigned none"
    return NOT_CHECKED, seen, "assign one to this environment"


def uploaded(upload: Callable[[], str] | None) -> Seen:
    """Send a small diagnostic through the spool with `upload`, if there is one."""
    if upload is None:
        seen = "it would leave an artifact at the control plane"
        return NOT_CHECKED, seen, "verify --upload-test makes it"
    return OK, f"{upload()} is stored by the control plane", None
