"""Requests 4, 5 and 6: what is assigned, its bundle with ranges or through the object store, and
what hosts report.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.responses import FileResponse, Response

from tests.controlplane import keysets, spoil
from tests.controlplane.credentials import Place
from tests.controlplane.exchange import Exchange, Refusal
from tests.controlplane.plane import Plane
from tests.controlplane.store import Row, Store

WHERE = "org = ? AND project = ? AND environment = ?"
DEFAULT_SPEC = b"# deployed by the reference control plane\nname = rehearsal\n"


def deploy(
    plane: Plane,
    place: Place,
    *,
    files: Mapping[str, str] | None = None,
    agent_id: str | None = None,
    posture: str | None = None,
    deployment_id: str | None = None,
    sequence: int | None = None,
    kid: str | None = None,
    expires_in_s: float | None = None,
    broken: str | None = None,
    variant: str | None = None,
) -> dict[str, Any]:
    """Assign a new deployment to an environment, or to one agent of it.

    `files` are base64; spec.kv has a default. `broken` is a refusal code of contract 3, `variant`
    how it is provoked. An approval is added where the posture needs one. `kid` signs with that key,
    also a retired one.
    """
    if broken is not None and broken not in spoil.CODES:
        raise ValueError(f"no refusal {broken}; there are {', '.join(spoil.CODES)}")
    store = plane.store
    content = {name: base64.b64decode(data) for name, data in (files or {}).items()}
    content.setdefault("spec.kv", DEFAULT_SPEC)
    if posture is None:
        row = store.one(f"SELECT posture FROM environments WHERE {WHERE}", *place)
        posture = (
            "prod" if (broken or "").startswith("approval_") else row["posture"] if row else "dev"
        )
    last = store.one(f"SELECT MAX(sequence) AS sequence FROM deployments WHERE {WHERE}", *place)
    highest = int((last or {}).get("sequence") or 0)
    number = sequence if sequence is not None else highest + 1
    if broken in spoil.HISTORY:
        if not highest:
            raise ValueError(f"{broken} needs an earlier deployment")
        number = highest if broken == "equivocation" else highest - 1
    identity = deployment_id or f"dep_{secrets.token_hex(6)}"
    now = datetime.datetime.fromtimestamp(store.now(), datetime.timezone.utc)
    made = spoil.make(
        place,
        content,
        key=keysets.signer(store, place, kid),
        deployment_id=identity,
        sequence=number,
        posture=posture,
        now=now,
        expires_in_s=expires_in_s,
        broken=broken,
        variant=variant,
    )
    digest = hashlib.sha256(made.bundle).hexdigest()
    (plane.state / "bundles" / digest).write_bytes(made.bundle)
    store.run(
        "INSERT INTO deployments VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *place,
        agent_id,
        identity,
        number,
        json.dumps(made.envelope),
        digest,
        broken,
        store.now(),
    )
    return {
        "deployment_id": identity,
        "sequence": number,
        "spec_hash": spoil.spec_hash_of(content["spec.kv"]),
        "bundle_sha256": digest,
        "bundle_size": len(made.bundle),
        "broken": broken,
    }


def latest_for(store: Store, agent: Mapping[str, Any]) -> Row | None:
    """The newest deployment of the agent's environment that is for all, or for this agent."""
    return store.one(
        f"SELECT * FROM deployments WHERE {WHERE} AND (agent_id IS NULL OR agent_id = ?) ORDER BY id DESC LIMIT 1",
        agent["org"],
        agent["project"],
        agent["environment"],
        agent["agent_id"],
    )


def latest(exchange: Exchange) -> Response:
    """Request 4."""
    row = latest_for(exchange.plane.store, exchange.caller.row)
    if row is None:
        if exchange.plane.setting("no_deployment_answer") == 204:
            return Response(status_code=204)
        raise Refusal(404, "no_deployment", "nothing is assigned to this agent")
    tag = f'"{hashlib.sha256(row["envelope"].encode()).hexdigest()[:32]}"'
    if exchange.request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return exchange.reply(200, json.loads(row["envelope"]), {"ETag": tag})


def _assigned(exchange: Exchange) -> Row:
    agent, store = exchange.caller.row, exchange.plane.store
    row = store.one(
        f"SELECT * FROM deployments WHERE {WHERE} AND (agent_id IS NULL OR agent_id = ?) AND deployment_id = ?"
        " ORDER BY id DESC LIMIT 1",
        agent["org"],
        agent["project"],
        agent["environment"],
        agent["agent_id"],
        exchange.ids["deployment_id"],
    )
    if row is None:
        raise Refusal(404, "no_such_deployment", "no such deployment for this agent")
    return row


def bundle(exchange: Exchange) -> Response:
    """Request 5: the bytes themselves, or a redirect to the object store."""
    row, redirect = _assigned(exchange), exchange.plane.setting("bundle_redirect")
    if redirect is not None:
        way = "again" if redirect == "twice" else "objects"
        place = f"{exchange.plane.store_url}/{way}/{row['bundle']}?signature={_signature(exchange.plane, row['bundle'])}"
        return Response(status_code=302, headers={"Location": place})
    return _file(exchange, row["bundle"])


def _signature(plane: Plane, digest: str) -> str:
    secret = plane.store.setting("store_secret")
    if secret is None:
        secret = secrets.token_hex(16)
        plane.store.set_setting("store_secret", secret)
    return hmac.new(str(secret).encode(), digest.encode(), "sha256").hexdigest()


def _file(exchange: Exchange, digest: str) -> Response:
    """The stored bundle; Starlette does Range and If-Range, we refuse what it would answer without
    a problem body.
    """
    path = exchange.plane.state / "bundles" / digest
    scope = exchange.request.scope
    asked = exchange.request.headers.get("range")
    if not exchange.plane.setting("bundle_ranges"):
        scope["headers"] = [
            pair for pair in scope["headers"] if pair[0] not in (b"range", b"if-range")
        ]
    elif asked is not None and exchange.request.headers.get("if-range") in (None, f'"{digest}"'):
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        size = path.stat().st_size
        if match is None or int(match[1]) >= size or (match[2] and int(match[2]) < int(match[1])):
            raise Refusal(
                416,
                "range_not_satisfiable",
                "no such range",
                headers={"Content-Range": f"bytes */{size}"},
            )
    return FileResponse(path, media_type="application/gzip", headers={"ETag": f'"{digest}"'})


def from_store(exchange: Exchange) -> Response:
    """The object store: signed addresses only, and no credential of the plane's may arrive here."""
    if exchange.secret is not None or "authorization" in exchange.request.headers:
        exchange.plane.violation(
            "authorization_at_store", "a credential went to the object store", exchange.id
        )
    match = re.fullmatch(r"/(objects|again)/([0-9a-f]{64})", exchange.raw_path)
    if match is None or exchange.request.method != "GET":
        raise Refusal(404, "not_found", "no such object")
    way, digest = match.groups()
    if exchange.query != f"signature={_signature(exchange.plane, digest)}":
        raise Refusal(403, "bad_signature", "the address is not signed")
    if way == "again":
        place = f"{exchange.plane.store_url}/objects/{digest}?{exchange.query}"
        return Response(status_code=302, headers={"Location": place})
    return _file(exchange, digest)


def report(exchange: Exchange) -> Response:
    """Request 6: kept once per report_id, whatever is repeated."""
    row, said, store = _assigned(exchange), exchange.json(), exchange.plane.store
    known = store.one("SELECT * FROM reports WHERE report_id = ?", said["report_id"])
    body = json.dumps(said, sort_keys=True)
    if known is not None and (known["body"], known["agent_id"]) != (
        body,
        exchange.caller.row["agent_id"],
    ):
        exchange.violate("report_id_reused", "a report_id with another report")
        raise Refusal(409, "report_id_reused", "this report_id was used for another report")
    if known is None:
        store.run(
            "INSERT INTO reports VALUES (?, ?, ?, ?, ?)",
            said["report_id"],
            exchange.caller.row["agent_id"],
            row["deployment_id"],
            body,
            store.now(),
        )
    return exchange.reply(200, {"report_id": said["report_id"], "duplicate": known is not None})
