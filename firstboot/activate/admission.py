"""May this deployment run here: envelope, key ring, place, highest sequence and time, to a value or a refusal. Pure.

The order is fixed, and every check has its code (contract 3): the signature before the payload is parsed (malformed,
wrong_type, unknown_key, bad_signature), then its shape (malformed, unsupported_version), then where and in which order it
belongs (wrong_environment, rolled_back_sequence, equivocation), times last (`Untimely`, expired, not_yet_valid). The
bundle's size and digest, and the hash of its spec.kv, are its reader's to check; `approve` comes when it is unpacked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstboot.activate import signatures
from firstboot.activate.chain import Place as Place
from firstboot.activate.chain import Ring
from firstboot.base import documents
from firstboot.base.clock import from_rfc3339
from firstboot.base.documents import IDENTIFIER
from firstboot.base.errors import ByteorError, Untrusted

VERSION = 1
LARGEST_BUNDLE = 16 << 30  # bytes
AHEAD_S = 300.0  # issued_at may lie this far ahead of our clock
POSTURES = ("dev", "staging", "prod")
NEEDS_APPROVAL = ("staging", "prod")
CAPABILITY = "deploy"

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SPEC_HASH = re.compile(r"sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Deployment:
    """A verified payload, and the SHA-256 of its bytes."""

    org_id: str
    project_id: str
    environment_id: str
    environment_posture: str
    deployment_id: str
    sequence: int
    spec_hash: str
    bundle_sha256: str
    bundle_size: int
    issued_at: str
    expires_at: str | None
    payload_sha256: str

    @property
    def place(self) -> Place:
        return Place(self.org_id, self.project_id, self.environment_id)

    @property
    def name(self) -> str:
        """Its directory's name: the sequence has digits only, so no two deployments share one."""
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
    """Everything is in order but the clock, which nothing vouches for: the deployment waits."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(
            "the clock of this host is not trusted yet: the deployment waits",
            hint="timedatectl status",
        )
        self.deployment = deployment


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
        raise Untimely(found)
    if found.expires_at is not None and from_rfc3339(found.expires_at) <= now:
        raise Inadmissible("expired", f"the deployment expired at {found.expires_at}", found)
    if from_rfc3339(found.issued_at) > now + AHEAD_S:
        raise Inadmissible(
            "not_yet_valid", f"the deployment is issued in the future, at {found.issued_at}", found
        )
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
    """The verified payload as a value; Untrusted malformed or unsupported_version. Unknown members are ignored."""
    try:
        value = documents.load(payload)
        if not isinstance(value, dict):
            raise ValueError("it is not a mapping")
        if type(value.get("v")) is not int or value["v"] != VERSION:
            raise Untrusted(
                "unsupported_version", "the deployment is of a version that this host does not know"
            )
        return _deployment(value, hashlib.sha256(payload).hexdigest())
    except ValueError as error:
        raise Untrusted("malformed", f"the deployment is malformed: {error}") from None


def _deployment(value: Mapping[str, Any], payload_sha256: str) -> Deployment:
    def text(source: Mapping[str, Any], name: str, shape: re.Pattern[str]) -> str:
        found = source.get(name)
        if not isinstance(found, str) or not shape.match(found):
            raise ValueError(f"{name} is not of its shape")
        return found

    bundle, posture = value.get("bundle"), value.get("environment_posture")
    if not isinstance(bundle, dict):
        raise ValueError("bundle is not a mapping")
    size = signatures.whole_number(bundle, "size")
    if not 0 < size <= LARGEST_BUNDLE:
        raise ValueError(f"bundle.size is not from 1 to {LARGEST_BUNDLE}")
    if posture not in POSTURES:
        raise ValueError(f"environment_posture is not one of {', '.join(POSTURES)}")
    return Deployment(
        org_id=text(value, "org_id", IDENTIFIER),
        project_id=text(value, "project_id", IDENTIFIER),
        environment_id=text(value, "environment_id", IDENTIFIER),
        environment_posture=posture,
        deployment_id=text(value, "deployment_id", IDENTIFIER),
        sequence=signatures.whole_number(value, "sequence"),
        spec_hash=text(value, "spec_hash", _SPEC_HASH),
        bundle_sha256=text(bundle, "sha256", _SHA256),
        bundle_size=size,
        issued_at=_date(value.get("issued_at"), "issued_at"),
        expires_at=None
        if value.get("expires_at") is None
        else _date(value["expires_at"], "expires_at"),
        payload_sha256=payload_sha256,
    )


def _date(value: Any, name: str) -> str:
    signatures.seconds(value, name)
    return str(value)


def approve(
    raw_approval: bytes | None, deployment: Deployment, *, ring: Ring, now: float | None
) -> None:
    """Untrusted approval_* unless the bytes of ``approval.cred`` approve this deployment; needed in staging and prod.

    In dev none is needed, and one that is there is not looked at. Without a trusted clock: Untimely.
    """
    if deployment.environment_posture not in NEEDS_APPROVAL:
        return
    if raw_approval is None:
        why = (
            f"a deployment to {deployment.environment_posture} needs an approval.cred in its bundle"
        )
        raise Inadmissible("approval_missing", why, deployment)
    try:
        found = signatures.read_approval(raw_approval, ring.for_approvals())
    except Untrusted as error:
        raise Inadmissible(error.code, str(error), deployment) from None
    if found.spec_hash != deployment.spec_hash:
        raise Inadmissible("approval_spec_hash", "the approval is for another spec.kv", deployment)
    place = Place(found.org_id, found.project_id, found.environment_id)
    if place != deployment.place or found.environment_posture != deployment.environment_posture:
        raise Inadmissible(
            "approval_environment", "the approval is for another environment or posture", deployment
        )
    if now is None:
        raise Untimely(deployment)
    if found.expires_at <= now:
        raise Inadmissible("approval_expired", "the approval has expired", deployment)
    if CAPABILITY not in found.capabilities:
        raise Inadmissible(
            "approval_capability", f"the approval does not cover {CAPABILITY}", deployment
        )


def wanted(deployment: Deployment) -> dict[str, Any]:
    """What tells the agent to bring this deployment's bundle."""
    return {
        "deployment_id": deployment.deployment_id,
        "sequence": deployment.sequence,
        "sha256": deployment.bundle_sha256,
        "size": deployment.bundle_size,
    }
