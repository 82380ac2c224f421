"""One deployment, signed well, or with exactly one rule of contract 3 broken: each refusal reason
has its way.

A deployment is made in stages (claims, approval, bundle, payload, raw, signer, kind, envelope); a
spoiler changes what one stage made. `rolled_back_sequence` and `equivocation` need a history and
are made in `deployments`.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from tests.controlplane import bundles, signing
from tests.controlplane.credentials import Place
from tests.controlplane.signing import SigningKey

GATED = ("staging", "prod")
HISTORY = (
    "rolled_back_sequence",
    "equivocation",
)  # broken by their place in a sequence, not by their content
STRANGER = SigningKey.from_seed("kid-stranger", b"\x5a" * 32)
Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Made:
    """A deployment as the plane hands it out."""

    envelope: dict[str, Any]
    bundle: bytes
    payload: dict[str, Any]


def stamp(at: datetime.datetime, **shift: float) -> str:
    return (at + datetime.timedelta(**shift)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _set(**members: Any) -> Change:
    return lambda value: {**value, **members}


def _flip(text: str) -> str:
    """Another valid base64 text of the same length."""
    return ("B" if text[0] == "A" else "A") + text[1:]


def _flip_signature(envelope: dict[str, Any]) -> dict[str, Any]:
    (one,) = envelope["signatures"]
    return {**envelope, "signatures": [{**one, "sig": _flip(one["sig"])}]}


def _swap_payload(envelope: dict[str, Any]) -> dict[str, Any]:
    payload = base64.b64decode(envelope["payload"]).replace(b'"v":1', b'"v":1 ')
    return {**envelope, "payload": base64.b64encode(payload).decode()}


def _without(name: str) -> Change:
    return lambda value: {key: member for key, member in value.items() if key != name}


def _resized(by: int) -> Change:
    return lambda value: {
        **value,
        "bundle": {**value["bundle"], "size": value["bundle"]["size"] + by},
    }


def _times(**shifts: float | None) -> Change:
    """Move issued_at and expires_at to minutes from the deployment's own issued_at."""

    def change(value: dict[str, Any]) -> dict[str, Any]:
        at = datetime.datetime.strptime(value["issued_at"], "%Y-%m-%dT%H:%M:%SZ")
        return {
            **value,
            **{
                name: stamp(at, minutes=shift)
                for name, shift in shifts.items()
                if shift is not None
            },
        }

    return change


# code -> variant -> (stage, change). The first variant of each is the default.
SPOILERS: dict[str, dict[str, tuple[str, Change]]] = {
    "bad_signature": {
        "flipped": ("envelope", _flip_signature),
        "payload_changed": ("envelope", _swap_payload),
        "another_key": ("signer", lambda key: SigningKey(key.kid, STRANGER.private)),
    },
    "unknown_key": {"stranger": ("signer", lambda key: STRANGER)},
    "wrong_type": {
        "key_set": ("kind", lambda kind: signing.KEY_SET_TYPE),
        "json": ("kind", lambda kind: "application/json"),
    },
    "unsupported_version": {"newer": ("payload", _set(v=2)), "text": ("payload", _set(v="1"))},
    "malformed": {
        "not_json": ("raw", lambda raw: raw[:-1]),
        "not_object": ("raw", lambda raw: b"[1]"),
        "missing_member": ("payload", _without("spec_hash")),
        "sequence_text": ("payload", _set(sequence="7")),
        "unsafe_id": ("payload", _set(deployment_id="../../etc")),
    },
    "wrong_environment": {
        "environment": ("payload", _set(environment_id="env_of_another")),
        "project": ("payload", _set(project_id="prj_of_another")),
        "organisation": ("payload", _set(org_id="org_of_another")),
    },
    "expired": {"an_hour_ago": ("payload", _times(issued_at=-120, expires_at=-60))},
    "not_yet_valid": {"ten_minutes": ("payload", _times(issued_at=10))},
    "bundle_digest": {
        "another": ("payload", lambda p: {**p, "bundle": {**p["bundle"], "sha256": "0" * 64}})
    },
    "bundle_size": {"larger": ("payload", _resized(1)), "smaller": ("payload", _resized(-1))},
    "malformed_bundle": {name: ("bundle", change) for name, change in bundles.MALFORMED.items()},
    "spec_hash": {"another": ("payload", _set(spec_hash="sha256:" + "0" * 64))},
    "unsafe_archive": {name: ("bundle", change) for name, change in bundles.UNSAFE.items()},
    "approval_missing": {"none": ("approval", lambda text: None)},
    "approval_undecodable": {
        "no_dot": ("approval", lambda text: text.replace(".", "")),
        "not_base64": ("approval", lambda text: "!" + text[1:]),
        "padded": ("approval", lambda text: text + "=="),
        "empty": ("approval", lambda text: ""),
    },
    "approval_signature": {
        "flipped": ("approval", lambda text: text.split(".")[0] + "." + _flip(text.split(".")[1])),
        "unknown_kid": ("approver", lambda key: STRANGER),
        "another_key": ("approver", lambda key: SigningKey(key.kid, STRANGER.private)),
    },
    "approval_version": {"newer": ("claims", _set(v=2))},
    "approval_spec_hash": {"another": ("claims", _set(spec_hash="sha256:" + "0" * 64))},
    "approval_environment": {
        "environment": ("claims", _set(environment_id="env_of_another")),
        "posture": ("claims", _set(environment_posture="dev")),
    },
    "approval_expired": {"an_hour_ago": ("claims", _times(issued_at=-120, expires_at=-60))},
    "approval_capability": {
        "another": ("claims", _set(capabilities=["observe"])),
        "none": ("claims", _set(capabilities=[])),
    },
}
CODES: list[str] = [*SPOILERS, *HISTORY]


def spoiler(broken: str | None, variant: str | None) -> tuple[str, Change]:
    """Return stage and change for a refusal code; nothing broken is a stage that does not exist."""
    if broken is None or broken in HISTORY:
        return "", lambda value: value
    if broken not in SPOILERS:
        raise ValueError(f"no refusal {broken}; there are {', '.join(CODES)}")
    variants = SPOILERS[broken]
    if variant is not None and variant not in variants:
        raise ValueError(f"{broken} has no variant {variant}; there are {', '.join(variants)}")
    return variants[variant or next(iter(variants))]


def claims_for(
    place: Place, posture: str, spec_hash: str, kid: str, *, now: datetime.datetime
) -> dict[str, Any]:
    """What an approval says when it is in order: valid for a day, covering `deploy`."""
    digest = hashlib.sha256(f"{spec_hash}{kid}{stamp(now)}".encode()).hexdigest()[:16]
    return {
        "v": 1,
        "kid": kid,
        "org_id": place[0],
        "project_id": place[1],
        "environment_id": place[2],
        "environment_posture": posture,
        "spec_hash": spec_hash,
        "capabilities": ["deploy"],
        "issued_at": stamp(now),
        "expires_at": stamp(now, days=1),
        "issued_by": "operator@example.invalid",
        "approval_id": f"apr_{digest}",
    }


def spec_hash_of(spec: bytes) -> str:
    return "sha256:" + hashlib.sha256(spec).hexdigest()


def make(
    place: Place,
    files: Mapping[str, bytes],
    *,
    key: SigningKey,
    deployment_id: str,
    sequence: int,
    posture: str = "dev",
    now: datetime.datetime,
    expires_in_s: float | None = None,
    broken: str | None = None,
    variant: str | None = None,
) -> Made:
    """Make a deployment of `files` (with spec.kv), signed by `key`, with an approval where the
    posture needs one.
    """
    at, change = spoiler(broken, variant)

    def stage(name: str, value: Any) -> Any:
        return change(value) if at == name else value

    content = dict(files)
    spec_hash = spec_hash_of(content["spec.kv"])
    if posture in GATED and "approval.cred" not in content:
        approver = stage("approver", key)
        claims = stage("claims", claims_for(place, posture, spec_hash, approver.kid, now=now))
        text = stage("approval", signing.approval(claims, approver))
        if text is not None:
            content["approval.cred"] = text.encode()
    bundle = change(content) if at == "bundle" else bundles.build(content)
    payload: dict[str, Any] = {
        "v": 1,
        "org_id": place[0],
        "project_id": place[1],
        "environment_id": place[2],
        "environment_posture": posture,
        "deployment_id": deployment_id,
        "sequence": sequence,
        "spec_hash": spec_hash,
        "bundle": {"sha256": hashlib.sha256(bundle).hexdigest(), "size": len(bundle)},
        "issued_at": stamp(now),
    }
    if expires_in_s is not None:
        payload["expires_at"] = stamp(now, seconds=expires_in_s)
    payload = stage("payload", payload)
    raw = stage("raw", signing.canonical(payload))
    envelope = signing.envelope(stage("kind", signing.DEPLOYMENT_TYPE), raw, [stage("signer", key)])
    return Made(stage("envelope", envelope), bundle, payload)
