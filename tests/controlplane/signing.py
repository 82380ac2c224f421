"""DSSE envelopes, key sets and approval credentials: written here from their descriptions, checked
by the other side.

Bytes in, text or dictionaries out; no state. The plane signs with its own code so that a shared
mistake cannot hide.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

DEPLOYMENT_TYPE = "application/vnd.byteor.deployment+json"
KEY_SET_TYPE = "application/vnd.byteor.signing-keys+json"


def b64url(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass(frozen=True)
class SigningKey:
    """One Ed25519 key with its kid."""

    kid: str
    private: Ed25519PrivateKey

    @classmethod
    def new(cls, kid: str) -> SigningKey:
        return cls(kid, Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, kid: str, seed: bytes) -> SigningKey:
        return cls(kid, Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        return self.private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted members, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def envelope(payload_type: str, payload: bytes, signers: Iterable[SigningKey]) -> dict[str, Any]:
    """A DSSE v1 envelope over `payload`, signed by each of `signers`."""
    message = pae(payload_type, payload)
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [
            {"keyid": key.kid, "sig": base64.b64encode(key.private.sign(message)).decode()}
            for key in signers
        ],
    }


def key_entry(
    key: SigningKey, *, status: str = "active", not_after: str | None = None
) -> dict[str, Any]:
    """One key as a key set lists it."""
    entry = {"kid": key.kid, "alg": "Ed25519", "public_key": b64url(key.public), "status": status}
    return {**entry, "not_after": not_after} if not_after is not None else entry


def key_set(
    version: int, entries: Sequence[Mapping[str, Any]], signers: Iterable[SigningKey]
) -> dict[str, Any]:
    """A key set in its envelope."""
    return envelope(KEY_SET_TYPE, canonical({"version": version, "keys": list(entries)}), signers)


def approval(claims: Mapping[str, Any], key: SigningKey) -> str:
    """An approval credential v1: the signature is over the payload part as transmitted."""
    part = b64url(canonical(claims))
    return f"{part}.{b64url(key.private.sign(part.encode('ascii')))}"
