"""Envelopes, keys and approvals: only what the plane signed comes out, everything else is one of
our refusals.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.activate import signatures
from firstboot.activate.signatures import (
    DEPLOYMENT,
    KEY_SET,
    Key,
    KeySet,
    read_approval,
    read_envelope,
)
from firstboot.base.errors import Untrusted
from firstboot.base.files import JSON_LIMIT
from tests.controlplane import signing
from tests.controlplane.signing import SigningKey

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
APPROVALS = json.loads((VECTORS / "approvals.json").read_text())
ONE, TWO = (SigningKey.from_seed(f"kid-{n}", bytes([n]) * 32) for n in (1, 2))
PAYLOAD = b'{"v":1}'
GOOD = signing.envelope(DEPLOYMENT, PAYLOAD, [ONE])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
NAMES = st.sampled_from(
    [
        "payload",
        "payloadType",
        "signatures",
        "keyid",
        "sig",
        "keys",
        "version",
        "kid",
        "alg",
        "status",
        "public_key",
        "not_after",
        "v",
        "capabilities",
        "expires_at",
    ]
)
ANYTHING = st.recursive(
    SCALARS | st.sampled_from([DEPLOYMENT, "kid-1", "Ed25519", "active", "AAAA"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=20,
)


def key(of: SigningKey, **members: Any) -> Key:
    return Key.parse({**signing.key_entry(of), **members})


def raw_key(public: bytes) -> Key:
    """A key whose bytes nothing judged."""
    return Key("kid-1", "Ed25519", signing.b64url(public), "active")


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(Untrusted) as caught:
        call()
    return caught.value.code


def opened(envelope: Any, *keys: Key, kind: str = DEPLOYMENT) -> bytes:
    raw = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    return read_envelope(raw, kind=kind).verified(keys or (key(ONE),))


def signed(*members: dict[str, Any]) -> dict[str, Any]:
    return {**GOOD, "signatures": list(members)}


SIGNATURE = GOOD["signatures"][0]
STRANGERS = signing.envelope(DEPLOYMENT, PAYLOAD, [TWO])["signatures"][0]
BAD = {**SIGNATURE, "sig": STRANGERS["sig"]}


@pytest.mark.parametrize(
    "envelope",
    [
        GOOD,
        {**GOOD, "unknown": [1]},
        signed(SIGNATURE, SIGNATURE),
        signed(BAD, SIGNATURE),
        signed(SIGNATURE, BAD),
        signed(STRANGERS, {"sig": "AAAA"}, {"keyid": "", "sig": ""}, SIGNATURE),
        signed({**SIGNATURE, "sig": "AAAA"}, SIGNATURE),
    ],
)
def test_one_good_signature_by_a_key_that_counts_is_enough(envelope: dict[str, Any]) -> None:
    """Others' signatures, broken ones, repetition and order change nothing."""
    assert opened(envelope) == PAYLOAD


def changed(**members: Any) -> dict[str, Any]:
    return {**GOOD, **members}


@pytest.mark.parametrize(
    ("code", "envelope"),
    [
        ("unknown_key", signed()),
        ("unknown_key", signed(STRANGERS)),
        ("unknown_key", signed({"sig": SIGNATURE["sig"]})),
        ("unknown_key", signed({"keyid": None, "sig": SIGNATURE["sig"]})),
        ("unknown_key", signed({**SIGNATURE, "keyid": "KID-1"})),
        ("bad_signature", signed(BAD)),
        ("bad_signature", signed({**SIGNATURE, "sig": ""})),
        ("bad_signature", signed({**SIGNATURE, "sig": base64.b64encode(bytes(64)).decode()})),
        ("bad_signature", changed(payload=base64.b64encode(b'{"v":2}').decode())),
        ("bad_signature", changed(payload="")),
        # Signed as a plain message, or over other framing: not the pre-authentication encoding.
        (
            "bad_signature",
            signed({**SIGNATURE, "sig": base64.b64encode(ONE.private.sign(PAYLOAD)).decode()}),
        ),
        ("wrong_type", signing.envelope(KEY_SET, PAYLOAD, [ONE])),
        ("wrong_type", changed(payloadType=DEPLOYMENT + " ")),
        ("wrong_type", changed(payloadType="é")),
        ("malformed", changed(payloadType=None)),
        ("malformed", changed(payload=None)),
        ("malformed", changed(payload=[1])),
        ("malformed", changed(payload=GOOD["payload"] + "\n")),
        ("malformed", changed(payload=GOOD["payload"].rstrip("="))),
        ("malformed", changed(payload=GOOD["payload"] + "AAAA=")),
        ("malformed", changed(payload="QQ==QQ==")),
        ("malformed", changed(payload="QR==")),  # the unused bits are not zero
        ("malformed", changed(payload="_-__")),
        ("malformed", changed(payload="é")),
        ("malformed", changed(signatures=None)),
        ("malformed", changed(signatures={})),
        ("malformed", changed(signatures=[SIGNATURE] * (signatures.MOST_SIGNATURES + 1))),
        ("malformed", signed({**SIGNATURE, "keyid": 1})),
        ("malformed", signed({"keyid": "kid-1"})),
        ("malformed", changed(signatures=[None])),
        (
            "malformed",
            signed({**SIGNATURE, "sig": SIGNATURE["sig"].replace("+", "-").replace("/", "_")}),
        ),
        ("malformed", [GOOD]),
        ("malformed", b""),
        ("malformed", b"null"),
        ("malformed", b"\xff\xfe"),
        ("malformed", json.dumps(GOOD).encode()[:-1]),
        ("malformed", json.dumps(GOOD).encode()[:-1] + b', "payload": "QUFB"}'),
        ("malformed", b"[" * 100_000),
        ("malformed", b" " * JSON_LIMIT + json.dumps(GOOD).encode()),
    ],
)
def test_what_is_refused_has_its_code(code: str, envelope: Any) -> None:
    """Stripped, foreign, changed, reframed and malformed envelopes, each by its own code."""
    assert code_of(lambda: opened(envelope)) == code


def test_a_signature_does_not_move_between_types() -> None:
    """The type is signed: a key set's bytes do not become a deployment by naming them so."""
    moved = {**signing.envelope(KEY_SET, PAYLOAD, [ONE]), "payloadType": DEPLOYMENT}
    assert code_of(lambda: opened(moved)) == "bad_signature"


def test_a_key_with_which_anybody_can_sign_is_no_key() -> None:
    """A point of small order verifies a made-up signature for every message: such a key is refused
    when it is read.
    """
    neutral = b"\x01" + bytes(31)
    anybody = neutral + bytes(32)
    assert raw_key(neutral).verifies(anybody, b"any message at all")
    for point in signatures.SMALL_ORDER:
        for sign in (0, 0x80):
            text = signing.b64url(point[:-1] + bytes([point[-1] | sign]))
            with pytest.raises(ValueError, match="only its owner can sign"):
                key(ONE, public_key=text)


@given(
    public=st.binary(min_size=32, max_size=32),
    signature=st.binary(max_size=80),
    message=st.binary(max_size=20),
)
def test_bytes_that_are_no_point_verify_nothing(
    public: bytes, signature: bytes, message: bytes
) -> None:
    """Whatever 32 bytes a set lists as a key, verifying neither crashes nor succeeds by chance."""
    assert not raw_key(public).verifies(signature, message) or len(signature) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"kid": ""}, {"kid": "../x"}, {"kid": 1}, {"kid": None}, {"kid": "a" * 129},
        {"alg": "RSA"}, {"alg": None}, {"alg": "ed25519"}, {"status": "revoked"}, {"status": None}, {"status": []},
        {"public_key": None}, {"public_key": ""}, {"public_key": "AAAA"}, {"public_key": signing.b64url(ONE.public) + "="},
        {"public_key": signing.b64url(ONE.public)[:-1] + "x"}, {"public_key": base64.b64encode(b"\xff" * 32).decode()},
        {"public_key": signing.b64url(ONE.public) + "\n"}, {"public_key": "é" * 43},
        {"not_after": "tomorrow"}, {"not_after": 1}, {"not_after": ""}, {"not_after": "0001-01-01T00:00:00+23:59x"},
    ],
)  # fmt: skip
def test_a_key_that_is_not_of_its_shape_spoils_the_set(change: dict[str, Any]) -> None:
    """Nothing of a malformed set is taken; the sentence names no value."""
    entries = [signing.key_entry(TWO), {**signing.key_entry(ONE), **change}]
    with pytest.raises(ValueError, match=r".") as caught:
        KeySet.parse(json.dumps({"version": 1, "keys": entries}).encode())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": 1}',
        b'{"version": 1, "keys": []}',
        b'{"version": 1, "keys": {}}',
        b'{"keys": [1]}',
        *(
            json.dumps({"version": version, "keys": [signing.key_entry(ONE)]}).encode()
            for version in (True, "1", 1.0, -1, None, 2**53)
        ),
        json.dumps(
            {
                "version": 1,
                "keys": [signing.key_entry(ONE), signing.key_entry(ONE, status="retired")],
            }
        ).encode(),
        json.dumps(
            {
                "version": 1,
                "keys": [{**signing.key_entry(ONE), "kid": f"kid-{n}"} for n in range(65)],
            }
        ).encode(),
    ],
)
def test_a_set_that_is_not_of_its_shape_is_a_value_error(payload: bytes) -> None:
    """Versions are whole numbers, kids are there once, sets are bounded."""
    with pytest.raises(ValueError, match=r"."):
        KeySet.parse(payload)


def test_a_set_and_its_keys_come_back_as_they_were() -> None:
    """What is read is what is written again; unknown members are ignored."""
    entries = [
        signing.key_entry(ONE, not_after="2027-01-01T00:00:00Z"),
        signing.key_entry(TWO, status="retired"),
    ]
    body = {"version": 3, "keys": [{**entries[0], "new": 1}, entries[1]], "new": []}
    found = KeySet.parse(json.dumps(body).encode())
    assert found.version == 3
    assert [one.to_json() for one in found.keys] == entries
    assert [one.signs(None) for one in found.keys] == [True, False]
    assert found.keys[0].signs(1.0) and not found.keys[0].signs(2e9)


# -- approvals

KEYS = [Key.parse(entry) for entry in APPROVALS["keys"]]
CREDENTIAL = APPROVALS["cases"][0]["credential"]
CLAIMS = json.loads(base64.urlsafe_b64decode(CREDENTIAL.split(".")[0] + "==="))


def approval(claims: Any, raw: Callable[[Any], bytes] = signing.canonical) -> bytes:
    part = signing.b64url(raw(claims))
    return f"{part}.{signing.b64url(ONE.private.sign(part.encode()))}".encode()


DECIDED_HERE = ("approval_undecodable", "approval_signature", "approval_version")


@pytest.mark.parametrize("case", APPROVALS["cases"], ids=lambda case: case["name"])
def test_the_golden_approvals(case: dict[str, Any]) -> None:
    """What the plane's own signer wrote is read, or refused with the code that it was broken
    for.
    """
    raw = case["credential"].encode()
    if case["verdict"] in DECIDED_HERE:
        assert code_of(lambda: read_approval(raw, KEYS)) == case["verdict"]
    else:
        assert read_approval(raw, KEYS)[0].environment_id


def members(**change: Any) -> bytes:
    return approval({**CLAIMS, **change})


@pytest.mark.parametrize(
    ("code", "raw"),
    [
        ("approval_undecodable", b""),
        ("approval_undecodable", b"."),
        ("approval_undecodable", b"\n"),
        ("approval_undecodable", CREDENTIAL.encode() + b"\n\n"),
        ("approval_undecodable", b" " + CREDENTIAL.encode()),
        ("approval_undecodable", CREDENTIAL.encode() + b".AAAA"),
        ("approval_undecodable", CREDENTIAL.encode()[:-1] + b"B"),  # the unused bits are not zero
        ("approval_undecodable", b"\xff" * 10),
        ("approval_undecodable", b"A" * (signatures.APPROVAL_LIMIT + 1)),
        ("approval_undecodable", approval(CLAIMS, lambda value: json.dumps(value, sort_keys=True).encode())),
        ("approval_undecodable", approval(CLAIMS, lambda value: json.dumps(dict(sorted(value.items(), reverse=True)),
                                                                           separators=(",", ":")).encode())),
        ("approval_undecodable", approval({**CLAIMS, "issued_by": "é"},
                                          lambda value: json.dumps(value, sort_keys=True, separators=(",", ":")).encode())),
        ("approval_undecodable", approval(CLAIMS, lambda value: b'{"v":1,"v":1}')),
        ("approval_undecodable", approval(CLAIMS, lambda value: b"[" * 900 + b"]" * 900)),
        ("approval_undecodable", approval(CLAIMS, lambda value: b'{"kid":' + b"[" * 900 + b"]" * 900 + b"}")),
        ("approval_undecodable", approval(CLAIMS, lambda value: b'{"kid":"\\ud800"}')),
        ("approval_undecodable", approval([CLAIMS])),
        ("approval_undecodable", members(kid=None)),
        ("approval_undecodable", members(spec_hash=None)),
        ("approval_undecodable", members(issued_by=1)),
        ("approval_undecodable", members(capabilities="deploy")),
        ("approval_undecodable", members(capabilities=["deploy", 1])),
        ("approval_undecodable", members(expires_at="never")),
        ("approval_undecodable", members(issued_at=None)),
        ("approval_version", members(v=True)),
        ("approval_version", members(v="1")),
        ("approval_version", members(v=2, spec_hash=None)),
        ("approval_signature", members(kid="kid-9")),
        ("approval_signature", members(kid="kid-2")),
        ("approval_signature", CREDENTIAL.split(".")[0].encode() + b".AAAA"),
    ],
)  # fmt: skip
def test_approvals_that_are_refused(code: str, raw: bytes) -> None:
    """One text for one meaning: padding, spaces, another order, duplicate members are refused
    though they are signed.
    """
    assert code_of(lambda: read_approval(raw, KEYS)) == code


def test_an_approval_may_end_its_line() -> None:
    """It is a text file: editors and `echo` add a line end, which nobody signed and which changes
    nothing.
    """
    assert read_approval(CREDENTIAL.encode() + b"\n", KEYS) == read_approval(
        CREDENTIAL.encode(), KEYS
    )


def test_a_deployments_signature_is_no_approvals() -> None:
    """One key signs both; neither can be taken for the other."""
    part = CREDENTIAL.split(".")[0]
    message = signing.pae(DEPLOYMENT, part.encode())
    assert code_of(
        lambda: read_approval(f"{part}.{signing.b64url(ONE.private.sign(message))}".encode(), KEYS)
    ) == ("approval_signature")


# -- whatever the bytes are


@given(raw=st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused_and_nothing_else(raw: bytes) -> None:
    """Envelope, key set and approval: no exception but ours, and none gets through."""
    for call in (lambda: opened(raw), lambda: read_approval(raw, KEYS)):
        with pytest.raises(Untrusted):
            call()
    with pytest.raises(ValueError, match=r"."):
        KeySet.parse(raw)


@given(value=ANYTHING)
def test_any_signed_json_is_a_set_an_approval_or_refused(value: Any) -> None:
    """A plane that signs nonsense gets no other exception out of us either."""
    try:
        KeySet.parse(json.dumps(value).encode())
    except ValueError:
        pass
    try:
        read_approval(approval(value, lambda claims: json.dumps(claims).encode()), KEYS)
    except Untrusted:
        pass


@given(data=st.data())
def test_one_flipped_bit_is_never_accepted(data: st.DataObject) -> None:
    """Every bit of payload and signature counts, and of an approval's text."""
    text: list[int] = list(CREDENTIAL.encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Untrusted):
        read_approval(bytes(text), KEYS)
    signature = bytearray(base64.b64decode(SIGNATURE["sig"]))
    signature[data.draw(st.integers(0, 63))] ^= 1 << data.draw(st.integers(0, 7))
    assert (
        code_of(lambda: opened(signed({**SIGNATURE, "sig": base64.b64encode(signature).decode()})))
        == "bad_signature"
    )
