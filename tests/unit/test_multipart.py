"""The body of an upload: two parts of known length, hashed while it is read, and never completed
with other bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.multipart import FormParser

from firstboot.agent.artifacts.packing import hold
from firstboot.api.multipart import ArtifactMetadata, ArtifactReply, Multipart, WrongContent


def described(data: bytes) -> ArtifactMetadata:
    return ArtifactMetadata(
        "snapshot", hashlib.sha256(data).hexdigest(), len(data), "2026-01-01T00:00:00Z"
    )


def parsed(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """The parts, as a parser that is not ours reads them."""
    found: list[tuple[str, bytes]] = []

    def on_field(field: Any) -> None:
        found.append((field.field_name.decode(), field.value))

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        found.append((file.field_name.decode(), file.file_object.read()))

    boundary = content_type.split("boundary=")[1]
    parser = FormParser("multipart/form-data", on_field, on_file, boundary=boundary)
    parser.write(body)
    parser.finalize()
    return found


@given(
    data=st.binary(min_size=1, max_size=3000),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=20),
)
def test_metadata_first_then_the_file_whatever_is_read_at_a_time(
    data: bytes, sizes: list[int]
) -> None:
    """The length is known from the start, and the parts are what was put in."""
    held, heard = hold(data), []  # type: int, List[int]
    body = Multipart(described(data), held, each=heard.append)
    length, pieces, turn = len(body), [], 0
    while piece := body.read(sizes[turn % len(sizes)]):
        assert len(piece) <= sizes[turn % len(sizes)]
        pieces.append(piece)
        turn += 1
    os.close(held)
    whole = b"".join(pieces)
    assert len(whole) == length and body.read(10) == b""
    (first, metadata), (second, file) = parsed(body.content_type, whole)
    assert (first, second, file) == ("metadata", "file", data)
    assert json.loads(metadata) == {
        "kind": "snapshot", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data),
        "captured_at": "2026-01-01T00:00:00Z", "deployment_id": None, "spec_hash": None,
    }  # fmt: skip
    assert heard == sorted(heard) and heard[-1] == len(data)


@pytest.mark.parametrize("now", [b"x" * 999 + b"y", b"y" + b"x" * 999, b"x" * 999, b""])
def test_a_file_that_is_not_what_it_was_is_never_sent_whole(now: bytes) -> None:
    """Changed, shorter or gone: the body stops before its last byte."""
    held = hold(now)
    body, read = Multipart(described(b"x" * 1000), held), b""
    with pytest.raises(WrongContent):
        while piece := body.read(100):
            read += piece
    os.close(held)
    assert len(read) < len(body)


def test_a_file_that_grew_is_sent_as_long_as_it_was() -> None:
    """What was added after the spool took it is not part of it."""
    held = hold(b"x" * 1000 + b"more")
    body = Multipart(described(b"x" * 1000), held)
    whole = b"".join(iter(lambda: body.read(100), b""))
    os.close(held)
    assert parsed(body.content_type, whole)[1] == ("file", b"x" * 1000)


def test_a_file_that_cannot_be_read_is_no_network_error() -> None:
    """The disk's error is not taken for the connection's."""
    held = os.open(os.devnull, os.O_WRONLY)
    body = Multipart(described(b"x"), held)
    with pytest.raises(WrongContent, match="cannot be read"):
        while body.read(100):
            pass
    os.close(held)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"artifact_id": "art_1", "duplicate": True, "more": 1}, ("art_1", True)),
        ({"artifact_id": "art_1"}, ("art_1", False)),
        ({"id": "art_1", "duplicate": "yes"}, ("art_1", False)),
    ],
)
def test_replies_are_read_tolerantly(said: dict[str, Any], expected: tuple[str, bool]) -> None:
    """Unknown members and the alias are fine."""
    reply = ArtifactReply.parse(said)
    assert (reply.artifact_id, reply.duplicate) == expected


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda i: st.lists(i) | st.dictionaries(st.text(), i),
    )
)
def test_a_reply_without_an_id_is_none(said: Any) -> None:
    """A yes of something that does not know what was asked does not count."""
    with pytest.raises(ValueError, match="artifact_id|not an object"):
        ArtifactReply.parse(said)
