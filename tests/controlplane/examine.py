"""An examiner of deployments and key sets, straight from contract 2.5 and 3: which refusal does
this one deserve?

It shares no code with the side that signs, so that a test can show on the wire that a switch breaks
what it says it breaks. It is written to be read, not to be attacked: the host's own checks live in
`firstboot`.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MEMBERS = (
    "org_id",
    "project_id",
    "environment_id",
    "environment_posture",
    "deployment_id",
    "spec_hash",
    "issued_at",
)
UNPACKED_LIMIT, ENTRY_LIMIT, RATIO_LIMIT = 4 << 30, 4096, 200


class Refused(Exception):
    """`args[0]` is the code."""


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text.replace("Z", "+0000"), "%Y-%m-%dT%H:%M:%S%z")


def _unpadded(text: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _verifies(key: Mapping[str, Any], signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(_unpadded(key["public_key"])).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def opened(envelope: Mapping[str, Any], keys: Sequence[Mapping[str, Any]], *, kind: str) -> bytes:
    """The payload of a DSSE envelope that one active key of `keys` has signed."""
    if envelope["payloadType"] != kind:
        raise Refused("wrong_type")
    payload = base64.b64decode(envelope["payload"], validate=True)
    message = b" ".join(
        [b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload]
    )
    known = {key["kid"]: key for key in keys if key["status"] == "active"}
    signatures = [one for one in envelope["signatures"] if one["keyid"] in known]
    if not signatures:
        raise Refused("unknown_key")
    if not any(
        _verifies(known[one["keyid"]], base64.b64decode(one["sig"]), message) for one in signatures
    ):
        raise Refused("bad_signature")
    return payload


def deployment(
    envelope: Mapping[str, Any],
    keys: Sequence[Mapping[str, Any]],
    context: Mapping[str, str],
    *,
    now: datetime.datetime,
    last: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The verified payload; `context` has the three ids, `last` is the payload verified before."""
    raw = opened(envelope, keys, kind="application/vnd.byteor.deployment+json")
    try:
        payload = json.loads(raw)
    except ValueError as error:
        raise Refused("malformed") from error
    if not isinstance(payload, dict):
        raise Refused("malformed")
    if type(payload.get("v")) is not int or payload["v"] != 1:
        raise Refused("unsupported_version")
    if (
        not all(isinstance(payload.get(name), str) for name in MEMBERS)
        or type(payload.get("sequence")) is not int
    ):
        raise Refused("malformed")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", payload["deployment_id"]):
        raise Refused("malformed")
    if any(payload[name] != context[name] for name in ("org_id", "project_id", "environment_id")):
        raise Refused("wrong_environment")
    if last is not None and payload["sequence"] < last["sequence"]:
        raise Refused("rolled_back_sequence")
    if last is not None and payload["sequence"] == last["sequence"] and payload != last:
        raise Refused("equivocation")
    if "expires_at" in payload and _time(payload["expires_at"]) <= now:
        raise Refused("expired")
    if _time(payload["issued_at"]) > now + datetime.timedelta(minutes=5):
        raise Refused("not_yet_valid")
    return dict(payload)


def _unpacked(bundle: bytes) -> bytes:
    """The whole tar, at most what the limits allow."""
    parts, size, rest = [], 0, bundle
    while rest:
        inflate = zlib.decompressobj(wbits=31)
        while not inflate.eof:
            try:
                piece = inflate.decompress(rest, 1 << 20)
            except zlib.error as error:
                raise Refused("malformed_bundle") from error
            size += len(piece)
            if size > min(UNPACKED_LIMIT, RATIO_LIMIT * max(len(bundle), 4096)):
                raise Refused("unsafe_archive")
            parts.append(piece)
            rest = inflate.unconsumed_tail
            if not piece and not rest and not inflate.eof:
                raise Refused("malformed_bundle")
        rest = inflate.unused_data
    return b"".join(parts)


def _members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    members = tar.getmembers()
    if sum(1 for one in members if one.name == "spec.kv") != 1:
        raise Refused("malformed_bundle")
    names = [one.name.rstrip("/").lower() for one in members]
    files = {name for name, one in zip(names, members) if one.isreg()}
    for one, name in zip(members, names):
        inside = any("/".join(name.split("/")[:n]) in files for n in range(1, name.count("/") + 1))
        unsafe = (
            one.name.startswith("/") or ".." in one.name.split("/") or one.mode & 0o6000 or inside
        )
        if unsafe or not (one.isreg() or one.isdir()):
            raise Refused("unsafe_archive")
    if len(set(names)) != len(names) or len(names) > ENTRY_LIMIT:
        raise Refused("unsafe_archive")
    return members


def bundle(data: bytes, payload: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a bundle that is the one the payload names."""
    if len(data) != payload["bundle"]["size"]:
        raise Refused("bundle_size")
    if hashlib.sha256(data).hexdigest() != payload["bundle"]["sha256"]:
        raise Refused("bundle_digest")
    unpacked = _unpacked(data)
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            members = _members(tar)
            files = {one.name: tar.extractfile(one).read() for one in members if one.isreg()}  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError) as error:
        raise Refused("malformed_bundle") from error
    if "sha256:" + hashlib.sha256(files["spec.kv"]).hexdigest() != payload["spec_hash"]:
        raise Refused("spec_hash")
    return files


def approval(
    text: str | None,
    keys: Sequence[Mapping[str, Any]],
    payload: Mapping[str, Any],
    *,
    now: datetime.datetime,
) -> None:
    """Refused unless `text` approves the deployment; needed for staging and prod."""
    if payload["environment_posture"] not in ("staging", "prod"):
        return
    if text is None:
        raise Refused("approval_missing")
    try:
        part, signature = text.split(".")
        claims, raw_signature = json.loads(_unpadded(part)), _unpadded(signature)
    except (ValueError, binascii.Error) as error:
        raise Refused("approval_undecodable") from error
    key = next((one for one in keys if one["kid"] == claims["kid"]), None)
    if key is None or not _verifies(key, raw_signature, part.encode()):
        raise Refused("approval_signature")
    if claims["v"] != 1:
        raise Refused("approval_version")
    if claims["spec_hash"] != payload["spec_hash"]:
        raise Refused("approval_spec_hash")
    if any(claims[name] != payload[name] for name in MEMBERS[:4]):
        raise Refused("approval_environment")
    if _time(claims["expires_at"]) <= now:
        raise Refused("approval_expired")
    if "deploy" not in claims["capabilities"]:
        raise Refused("approval_capability")


def key_set(envelope: Mapping[str, Any], last: dict[str, Any] | None) -> dict[str, Any]:
    """The key set that may follow `last`; Refused with broken_chain, equivocation, rolled_back,
    wrong_type.
    """
    kind = "application/vnd.byteor.signing-keys+json"
    try:
        unverified = json.loads(base64.b64decode(envelope["payload"]))
        keys = last["keys"] if last is not None else unverified["keys"]
        raw = opened(envelope, keys, kind=kind)
        found = json.loads(raw)
        if type(found["version"]) is not int or "keys" not in found:
            raise Refused("malformed")
    except Refused as error:
        raise Refused(
            "broken_chain" if error.args[0] in ("unknown_key", "bad_signature") else error.args[0]
        ) from error
    except (KeyError, ValueError, TypeError) as error:
        raise Refused("malformed") from error
    if last is not None and found["version"] < last["version"]:
        raise Refused("rolled_back")
    if last is not None and found["version"] == last["version"] and found != last:
        raise Refused("equivocation")
    return dict(found)
