"""``byteor-firstboot verify``: the install guide's four validation checks, each with what was seen and what to do.

A check that was not made says "not checked" and why, and costs no exit code. Reads `status.json` and `settings.json`
only, so it needs no root; the agent-list check takes an operator token, since the runtime key must not list agents.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Optional

from firstboot import files, frozen
from firstboot.agent.status import read as read_status
from firstboot.api import PlaneApi
from firstboot.clock import Clock, from_rfc3339
from firstboot.errors import ByteorError, CheckFailed
from firstboot.layout import Layout
from firstboot.secret import Secret
from firstboot.transport import Transport

OK, FAILED, NOT_CHECKED = "ok", "failed", "not checked"
MARKS = {OK: "+", FAILED: "!", NOT_CHECKED: "-"}


@dataclass(frozen=True)
class Check:
    """One of the guide's checks: `result` is ok, failed or not checked; `seen` and `advice` are sentences."""

    check: str
    result: str
    seen: str
    advice: Optional[str] = None


def verify(layout: Layout, *, operator_token: Optional[Secret], as_json: bool) -> int:
    """Make the checks and print them, one line each; CheckFailed (exit 10) when one failed."""
    checks = [
        _listed(layout, operator_token),
        _beating(layout, Clock()),
        Check("deployment visible", NOT_CHECKED, "this version of the agent does not fetch deployments"),
        Check("artifact upload", NOT_CHECKED, "this version of the agent does not upload artifacts"),
    ]
    if as_json:
        print(json.dumps({"v": 1, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        for check in checks:
            print(f"{MARKS[check.result]} {check.check}: {check.result}: {check.seen}")
            if check.advice:
                print(f"    {check.advice}")
    failed = [check.check for check in checks if check.result == FAILED]
    if failed:
        raise CheckFailed(f"validation failed: {', '.join(failed)}")
    return 0


def _listed(layout: Layout, token: Optional[Secret]) -> Check:
    name = "agent in the environment's list"
    if token is None:
        return Check(name, NOT_CHECKED, "needs an operator token", "give one on stdin: verify --operator-token -")
    status, stored = read_status(layout, Clock()), files.read_json(layout.settings)
    if status is None or stored is None:
        return Check(name, FAILED, "this host has no agent that ran", "byteor-firstboot status")
    settings = frozen.thaw(stored)
    agent_id = (status.get("identity") or {}).get("agent_id")
    transport = Transport(ca_certificates=settings.ca_certificates, proxy=settings.proxy, no_proxy=settings.no_proxy)
    try:
        with PlaneApi(settings.api_base_url or "", transport) as api:
            listing = api.list_agents(
                token,
                org_id=settings.org_id or "",
                project_id=settings.project_id or "",
                environment_id=settings.environment_id or "",
            )
    except ByteorError as error:
        return Check(name, FAILED, str(error), error.hint)
    for agent in listing:
        if agent.agent_id == agent_id:
            return Check(name, OK, f"{agent.name or agent_id}, last heartbeat {agent.last_heartbeat_at or 'never'}")
    return Check(name, FAILED, f"{agent_id} is not among {len(listing)} agents", "was the agent deleted at the plane?")


def _beating(layout: Layout, clock: Clock) -> Check:
    name = "heartbeats arriving"
    status = read_status(layout, clock)
    if status is None:
        return Check(name, FAILED, "the agent has not run since boot", "systemctl status byteor-agent")
    loop = (status.get("loops") or {}).get("heartbeat") or {}
    last, period = loop.get("last_success_at"), float(loop.get("period_s") or 30.0)
    if not last:
        return Check(name, FAILED, loop.get("problem") or "no heartbeat was accepted yet", loop.get("hint"))
    age = clock.wall() - from_rfc3339(str(last))
    if age > 2 * period:
        return Check(name, FAILED, f"the last one was accepted {int(age)} s ago", loop.get("problem"))
    return Check(name, OK, f"the last one was accepted {int(age)} s ago, one every {period:g} s")
