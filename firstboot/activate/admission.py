"""May this deployment run here: envelope, key ring, place, highest sequence and time, to a value or a refusal. Pure.

The order is fixed, and every check has its code (contract 3): the signature before the payload is parsed (malformed,
wrong_type, unknown_key, bad_signature), then its shape (malformed, unsupported_version), then where and in which order it
belongs (wrong_environment, rolled_back_sequence, equivocation), times last (`Untimely`, expired, not_yet_valid). The
bundle's size and digest, and the hash of its spec.kv, are its reader's to check; `approve` comes when it is unpacked.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Annotated, Optional

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
    def name(self) -> str:
        """Return its directory's name: the sequence is digits, so no two deployments share one."""
        return f"{self.deployment_id}-{self.sequence}"


@dataclass(frozen=True)
class Highest:
    """The highest sequence ever verified for this place."""

    sequence: int
    payload_sha256: str


class Inadmissible(Untrusted):
    """A refusal of a deployment that is signed and well-formed, so that it can be named: `deployment`."""

    def __init__(self, code: str, message: str, deployment: Deployment) -> None:
        super().__init__(code, message)
        self.deployment = deployment


class Untimely(ByteorError):
    """Everything is in order but the time: the deployment waits, until `due` where that is known."""

    def __init__(
        self, code: str, message: str, deployment: Deployment, *, due: str | None = None
    ) -> None:
        super().__init__(message, hint="timedatectl status")
        self.code, self.deployment, self.due = code, deployment, due


def admit(
    raw_envelope: bytes, *, ring: Ring, place: Place, highest: Highest | None, now: float | None
) -> Deployment:
    """Return the deployment, or raise Untrusted with its code, or Untimely. `now`: seconds, None without a trusted clock.

    A deployment that is known (sequence and bytes equal `highest`) is returned like any other while its times hold; a
    caller that has dealt with it does nothing. The error for one that is signed and well-formed carries it.
    """
    envelope = signatures.read_envelope(raw_envelope, kind=signatures.DEPLOYMENT)
    try:
        payload = envelope.verified(ring.for_deployments(now))
    except Untrusted as error:
        raise Untrusted(error.code, f"the deployment's envelope is refused: {error}") from None
    found = _parse(payload)
    if found.place != place:
        raise Inadmissible("wrong_environment", "the deployment is for another environment", found)
    _in_order(found, highest)
    if now is None:
        raise Untimely(
            "clock_not_trusted",
            "the clock of this host is not trusted yet: the deployment waits",
            found,
        )
    if found.expires_at is not None and from_rfc3339(found.expires_at) <= now:
        raise Inadmissible(EXPIRED, f"the deployment expired at {found.expires_at}", found)
    early = from_rfc3339(found.issued_at) - AHEAD_S
    if early > now:
        said = f"the deployment is issued in the future, at {found.issued_at}: it waits"
        # The next whole second, since dates of ours have no fraction.
        raise Untimely("not_yet_valid", said, found, due=rfc3339(math.ceil(early)))
    return found


def _in_order(found: Deployment, highest: Highest | None) -> None:
    if highest is None or found.sequence > highest.sequence:
        return
    if found.sequence < highest.sequence:
        why = f"sequence {found.sequence} comes after {highest.sequence}"
        raise Inadmissible(
            "rolled_back_sequence", f"an older deployment is offered again: {why}", found
        )
    if found.payload_sha256 != highest.payload_sha256:
        raise Inadmissible(
            "equivocation",
            f"another deployment under sequence {found.sequence}, which is taken",
            found,
        )


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
    if deployment.environment_posture not in NEEDS_APPROVAL:
        return

    def require(condition: bool, code: str, message: str) -> None:
        if not condition:
            raise Inadmissible(code, message, deployment)

    posture = deployment.environment_posture
    if raw_approval is None:
        why = f"a deployment to {posture} needs an approval.cred in its bundle"
        raise Inadmissible("approval_missing", why, deployment)
    try:
        found, key = signatures.read_approval(raw_approval, ring.keys)
    except Untrusted as error:
        raise Inadmissible(error.code, str(error), deployment) from None
    require(
        found.spec_hash == deployment.spec_hash,
        "approval_spec_hash",
        "the approval is for another spec.kv",
    )
    place = Place(found.org_id, found.project_id, found.environment_id)
    require(
        place == deployment.place and found.environment_posture == posture,
        "approval_environment",
        "the approval is for another environment or posture",
    )
    issued = from_rfc3339(found.issued_at)
    require(from_rfc3339(found.expires_at) > now, "approval_expired", "the approval has expired")
    require(
        issued <= now + AHEAD_S,
        "approval_expired",
        f"the approval is issued in the future, at {found.issued_at}",
    )
    require(
        key.not_after is None or issued <= from_rfc3339(key.not_after),
        "approval_expired",
        f"the approval is signed with a key that ended before, at {key.not_after}",
    )
    require(
        CAPABILITY in found.capabilities,
        "approval_capability",
        f"the approval does not cover {CAPABILITY}",
    )


def wanted(deployment: Deployment) -> Wanted:
    """Return what tells the agent to fetch this deployment's bundle."""
    return Wanted(
        deployment.deployment_id,
        deployment.sequence,
        deployment.bundle.sha256,
        deployment.bundle.size,
    )
