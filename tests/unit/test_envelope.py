"""Sealed bytes: what goes in comes out, and no changed bit does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstboot.base.errors import Corrupt
from firstboot.identity import seal

KEY = bytes(range(32))
HEADER = {"provider": "file", "host": {"salt": "00ff", "datasource": "nocloud"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner),
    max_leaves=5,
)
SEALED = seal.seal(b"the plain text", key=KEY, purpose="test", header=HEADER)


@given(
    st.binary(max_size=2000),
    st.binary(min_size=32, max_size=32),
    st.text(min_size=1),
    st.dictionaries(st.text(), JSON, max_size=4),
)
def test_what_was_sealed_opens(
    plain: bytes, key: bytes, purpose: str, header: dict[str, object]
) -> None:
    """Any bytes, any header: the header is readable without the key, the content with it."""
    sealed = seal.seal(plain, key=key, purpose=purpose, header=header)
    assert seal.open(sealed, key=key, purpose=purpose) == plain
    assert seal.unverified_header(sealed) == {**header, "purpose": purpose}
    assert json.loads(sealed)["v"] == 1


def refused(sealed: bytes, *, key: bytes = KEY, purpose: str = "test") -> str:
    with pytest.raises(Corrupt) as caught:
        seal.open(sealed, key=key, purpose=purpose)
    return str(caught.value)


def test_no_bit_of_a_sealed_file_can_be_changed() -> None:
    """Every single bit, header, line ends and braces included, and always the same error."""
    said = set()
    for position in range(len(SEALED) * 8):
        changed = bytearray(SEALED)
        changed[position // 8] ^= 1 << position % 8
        said.add(refused(bytes(changed)))
    assert len(said) == 1


@settings(max_examples=300)
@given(st.data())
def test_no_edit_of_a_sealed_file_opens(data: st.DataObject) -> None:
    """Cut anywhere, put anything in, take anything out."""
    start = data.draw(st.integers(0, len(SEALED)))
    end = data.draw(st.integers(start, len(SEALED)))
    changed = SEALED[:start] + data.draw(st.binary(max_size=20)) + SEALED[end:]
    if changed != SEALED:
        refused(changed)


@given(st.binary(max_size=300))
def test_garbage_is_refused_in_the_same_words(garbage: bytes) -> None:
    """No oracle: garbage, another key, another purpose and a changed byte cannot be told apart."""
    same = refused(SEALED, key=bytes(32))
    assert refused(garbage) == refused(SEALED, purpose="other") == refused(SEALED[:-1]) == same
    with pytest.raises(Corrupt):
        seal.unverified_header(garbage)


@pytest.mark.parametrize(
    "equivalent",
    [
        SEALED + b"\n",
        b" " + SEALED,
        SEALED.rstrip(b"\n"),
        SEALED.replace(b"\n", b"\r\n"),
        SEALED.replace(b": 1", b":1"),
        SEALED.replace(b'"v": 1', b'"v": 2'),
        SEALED.replace(b'"sealed"', b'"x": 1, "sealed"'),
        SEALED.replace(b'"salt"', b'"\\u0073alt"'),
        SEALED[:-80] + SEALED[-80:].upper(),
        json.dumps(json.loads(SEALED)).encode(),
    ],
    ids=range(10),
)  # the nonce is fresh in every process that collects this
def test_another_spelling_of_the_same_json_does_not_open(equivalent: bytes) -> None:
    """The header is bound as its bytes stand in the file; another version is not guessed at."""
    assert equivalent != SEALED
    refused(equivalent)


def test_header_and_content_of_two_files_do_not_mix() -> None:
    """The sealed part of one host's file under another's header is refused, though the key is the
    same.
    """
    other = seal.seal(
        b"the plain text", key=KEY, purpose="test", header={**HEADER, "provider": "host"}
    )
    cut, other_cut = SEALED.index(b'"nonce"'), other.index(b'"nonce"')
    refused(SEALED[:cut] + other[other_cut:])
    refused(other[:other_cut] + SEALED[cut:])


def test_every_seal_has_a_nonce_of_its_own() -> None:
    """The same content sealed twice has nothing in common but the header."""
    nonces = {
        json.loads(seal.seal(b"", key=KEY, purpose="test", header={}))["nonce"] for _ in range(200)
    }
    assert len(nonces) == 200


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_only_a_key_of_256_bits_is_used(size: int) -> None:
    """AES-128 by a truncated key file would work, and must not."""
    with pytest.raises(ValueError, match="32 bytes"):
        seal.seal(b"", key=bytes(size), purpose="test", header={})
    refused(SEALED, key=bytes(size))


def test_it_is_aes_256_gcm_as_the_docstring_says() -> None:
    """Another program can open the file with the key: nothing here is private arithmetic."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    document = json.loads(SEALED)
    bound = SEALED[: SEALED.index(b'"nonce"')]
    plain = AESGCM(KEY).decrypt(
        bytes.fromhex(document["nonce"]), bytes.fromhex(document["sealed"]), bound
    )
    assert plain == b"the plain text"
