"""Request 7, and the history of signing keys of each environment: rotated with overlap, retired, or
broken on purpose.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from starlette.responses import Response

from tests.controlplane import signing
from tests.controlplane.credentials import Place
from tests.controlplane.exchange import Exchange
from tests.controlplane.signing import SigningKey
from tests.controlplane.store import Row, Store

WHERE = "org = ? AND project = ? AND environment = ?"
# How a rotation may break the chain of contract 2.5, one rule at a time.
BREAKS = (
    "unrelated_signer",  # the new set is signed by a key that its predecessor does not list as active
    "bad_signature",
    "equivocation",  # another set under the version that is already known
    "lower_version",  # a set with a lower version follows
    "gap",  # a version is skipped and its set never shown
    "wrong_type",
    "malformed",
)


def _rows(store: Store, place: Place) -> list[Row]:
    return store.all(f"SELECT * FROM signing_keys WHERE {WHERE} ORDER BY rowid", *place)


def _key(row: Row) -> SigningKey:
    return SigningKey.from_seed(row["kid"], bytes.fromhex(row["private"]))


def active(store: Store, place: Place) -> list[SigningKey]:
    """The keys in force, oldest first; the first key set is made when it is first needed."""
    if not _rows(store, place):
        _add_key(store, place, None)
        _publish(store, place, 1, [_key(row) for row in _rows(store, place)])
    return [_key(row) for row in _rows(store, place) if row["status"] == "active"]


def signer(store: Store, place: Place, kid: str | None = None) -> SigningKey:
    """The key `kid`, also a retired one; without it the oldest active one."""
    keys = active(store, place)
    if kid is None:
        return keys[0]
    for row in _rows(store, place):
        if row["kid"] == kid:
            return _key(row)
    raise ValueError(f"no key {kid} in this environment")


def _add_key(store: Store, place: Place, not_after: str | None) -> SigningKey:
    key = SigningKey.new(f"kid-{len(_rows(store, place)) + 1}-{secrets.token_hex(3)}")
    store.run(
        "INSERT INTO signing_keys VALUES (?, ?, ?, ?, ?, 'active', ?)",
        *place,
        key.kid,
        key.seed.hex(),
        not_after,
    )
    return key


def _entries(store: Store, place: Place) -> list[dict[str, Any]]:
    return [
        signing.key_entry(_key(row), status=row["status"], not_after=row["not_after"])
        for row in _rows(store, place)
    ]


def _publish(store: Store, place: Place, number: int, signers: list[SigningKey]) -> None:
    _keep(store, place, number, signing.key_set(number, _entries(store, place), signers))


def _keep(store: Store, place: Place, number: int, envelope: dict[str, Any]) -> None:
    store.run(
        "INSERT INTO key_sets VALUES (NULL, ?, ?, ?, ?, ?)", *place, number, json.dumps(envelope)
    )


def version(store: Store, place: Place) -> int:
    """The version of the newest key set."""
    active(store, place)
    row = store.one(f"SELECT version FROM key_sets WHERE {WHERE} ORDER BY id DESC LIMIT 1", *place)
    return int(row["version"]) if row is not None else 0


def since(store: Store, place: Place, known: int) -> list[dict[str, Any]]:
    """Every envelope newer than `known`, in the order of publication; broken ones are always among
    them.
    """
    active(store, place)
    rows = store.all(f"SELECT * FROM key_sets WHERE {WHERE} ORDER BY id", *place)
    newest_first = rows[-1:]
    return [
        json.loads(row["envelope"])
        for row in rows
        if row["version"] > known or _is_broken(row, rows, newest_first)
    ]


def _is_broken(row: Row, rows: list[Row], newest: list[Row]) -> bool:
    # A set that breaks the order of versions would otherwise never be shown to a host that is up to
    # date.
    return row in newest and any(
        other["version"] >= row["version"] for other in rows if other["id"] < row["id"]
    )


def rotate(
    store: Store,
    place: Place,
    *,
    add: bool = True,
    retire: list[str] | None = None,
    not_after: str | None = None,
    broken: str | None = None,
) -> dict[str, Any]:
    """Publish the next key set: with a new active key beside the old (overlap), and `retire`d ones
    marked so.

    `retire` lists kids, or is ["old"] for all but the newest. `broken` is one of BREAKS. Return
    version and kids.
    """
    if broken is not None and broken not in BREAKS:
        raise ValueError(f"no such break {broken}; there are {', '.join(BREAKS)}")
    with store.transaction():
        signers, number = active(store, place), version(store, place) + 1
        if add:
            _add_key(store, place, not_after)
        kids = [key.kid for key in active(store, place)]
        for kid in kids[:-1] if retire == ["old"] else retire or []:
            store.run(
                f"UPDATE signing_keys SET status = 'retired' WHERE {WHERE} AND kid = ?", *place, kid
            )
        if broken is None:
            _publish(store, place, number, signers[:1])
        else:
            _publish_broken(store, place, number, signers, broken)
    return {
        "version": version(store, place),
        "active": [key.kid for key in active(store, place)],
        "retired": [row["kid"] for row in _rows(store, place) if row["status"] == "retired"],
    }


def _publish_broken(
    store: Store, place: Place, number: int, signers: list[SigningKey], broken: str
) -> None:
    entries = _entries(store, place)
    stranger = SigningKey.new("kid-stranger")
    if broken == "unrelated_signer":
        envelope = signing.key_set(number, [*entries, signing.key_entry(stranger)], [stranger])
    elif broken == "bad_signature":
        envelope = signing.key_set(number, entries, [SigningKey(signers[0].kid, stranger.private)])
    elif broken == "wrong_type":
        payload = signing.canonical({"version": number, "keys": entries})
        envelope = signing.envelope(signing.DEPLOYMENT_TYPE, payload, signers[:1])
    elif broken == "malformed":
        envelope = signing.envelope(signing.KEY_SET_TYPE, b'{"version": "three"}', signers[:1])
    else:
        number += {"equivocation": -1, "lower_version": -2, "gap": 1}[broken]
        envelope = signing.key_set(max(number, 0), entries, signers[:1])
    _keep(store, place, max(number, 0), envelope)


def serve(exchange: Exchange) -> Response:
    """Request 7."""
    agent = exchange.caller.row
    place = (agent["org"], agent["project"], agent["environment"])
    known = int(exchange.request.query_params["since"])
    return exchange.reply(200, {"key_sets": since(exchange.plane.store, place, known)})
