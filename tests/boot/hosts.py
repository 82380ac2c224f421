"""A guest with our package: what its user data says, and how far it has come, seen from the plane
and on the host.

The one place in which the boot tests know the reference control plane's words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.controlplane import ControlPlane
from tests.controlplane.conformance import complaints

from .facts import Boot
from .guest import Guest
from .scan import canary

FIRSTBOOT = "byteor-firstboot.service"
ERASE = "byteor-erase.service"
AGENT = "byteor-agent.service"
SEALED = "/var/lib/byteor/identity/credentials.sealed"
DROP_PLACE = "/run/byteor-firstboot/settings.yaml"

# The shortest period that the contract allows: a test waits for beats.
PERIOD_S = 5
ENROLL_DEADLINE_S = 90.0


def settings(plane: ControlPlane, token: str) -> dict[str, object]:
    """Everything that a host has to be told, as an operator would put it into user data."""
    return {
        "api_base_url": plane.base_url,
        "org_id": plane.org_id,
        "project_id": plane.project_id,
        "environment_id": plane.environment_id,
        "enrollment_token": token,
        "heartbeat_interval_s": PERIOD_S,
        "ca_certificates": plane.ca_pem,
    }


def mint(plane: ControlPlane) -> str:
    """A fresh token that a scan can find: a prefix, then letters and digits only."""
    return plane.mint(text=f"bet_{canary()}")


def enrollments(plane: ControlPlane) -> list[Mapping[str, Any]]:
    """Every request that presented an enrollment token, answered or refused."""
    return list(plane.requests("enroll"))


def beats(plane: ControlPlane, agent_id: str) -> list[Mapping[str, Any]]:
    """The accepted heartbeats of one agent, as the bodies that it sent."""
    accepted = [seen for seen in plane.requests("heartbeat") if seen["status"] in (200, 204)]
    return [json.loads(seen["body"]) for seen in accepted if seen["agent_id"] == agent_id]


def objections(plane: ControlPlane) -> list[str]:
    """What the plane has against this host's requests: breaches of the contract, and of its
    openapi.yaml.
    """
    breaches = [f"{breach['rule']}: {breach['detail']}" for breach in plane.violations()]
    return breaches + complaints(plane.requests())


def wait_for_agent(guest: Guest, plane: ControlPlane, *, agents: int = 1) -> str:
    """Wait until the plane lists ``agents`` agents; the id of the newest."""
    guest.wait_for(
        lambda: len(plane.agents()) >= agents,
        "the plane to list an agent",
        timeout=ENROLL_DEADLINE_S,
        every=0.2,
    )
    return str(plane.agents()[-1]["agent_id"])


def wait_for_beat(
    guest: Guest, plane: ControlPlane, agent_id: str, *, after: int = 0
) -> Mapping[str, Any]:
    """Wait for a beat beyond the first ``after`` ones; the newest."""
    guest.wait_for(
        lambda: len(beats(plane, agent_id)) > after,
        f"beat {after + 1}",
        timeout=4 * PERIOD_S + 30,
        every=0.2,
    )
    return beats(plane, agent_id)[-1]


def wait_until_ended(guest: Guest, unit: str) -> None:
    """Wait until a unit's process has ended, well or not."""
    guest.wait_for(
        lambda: guest.unit(unit)["ActiveState"] in ("inactive", "failed"),
        f"{unit} to end",
        timeout=60,
        every=0.25,
    )


def ours(guest: Guest) -> list[str]:
    """What our commands wrote into this boot's journal, without systemd's own lines about their
    units.
    """
    identifiers = ("--identifier=byteor-firstboot", "--identifier=byteor-agent")
    return guest.run(
        "journalctl", "-b", "--no-pager", "--output=cat", *identifiers
    ).stdout.splitlines()


def failed(boot: Boot) -> list[str]:
    """The failed units that first boot answers for: ours and cloud-init's."""
    return [unit for unit in boot.failed_units if unit.startswith(("byteor", "cloud"))]
