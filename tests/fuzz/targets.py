"""What is parsed from outside, as functions of bytes: they return, or raise what the product's
callers expect.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable

from firstboot.activate import admission, chain, signatures
from firstboot.activate.chain import Place
from firstboot.activate.unpack import unpack
from firstboot.api import messages
from firstboot.base import documents
from firstboot.base.errors import Untrusted
from firstboot.exchange.inbox import unverified_request
from firstboot.exchange.settings import Settings

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
PLACE = Place("org_1", "prj_1", "env_1")


def vectors(name: str) -> dict[str, Any]:
    return dict(json.loads((VECTORS / f"{name}.json").read_text()))


KEYS = tuple(signatures.Key.parse(key) for key in vectors("envelopes")["keys"])
RING = chain.Ring(PLACE, chain.PINNED, 1, None, KEYS, (), None)


def envelope(data: bytes) -> None:
    """A deployment's envelope, as the agent lays it into the inbox."""
    with contextlib.suppress(Untrusted, admission.Untimely):
        admission.admit(data, ring=RING, place=PLACE, highest=None, now=1_780_000_000.0)


def payload(data: bytes) -> None:
    """A payload that is signed: what the plane itself could get wrong."""
    with contextlib.suppress(Untrusted):
        admission._parse(data)


def approval(data: bytes) -> None:
    with contextlib.suppress(Untrusted):
        signatures.read_approval(data, KEYS)


def key_sets(data: bytes) -> None:
    """The answer to request 7, never an error: a set that may not follow is remembered as
    refused.
    """
    try:
        value = documents.load(data)
    except ValueError:
        return
    found = value.get("key_sets") if isinstance(value, dict) else None
    if isinstance(found, list):
        chain.adopt(chain.unanchored(Settings(), PLACE), found, at="2026-06-01T12:00:00Z")


def bundle(data: bytes) -> None:
    """An archive; whatever it holds, nothing is written beside the new directory."""
    with tempfile.TemporaryDirectory() as scratch:
        packed, into = Path(scratch, "bundle"), Path(scratch, "into")
        packed.write_bytes(data)
        with contextlib.suppress(Untrusted):
            unpack(packed, into, packed_size=len(data))
        assert {path.name for path in Path(scratch).iterdir()} <= {"bundle", "into"}
        shutil.rmtree(into, ignore_errors=True)


def replies(data: bytes) -> None:
    """Every JSON reply of the plane, and the agent's request as the activator reads it."""
    unverified_request(data)
    try:
        value = documents.load(data)
    except ValueError:
        return
    messages.HeartbeatReply.parse(value)
    problem = messages.Problem.parse(value)
    assert problem is None or problem.said().isprintable()
    for parse in (messages.EnrollmentReply.parse, messages.agent_page):
        with contextlib.suppress(ValueError):
            parse(value)
    messages.retry_after(data.decode("latin-1"), now=0.0)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (envelope, payload, approval, key_sets, bundle, replies)
}


def seeds(name: str) -> list[bytes]:
    """Good and bad examples to begin with: the golden vectors."""
    if name in ("envelope", "payload"):
        found = [
            case["envelope"]
            for case in vectors("envelopes")["cases"]
            if isinstance(case["envelope"], dict)
        ]
        if name == "envelope":
            return [json.dumps(one).encode() for one in found]
        return [base64.b64decode(str(one.get("payload", ""))) for one in found]
    if name == "approval":
        return [str(case["credential"]).encode() for case in vectors("approvals")["cases"]]
    if name == "key_sets":
        return [
            json.dumps({"key_sets": case["key_sets"]}).encode()
            for case in vectors("keysets")["cases"]
        ]
    if name == "bundle":
        return [base64.b64decode(case["bundle"]) for case in vectors("bundles")["cases"]]
    return [
        b'{"agent_id": "agt_1", "api_key": "key-key-key", "signing_keys": []}',
        b'{"agents": [{"agent_id": "a"}], "next": null}',
        b'{"heartbeat_interval_s": 30, "deployment_id": "d", "deployment_sequence": 1}', b'{"code": "x", "title": "y"}',
    ]  # fmt: skip
