"""Request 3: a heartbeat is kept when its sequence increases, and answered with hints."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from tests.controlplane import deployments, keysets
from tests.controlplane.exchange import Exchange, Refusal


def heartbeat(exchange: Exchange) -> Response:
    plane, agent, beat = exchange.plane, exchange.caller.row, exchange.json()
    place = (agent["org"], agent["project"], agent["environment"])
    sequence = int(beat["sequence"])  # 3.0 is an integer to JSON Schema
    if sequence <= agent["last_sequence"]:
        exchange.violate("sequence", f"sequence {sequence} after {agent['last_sequence']}")
        raise Refusal(409, "sequence_not_increasing", "the heartbeat's sequence does not increase")
    plane.store.run(
        "UPDATE agents SET last_heartbeat_at = ?, last_sequence = ?, last_heartbeat = ?, heartbeats = heartbeats + 1"
        " WHERE agent_id = ?",
        plane.store.now(),
        sequence,
        (exchange.body or b"").decode(),
        agent["agent_id"],
    )
    if plane.setting("heartbeat_answer") == 204:
        return Response(status_code=204)
    hints: dict[str, Any] = {"signing_keys_version": keysets.version(plane.store, place)}
    if plane.setting("heartbeat_interval_s") is not None:
        hints["heartbeat_interval_s"] = plane.setting("heartbeat_interval_s")
    latest = deployments.latest_for(plane.store, agent)
    if latest is not None:
        hints.update(deployment_id=latest["deployment_id"], deployment_sequence=latest["sequence"])
    return exchange.reply(200, hints)
