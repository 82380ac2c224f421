"""Verify DSSE envelopes, key sets and approvals: bytes in, verified value out.

Nothing here decides *which* keys are trusted: the caller hands in those that are (`chain`). What is
called ``unverified_`` may be looked at to choose keys, and for no more. Whatever the bytes are, the
error is `Untrusted`.

    envelope = signatures.read_envelope(raw, kind=signatures.DEPLOYMENT)
    payload = envelope.verified(keys)
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from firstboot.base import documents, files
from firstboot.base.clock import from_rfc3339
from firstboot.base.documents import Rule
from firstboot.base.errors import LocalFault, Untrusted
from firstboot.exchange.verdicts import ACTIVE, ED25519, Date, ListedKey

DEPLOYMENT = "application/vnd.byteor.deployment+json"
KEY_SET = "application/vnd.byteor.signing-keys+json"
KEY_BYTES = 32
APPROVAL_LIMIT = 1 << 16  # bytes; a credential takes about 700
MOST_SIGNATURES = 16  # in one envelope: each costs a verification
MOST_KEYS = 64  # in one set

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+\Z")

# Points of small order (libsodium, ge25519_has_small_order), the sign bit cleared: under such a
# "key", all zeros among them, anybody can make a signature that verifies for every message.
_ONES, _ZEROS = "ff" * 30 + "7f", "00" * 31
SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in ("00" + _ZEROS, "01" + _ZEROS, "ec" + _ONES, "ed" + _ONES, "ee" + _ONES,
                  "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
                  "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
)  # fmt: skip


def _is_weak(public: bytes) -> bool:
    return public[:-1] + bytes([public[-1] & 0x7F]) in SMALL_ORDER


# The length first: a key of none has no last byte.
_PublicKey = Annotated[
    str,
    Rule(lambda t: len(_base64url(t)) == KEY_BYTES, f"unpadded base64url of {KEY_BYTES} bytes"),
    Rule(lambda t: not _is_weak(_base64url(t)), "a key with which only its owner can sign"),
]


@dataclass(frozen=True)
class Key(ListedKey):
    """One public key of the control plane's that can verify."""

    public_key: _PublicKey

    @classmethod
    def parse(cls, value: object) -> Key:
        """Return the key that a mapping describes; ValueError with what is wrong."""
        return documents.parse(cls, value)

    @property
    def public(self) -> bytes:
        """Return its bytes."""
        return _base64url(self.public_key)

    def to_json(self) -> dict[str, Any]:
        """Return the key as a key set lists it."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def signs(self, now: float | None) -> bool:
        """Return True when this key may sign something new: active and not ended.

        Without `now` ends are not judged.
        """
        if now is not None and self.not_after is not None and from_rfc3339(self.not_after) <= now:
            return False
        return self.status == ACTIVE

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return True when this key made `signature`. Not checked: that the key is trusted."""
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            # ValueError: newer libraries refuse 32 bytes that are no point of the curve here.
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        except UnsupportedAlgorithm as error:
            raise LocalFault(
                f"this system's OpenSSL refuses {ED25519}", hint="its FIPS mode does"
            ) from error
        return True


@dataclass(frozen=True)
class KeySet:
    """The payload of a key set (contract 2.5). Every kid is there once, and one key is active."""

    version: int
    keys: tuple[Key, ...]

    @classmethod
    def parse(cls, payload: bytes) -> KeySet:
        """Return the key set; ValueError with what is wrong. Unknown members are ignored."""
        found = documents.parse(cls, documents.load(payload))
        if not 0 < len(found.keys) <= MOST_KEYS:
            raise ValueError(f"it does not list 1 to {MOST_KEYS} keys")
        if len({key.kid for key in found.keys}) != len(found.keys):
            raise ValueError("it lists a kid twice")
        # Nothing could ever follow it: no key would be left to sign its successor.
        if not any(key.status == ACTIVE for key in found.keys):
            raise ValueError("it leaves no key active")
        return found


@dataclass(frozen=True)
class Envelope:
    """A DSSE v1 envelope of the expected type that nothing vouches for yet."""

    kind: str
    unverified_payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def verified(self, keys: Iterable[Key]) -> bytes:
        """Return the payload when one signature by one of `keys` is good.

        Untrusted unknown_key or bad_signature. `keys` are those that are trusted for the purpose.
        Signatures by others are not looked at: somebody else's, broken, repeated or first in the
        list, they change nothing.
        """
        trusted = {key.kid: key for key in keys}
        made = [(trusted[kid], signature) for kid, signature in self.signatures if kid in trusted]
        if not made:
            raise Untrusted("unknown_key", "it is not signed with a key that is trusted here")
        # The pre-authentication encoding: type and payload with their lengths, so that neither can
        # pose as the other.
        kind, payload = self.kind.encode("ascii"), self.unverified_payload
        message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
        if not any(key.verifies(signature, message) for key, signature in made):
            raise Untrusted("bad_signature", "its signature is not right")
        return self.unverified_payload


def read_envelope(raw: bytes, *, kind: str) -> Envelope:
    """Take the bytes of an envelope apart; Untrusted malformed or wrong_type."""
    if len(raw) > files.JSON_LIMIT:
        raise Untrusted("malformed", f"the envelope has more than {files.JSON_LIMIT} bytes")
    try:
        value = documents.load(raw)
    except ValueError:
        raise Untrusted("malformed", "the envelope is not JSON") from None
    return envelope_of(value, kind=kind)


def envelope_of(value: Any, *, kind: str) -> Envelope:
    """Take an envelope apart that stands in another JSON document.

    Unknown members are ignored, as DSSE asks.
    """
    try:
        if not isinstance(value, dict):
            raise ValueError("it is not a mapping")
        payload = _base64(value.get("payload"), "payload")
        listed = value.get("signatures")
        if not isinstance(listed, list) or len(listed) > MOST_SIGNATURES:
            raise ValueError(f"it has no list of at most {MOST_SIGNATURES} signatures")
        signatures = tuple(map(_signature, listed))
        if not isinstance(value.get("payloadType"), str):
            raise ValueError("it has no payloadType")
    except ValueError as error:
        raise Untrusted("malformed", f"this is not a DSSE envelope: {error}") from None
    if value["payloadType"] != kind:
        raise Untrusted("wrong_type", f"the envelope is not of type {kind}")
    return Envelope(kind, payload, signatures)


def _signature(value: Any) -> tuple[str, bytes]:
    """Return keyid and signature; DSSE allows no keyid: then an empty one, which no key has."""
    if not isinstance(value, dict) or not isinstance(value.get("keyid"), (str, type(None))):
        raise ValueError("a signature is not of its shape")
    return value.get("keyid") or "", _base64(value.get("sig"), "signature")


def _base64(value: Any, what: str) -> bytes:
    """Decode standard base64 as an encoder writes it.

    One text for the same bytes, so that nothing can hide in the other ones.
    """
    try:
        data = base64.b64decode(value, validate=True)
    except (ValueError, TypeError):
        data = None
    if data is None or base64.b64encode(data).decode("ascii") != value:
        raise ValueError(f"its {what} is not canonical base64")
    return data


def _base64url(text: str) -> bytes:
    """Decode unpadded base64url, canonical as well; empty for anything else."""
    data = b""
    if _BASE64URL.match(text) and len(text) % 4 != 1:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return data if base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") == text else b""


@dataclass(frozen=True)
class Approval:
    """The claims of an approval credential v1 with a good signature."""

    org_id: str
    project_id: str
    environment_id: str
    environment_posture: str
    spec_hash: str
    capabilities: tuple[str, ...]
    issued_at: Date
    expires_at: Date
    issued_by: str
    approval_id: str


def read_approval(raw: bytes, keys: Iterable[Key]) -> tuple[Approval, Key]:
    """Verify ``<payload>.<signature>``; return what it says, and the key that signed it.

    Untrusted approval_undecodable, approval_signature or approval_version. One line end after it is
    allowed: it is a text file. Not checked: what it approves, and until when.
    """
    try:
        part, signature, unverified = _split(raw)
        if type(unverified.get("kid")) is not str:
            raise ValueError("it names no kid")
        key = next((key for key in keys if key.kid == unverified["kid"]), None)
        if key is None or not key.verifies(signature, part.encode("ascii")):
            why = "the approval is not signed with a key of this environment"
            raise Untrusted("approval_signature", why)
        if type(unverified.get("v")) is not int or unverified["v"] != 1:
            why = "the approval is of a version that this host does not know"
            raise Untrusted("approval_version", why)
        return documents.parse(Approval, unverified), key
    except ValueError as error:
        raise Untrusted("approval_undecodable", f"the approval cannot be read: {error}") from None


def _split(raw: bytes) -> tuple[str, bytes, Mapping[str, Any]]:
    if len(raw) > APPROVAL_LIMIT:
        raise ValueError(f"it has more than {APPROVAL_LIMIT} bytes")
    text = raw[:-1] if raw.endswith(b"\n") else raw
    part, dot, signed = text.decode("ascii").partition(".")
    if not dot:
        raise ValueError("it is not two parts with a dot between")
    payload, signature = _base64url(part), _base64url(signed)
    if not payload or not signature:
        raise ValueError("not unpadded base64url")
    claims = documents.load(payload)
    if not isinstance(claims, dict):
        raise ValueError("it is not a mapping")
    try:
        # Sorted, without white space: another parser finds the same in the same bytes.
        canonical = json.dumps(claims, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if canonical.encode("utf-8") != payload:
        raise ValueError("it is not canonical JSON")
    return part, signature, claims
