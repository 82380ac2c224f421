"""Requests 1 and 2: a token becomes exactly one agent, and the operator's list of agents.

Idempotency (contract 2.1): the same key, token and body after a success get the first answer for 24
h; the same key with another body or token is 422; while the first attempt is in progress it is 409.
Checks and commit run without a pause in a single thread, and the commit is one transaction: a
thousand hosts at once, or a restart between commit and reply, change nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from tests.controlplane import credentials, keysets
from tests.controlplane.credentials import ENROLL_SCOPE, KEY_PREFIX, Place, fingerprint, loads
from tests.controlplane.exchange import Exchange, Refusal
from tests.controlplane.plane import Plane, rfc3339

REMEMBERED_S = 24 * 3600.0


def place_of(ids: Mapping[str, str]) -> Place:
    return ids["org_id"], ids["project_id"], ids["environment_id"]


def _insist_on_environment(plane: Plane, place: Place) -> None:
    sql = "SELECT 1 FROM environments WHERE org = ? AND project = ? AND environment = ?"
    if plane.store.one(sql, *place) is None:
        raise Refusal(404, "no_such_environment", "no such organisation, project or environment")


def enroll(exchange: Exchange) -> Response:
    """Request 1, judged and authenticated already."""
    plane, token = exchange.plane, exchange.caller.row
    body = exchange.body or b""
    key = exchange.request.headers["idempotency-key"].lower()
    repeated = _repeated(exchange, key, body)
    if repeated is not None:
        return exchange.reply(200, repeated, {"Idempotency-Replayed": "true"})
    place = place_of(exchange.ids)
    _insist_on_environment(plane, place)
    _check_token(plane, token, place)
    said: dict[str, str] = json.loads(body)
    if "hostname" in said and not plane.setting("accept_hostname"):
        raise Refusal(422, "hostname_not_accepted", "this control plane takes a name, or nothing")
    name = _name(plane, place, said)
    keysets.active(plane.store, place)
    with plane.store.transaction():
        reply = _admit(plane, token, place, name)
        record = (
            key,
            token["hash"],
            hashlib.sha256(body).hexdigest(),
            json.dumps(reply),
            plane.store.now(),
        )
        plane.store.run("INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?)", *record)
    exchange.note(agent_id=reply.get("agent_id", reply.get("id")))
    return exchange.reply(plane.setting("enroll_status"), reply)


def _repeated(exchange: Exchange, key: str, body: bytes) -> dict[str, Any] | None:
    store = exchange.plane.store
    first = store.one("SELECT * FROM idempotency WHERE key = ?", key)
    if first is None or store.now() - first["at"] > REMEMBERED_S:
        return None
    if first["token_hash"] != exchange.caller.row["hash"]:
        exchange.violate("idempotency_key_reused", "an idempotency key with another token")
        raise Refusal(
            422, "idempotency_key_reused", "this idempotency key was used with another token"
        )
    if first["body_hash"] != hashlib.sha256(body).hexdigest():
        exchange.violate("idempotency_key_reused", "an idempotency key with another body")
        raise Refusal(
            422, "idempotency_key_reused", "this idempotency key was used with another body"
        )
    return dict(json.loads(first["reply"]))


def _check_token(plane: Plane, token: Mapping[str, Any], place: Place) -> None:
    if ENROLL_SCOPE not in loads(token["scopes"]):
        raise Refusal(
            403, "scope_missing", f"the token lacks {ENROLL_SCOPE}", extra={"scope": ENROLL_SCOPE}
        )
    if (token["org"], token["project"], token["environment"]) != place:
        raise Refusal(403, "wrong_environment", "the token belongs to another environment")
    if token["used_by"] is not None:
        raise Refusal(
            plane.setting("token_used_answer"), "token_used", "this enrollment token was used"
        )
    if token["expires_at"] is not None and token["expires_at"] <= plane.store.now():
        raise Refusal(401, "token_expired", "this enrollment token has expired")


def _taken(plane: Plane, place: Place, name: str) -> bool:
    sql = "SELECT 1 FROM agents WHERE org=? AND project=? AND environment=? AND lower(name)=lower(?) AND deleted=0"
    return plane.store.one(sql, *place, name) is not None


def _name(plane: Plane, place: Place, said: Mapping[str, str]) -> str:
    """The name asked for, or one derived from the host name and made unique."""
    if "name" in said:
        if _taken(plane, place, said["name"]):
            raise Refusal(409, "name_taken", "another agent of this environment has that name")
        return said["name"]
    base = re.sub(r"[^a-z0-9-]+", "-", said.get("hostname", "").lower()).strip("-")[:56].rstrip("-")
    base = base or f"agent-{secrets.token_hex(3)}"
    name, number = base, 1
    while _taken(plane, place, name):
        number += 1
        name = f"{base}-{number}"
    return name


def _admit(plane: Plane, token: Mapping[str, Any], place: Place, name: str) -> dict[str, Any]:
    """Spend the token: one agent, one runtime key. Return the reply."""
    store, now = plane.store, plane.store.now()
    agent_id, key = f"agt_{secrets.token_hex(10)}", credentials.new_secret(KEY_PREFIX)
    expires_at = None if token["key_ttl_s"] is None else now + token["key_ttl_s"]
    scopes = loads(token["key_scopes"])
    store.run(
        "INSERT INTO agents (agent_id, org, project, environment, name, enrolled_at) VALUES (?, ?, ?, ?, ?, ?)",
        agent_id,
        *place,
        name,
        now,
    )
    store.run(
        "INSERT INTO keys VALUES (?, ?, ?, ?, 0)",
        fingerprint(key),
        agent_id,
        json.dumps(scopes),
        expires_at,
    )
    store.run(
        "UPDATE tokens SET used_by = ?, used_at = ? WHERE hash = ?", agent_id, now, token["hash"]
    )
    aliases = plane.setting("reply_aliases")
    reply: dict[str, Any] = {
        "id" if aliases else "agent_id": agent_id,
        "runtime_api_key" if aliases else "api_key": key,
        "name": name,
        "scopes": scopes,
    }
    if expires_at is not None:
        reply["expires_at"] = rfc3339(expires_at)
    if plane.setting("heartbeat_interval_s") is not None:
        reply["heartbeat_interval_s"] = plane.setting("heartbeat_interval_s")
    if plane.setting("signing_keys_in_enrollment"):
        reply["signing_keys"] = keysets.since(store, place, 0)
    return reply


def agents(plane: Plane, place: Place | None = None) -> Any:
    """What the operator's list shows, for one environment or all of them."""
    rows = plane.store.all("SELECT * FROM agents WHERE deleted = 0 ORDER BY enrolled_at, agent_id")
    return [
        row
        for row in rows
        if place is None or (row["org"], row["project"], row["environment"]) == place
    ]


def list_agents(exchange: Exchange) -> Response:
    """Request 2."""
    place = place_of(exchange.ids)
    _insist_on_environment(exchange.plane, place)
    shown = [
        {
            "agent_id": row["agent_id"],
            "name": row["name"],
            "last_heartbeat_at": rfc3339(row["last_heartbeat_at"]),
        }
        for row in agents(exchange.plane, place)
    ]
    return exchange.reply(200, {"agents": shown, "next": None})
