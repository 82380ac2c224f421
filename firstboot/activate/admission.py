"""Admit a deployment or refuse it: envelope, key ring, place, highest sequence, time. Pure.

The order is fixed, and every check has its code (contract 3): the signature before the payload is
parsed (malformed, wrong_type, unknown_key, bad_signature), then its shape (malformed,
unsupported_version), then place and order (wrong_environment, rolled_back_sequence, equivocation),
times last (`Untimely`, expired). The bundle's size and digest, and the hash of its spec.kv, are
checked by `staging`; `approve` comes when it is unpacked.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Optional

from firstboot.activate import signatures
from firstboot.activate.chain import Place as Place
from firstboot.activate.chain import Ring
from firstboot.base import documents
from firstboot.base.clock import from_rfc3339, rfc3339
from firstboot.base.documents import Digest, Identifier, Rule
from firstboot.base.errors import ByteorError, Untrusted
from firstboot.exchange.verdicts import Date, Wanted

VERSION = 1
LARGEST_BUNDLE = 16 << 30  # bytes
AHEAD_S = 300.0  # issued_at may lie this far ahead of our clock
POSTURES = ("dev", "staging", "prod")
NEEDS_APPROVAL = ("staging", "prod")
CAPABILITY = "deploy"
EXPIRED = "expired"

_Hash = Rule(lambda t: bool(re.fullmatch("sha256:[0-9a-f]{64}", t)), "sha256: and a digest")
_Posture = Rule(lambda t: t in POSTURES, f"one of {', '.join(POSTURES)}")
_Size = Rule(lambda n: 0 < n <= LARGEST_BUNDLE, f"from 1 to {LARGEST_BUNDLE}")


@dataclass(frozen=True)
class Bundle:
    """The bytes that a payload names."""

    sha256: Digest
    size: Annotated[int, _Size]


@dataclass(frozen=True)
class Deployment:
    """A verified payload (contract 3), and the SHA-256 of its bytes."""

    org_id: Identifier
    project_id: Identifier
    environment_id: Identifier
    environment_posture: Annotated[str, _Posture]
    deployment_id: Identifier
    sequence: int
    spec_hash: Annotated[str, _Hash]
    bundle: Bundle
    issued_at: Date
    payload_sha256: Digest  # no member of the payload: of its bytes
    expires_at: Optional[Date] = None

    @property
    def place(self) -> Place:
        """Return the environment that it is for."""
        return Place(self.org_id, self.project_id, self.environment_id)

    @property
    def facts(self) -> dict[str, Any]:
        """Return the members that journal, marker and verdicts keep of it."""
        names = ("deployment_id", "sequence", "spec_hash", "payload_sha256")
        return {name: getattr(self, name) for name in names}

    @property
    def name(self) -> str:
        """Return its directory's name: the sequence is digits, so no two deployments share one."""
        return f"{self.deployment_id}-{self.sequence}"


@dataclass(frozen=True)
class Highest:
    """The highest sequence ever verified for a place."""

    place: Place
    sequence: int
    payload_sha256: Digest


class Inadmissible(Untrusted):
    """A refusal of a signed and well-formed deployment, so that it can be named: `deployment`."""

    def __init__(self, code: str, message: str, deployment: Deployment) -> None:
        super().__init__(code, message)
        self.deployment = deployment


class Untimely(ByteorError):
    """All is in order but the time: the deployment waits, until `due` where that is known."""

    def __init__(
        self, code: str, message: str, deployment: Deployment, *, due: str | None = None
    ) -> None:
        super().__init__(message, hint="timedatectl status")
        self.code, self.deployment, self.due = code, deployment, due


def admit(
    raw_envelope: bytes, *, ring: Ring, place: Place, highest: Highest | None, now: float | None
) -> Deployment:
    """Return the deployment, or raise Untrusted with its code, or Untimely.

    `now`: seconds, None without a trusted clock. A deployment that is known (sequence and bytes
    equal `highest`) is returned like any other while its times hold. The error for one that is
    signed and well-formed carries it.
    """
    envelope = signatures.read_envelope(raw_envelope, kind=signatures.DEPLOYMENT)
    try:
        payload = envelope.verified(ring.for_deployments(now))
    except Untrusted as error:
        raise Untrusted(error.code, f"the deployment's envelope is refused: {error}") from None
    found = _parse(payload)
    if found.place != place:
        raise Inadmissible("wrong_environment", "the deployment is for another environment", found)
    if highest is not None and found.sequence <= highest.sequence:
        if found.sequence < highest.sequence:
            why = f"an older deployment is offered again: {found.sequence} after {highest.sequence}"
            raise Inadmissible("rolled_back_sequence", why, found)
        if found.payload_sha256 != highest.payload_sha256:
            why = f"another deployment under sequence {found.sequence}, which is taken"
            raise Inadmissible("equivocation", why, found)
    if now is None:
        why = "the clock of this host is not trusted yet: the deployment waits"
        raise Untimely("clock_not_trusted", why, found)
    if found.expires_at is not None and from_rfc3339(found.expires_at) <= now:
        raise Inadmissible(EXPIRED, f"the deployment expired at {found.expires_at}", found)
    early = from_rfc3339(found.issued_at) - AHEAD_S
    if early > now:
        why = f"the deployment is issued in the future, at {found.issued_at}: it waits"
        # The next whole second, since dates of ours have no fraction.
        raise Untimely("not_yet_valid", why, found, due=rfc3339(math.ceil(early)))
    return found


def _parse(payload: bytes) -> Deployment:
    """Return the verified payload as a value; Untrusted malformed or unsupported_version.

    Unknown members are ignored.
    """
    try:
        value = documents.load(payload)
        if not isinstance(value, dict):
            raise ValueError("it is not a mapping")
        if type(value.get("v")) is not int or value["v"] != VERSION:
            raise Untrusted(
                "unsupported_version", "the deployment is of a version that this host does not know"
            )
        digest = hashlib.sha256(payload).hexdigest()
        return documents.parse(Deployment, {**value, "payload_sha256": digest})
    except ValueError as error:
        raise Untrusted("malformed", f"the deployment is malformed: {error}") from None


def approve(raw_approval: bytes | None, deployment: Deployment, *, ring: Ring, now: float) -> None:
    """Raise Untrusted approval_* unless ``approval.cred`` approves this deployment.

    Needed in staging and prod; in dev one that is there is not looked at. A retired key still
    verifies an approval until that approval's own expiry, if it was issued before the key's end.
    """
    posture = deployment.environment_posture
    if posture not in NEEDS_APPROVAL:
        return
    if raw_approval is None:
        why = f"a deployment to {posture} needs an approval.cred in its bundle"
        raise Inadmissible("approval_missing", why, deployment)
    try:
        found, key = signatures.read_approval(raw_approval, ring.keys)
    except Untrusted as error:
        raise Inadmissible(error.code, str(error), deployment) from None
    place = Place(found.org_id, found.project_id, found.environment_id)
    here = place == deployment.place and found.environment_posture == posture
    issued, key_end = from_rfc3339(found.issued_at), key.not_after or found.issued_at
    # In this order: the same approval is refused for the same reason each time.
    for holds, code, why in (
        (found.spec_hash == deployment.spec_hash, "spec_hash", "is for another spec.kv"),
        (here, "environment", "is for another environment or posture"),
        (from_rfc3339(found.expires_at) > now, "expired", "has expired"),
        (issued <= now + AHEAD_S, "expired", f"is issued in the future, at {found.issued_at}"),
        (issued <= from_rfc3339(key_end), "expired", f"is by a key that had ended at {key_end}"),
        (CAPABILITY in found.capabilities, "capability", f"does not cover {CAPABILITY}"),
    ):
        if not holds:
            raise Inadmissible(f"approval_{code}", f"the approval {why}", deployment)


def wanted(deployment: Deployment) -> Wanted:
    """Return what tells the agent to fetch this deployment's bundle."""
    return Wanted(deployment.deployment_id, deployment.sequence, **vars(deployment.bundle))
