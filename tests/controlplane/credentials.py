"""Enrollment tokens, runtime keys and the operator token: minted, kept as hashes, recognised, never
shown.

The three kinds have prefixes of their own, so that one that turns up where it does not belong is
seen.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tests.controlplane.store import Row, Store

ENROLL_SCOPE = "agent:enroll"
ROUTE_SCOPES = (
    "agent:heartbeat",
    "agent:deployment_read",
    "agent:deployment_report",
    "agent:signing_keys_read",
    "agent:artifact_upload",
)
TOKEN_PREFIX, KEY_PREFIX, OPERATOR_PREFIX = "bet_", "brk_", "bop_"
KINDS = {
    TOKEN_PREFIX: "enrollment_token",
    KEY_PREFIX: "runtime_key",
    OPERATOR_PREFIX: "operator_token",
}
# What we mint: prefix and 43 characters. Shorter look-alikes ("bet_" in a hint text) are no
# secrets.
SHAPE = re.compile(r"b(?:et|rk|op)_[A-Za-z0-9_-]{20,}")

Place = tuple[str, str, str]  # org, project, environment


@dataclass(frozen=True)
class Caller:
    """Who presented which credential; `row` is the token's or the agent's record."""

    kind: str
    row: Row = field(default_factory=dict)


def fingerprint(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def new_secret(prefix: str) -> str:
    return prefix + secrets.token_urlsafe(32)


def mint(
    store: Store,
    place: Place,
    *,
    scopes: Iterable[str] = (ENROLL_SCOPE,),
    ttl_s: float | None = 3600.0,
    key_scopes: Iterable[str] = ROUTE_SCOPES,
    key_ttl_s: float | None = None,
    text: str | None = None,
) -> str:
    """Make a single-use enrollment token for `place`; `text` chooses its characters (rehearsals,
    odd lengths).
    """
    token = text or new_secret(TOKEN_PREFIX)
    store.run("INSERT OR IGNORE INTO environments VALUES (?, ?, ?, 'dev')", *place)
    store.run(
        "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
        fingerprint(token),
        text,
        *place,
        json.dumps(list(scopes)),
        None if ttl_s is None else store.now() + ttl_s,
        json.dumps(list(key_scopes)),
        key_ttl_s,
    )
    return token


def operator_token(store: Store) -> str:
    """The operator's token: made once, kept in clear for the person at the rehearsal."""
    known = store.setting("operator_token")
    if known is None:
        known = new_secret(OPERATOR_PREFIX)
        store.set_setting("operator_token", known)
    return str(known)


def bearer(authorization: str | None) -> str | None:
    """Return the credential of an Authorization header, None when it is not one well-formed
    Bearer.
    """
    match = re.fullmatch(r"[Bb]earer ([\x21-\x7e]{1,8192})", authorization or "")
    return match.group(1) if match else None


def kind_of(store: Store, secret: str) -> str:
    """What a credential is: known kinds by record, else by prefix, else `unknown`."""
    digest = fingerprint(secret)
    if store.one("SELECT 1 FROM tokens WHERE hash = ?", digest):
        return "enrollment_token"
    if store.one("SELECT 1 FROM keys WHERE hash = ?", digest):
        return "runtime_key"
    return KINDS.get(secret[:4], "unknown")


def shown(store: Store, secret: str) -> str:
    """How logs show a credential: its kind and a short hash."""
    return f"<{kind_of(store, secret)} {fingerprint(secret)[:12]}>"


class Spotter:
    """Finds and masks credentials in text that should not hold any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reload()

    def reload(self) -> None:
        """Learn the tokens whose text was chosen by the caller; the others are known by their
        shape.
        """
        rows = self._store.all("SELECT text FROM tokens WHERE text IS NOT NULL")
        self._chosen: list[str] = [row["text"] for row in rows if not SHAPE.fullmatch(row["text"])]

    def found(self, text: str, *, encoded: bool = True) -> list[str]:
        """Every credential in `text`, where `encoded` percent-encoded ones too."""
        texts = {text, unquote(text)} if encoded else {text}
        hits = {hit for each in texts for hit in SHAPE.findall(each)}
        return sorted(
            hits | {token for token in self._chosen if any(token in each for each in texts)}
        )

    def masked(self, text: str) -> str:
        """`text` with each credential replaced by its kind and hash."""
        for token in self._chosen:
            text = text.replace(token, shown(self._store, token))
        return SHAPE.sub(lambda match: shown(self._store, match.group()), text)


def loads(text: Any) -> Any:
    return json.loads(text) if text is not None else None
