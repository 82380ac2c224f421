"""DSSE envelopes by somebody else's hand: what securesystemslib signs verifies here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.activate.signatures import DEPLOYMENT, KEY_SET, Key, read_envelope
from firstboot.base.errors import Untrusted
from tests.controlplane import signing

dsse = pytest.importorskip("securesystemslib.dsse")
signers = pytest.importorskip("securesystemslib.signer")

ONE, OTHER = (signers.CryptoSigner.generate_ed25519() for _ in range(2))


def ours(signer: Any) -> Key:
    public = signing.b64url(bytes.fromhex(signer.public_key.keyval["public"]))
    return Key(signer.public_key.keyid, "Ed25519", public, "active")


def signed(payload: bytes, kind: str, *by: Any) -> dict[str, Any]:
    envelope = dsse.Envelope(payload, kind, {})
    for signer in by:
        envelope.sign(signer)
    return dict(envelope.to_dict())


def verified(envelope: dict[str, Any], kind: str, *by: Any) -> bytes:
    raw = json.dumps(envelope).encode()
    return read_envelope(raw, kind=kind).verified([ours(signer) for signer in by])


@given(payload=st.binary(max_size=300), kind=st.sampled_from([DEPLOYMENT, KEY_SET]))
def test_what_a_peer_signs_verifies_here(payload: bytes, kind: str) -> None:
    """By one signer or several, of which one counts."""
    assert verified(signed(payload, kind, ONE), kind, ONE) == payload
    assert verified(signed(payload, kind, OTHER, ONE), kind, ONE) == payload


@given(payload=st.binary(max_size=300))
def test_with_types_swapped_it_does_not(payload: bytes) -> None:
    """The type is signed: an envelope of one kind cannot pose as the other, relabelled or not."""
    swapped = signed(payload, KEY_SET, ONE)
    with pytest.raises(Untrusted) as caught:
        verified(swapped, DEPLOYMENT, ONE)
    assert caught.value.code == "wrong_type"
    for kind, code in ((DEPLOYMENT, "bad_signature"), (KEY_SET, "unknown_key")):
        with pytest.raises(Untrusted) as caught:
            verified({**swapped, "payloadType": kind}, kind, ONE if code[0] == "b" else OTHER)
        assert caught.value.code == code


def test_what_the_reference_control_plane_signs_verifies_there(control_plane: Any) -> None:
    """The other way round, with the key set that lists the key."""
    envelope = control_plane.key_sets()[0]
    found = dsse.Envelope.from_dict(json.loads(json.dumps(envelope)))
    listed = json.loads(found.payload)["keys"][0]
    public = Key.parse(listed).public.hex()
    key = signers.SSlibKey(listed["kid"], "ed25519", "ed25519", {"public": public})
    assert list(found.verify([key], 1)) == [listed["kid"]]
