"""Whatever the reader reads, the eraser removes; and nothing else changes."""

from __future__ import annotations

import base64
import gzip
import pickle
import random
import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from firstboot.base.errors import ByteorError
from firstboot.provision import userdata
from firstboot.provision.decode import ESCAPE
from firstboot.provision.erase.reread import Reader
from firstboot.provision.erase.scrub import Scrubber, recognise
from firstboot.provision.parts import Unpacking
from firstboot.provision.schema import parse
from tests.unit import generated

SEEDS = st.integers(0, 2**64)
QUICK, ALL = 1_000, 100_000


def load(text: str) -> Any:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def plain(value: Any, token: str) -> Any:
    """Return a value with the token, or the x in its place, as one word; packed texts undone."""
    if isinstance(value, dict):
        fields = {key: plain(inner, token) for key, inner in value.items()}
        if isinstance(value.get("content"), (str, bytes)) and "encoding" in value:
            fields["content"] = plain(undone(value["content"], value["encoding"]), token)
        return fields
    if isinstance(value, list):
        return [plain(inner, token) for inner in value]
    text = decoded(value) if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return value
    if text.startswith("#cloud-config"):
        return meaning(text.encode(), token)
    text = decoded(base64.b64decode(text[7:])) if text.startswith("ci-b64:") else text
    try:  # a text that is YAML itself: the token may be written with escapes in it
        inner = load(text) if "enrollment_token" in text else None
    except yaml.YAMLError:
        inner = None
    if isinstance(inner, dict):
        return plain(inner, token)
    return re.sub(r"x{16,}", "TOKEN", text.replace(token, "TOKEN"))


def undone(content: str | bytes, encoding: str) -> str | bytes:
    if isinstance(content, str) and content.startswith("ci-b64:"):
        content = base64.b64decode(content[7:])
    data = content.encode() if isinstance(content, str) else content
    data = base64.b64decode(data) if "b64" in encoding else data
    return decoded(gzip.decompress(data)) if "gz" in encoding else data


def decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def meaning(data: bytes, token: str) -> list[Any]:
    """Return what every part of a file says, whatever it is packed in."""
    if data.startswith(b"\x80"):
        loaded = pickle.loads(data)
        return [
            *meaning(loaded["userdata_raw"], token),
            *meaning(loaded["userdata"].encode(), token),
            loaded["n"],
        ]
    said: list[Any] = []
    for part in Unpacking("it").parts(data):
        text = decoded(part.data)
        if text.startswith("#cloud-config-archive"):
            for item in load(text):
                inner = item["content"] if isinstance(item, dict) else item
                said += meaning(inner.encode(), token)
        elif text.startswith(("#cloud-config", '{"', "{\n")):
            said.append(plain(load(text), token))
            block = "".join(line[1:] for line in re.findall(r"^#  .*\n", text, re.MULTILINE))
            said.append(plain(load(block.replace("\r", "")) if block else None, token))
        else:
            said.append(re.sub("x{16,}", "TOKEN", text.replace(token, "TOKEN")))
    return said


def holds(seed: int) -> None:
    """Generate one user data, store it as cloud-init does, erase it, and look."""
    dice = random.Random(seed)
    random.seed(seed)  # the boundaries of MIME are drawn from it
    mapping = {"api_base_url": "https://api.example", "org_id": "org_1"}
    token = generated.token(dice)
    mapping["enrollment_token"] = token
    config = generated.cloud_config(mapping, dice)
    raw = generated.packed(config.text, dice)
    try:
        found = userdata.read(raw, where="user data")
        secret = parse(found.raw, where="it").get("enrollment_token") if found else None
    except ByteorError:
        return  # the reader does not take it
    if secret is None or secret.reveal() != token:
        return
    scrubber, reader = Scrubber([token.encode()]), Reader([token.encode()])
    for name, data in generated.stored(raw, config):
        done = scrubber.redact(data)
        context = f"seed {seed}, {name}, {config.form}, {dict(done.found)}, {done.failed}"
        assert len(done.data) == len(data), context
        if done.failed:
            assert {"its gzip does not fit into the old length", ESCAPE} >= set(done.failed), (
                context
            )
            continue
        assert not reader.reads(done.data), context
        assert done.found or name != "user-data.txt", context
        assert meaning(done.data, token) == meaning(data, token), context


@settings(max_examples=QUICK, deadline=None)
@given(SEEDS)
@example(95476)  # a token that ends in two quotes, one of them doubled, one an escape
@example(7175064)  # one that ends in =', doubled
@example(388432)  # one that ends in the half of an escape of quoted-printable
@example(24366271)  # one that ends in a quote, and a soft line break between it and its double
def test_whatever_the_reader_reads_is_erased_and_nothing_else(seed: int) -> None:
    """Every form and nesting, as cloud-init stores it: gone, same length, else unchanged."""
    holds(seed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=ALL, deadline=None)
@given(SEEDS)
def test_whatever_the_reader_reads_is_erased_many_times(seed: int) -> None:
    """The same with more examples."""
    holds(seed)


TOKEN = b"bet_9fK2mQ7xT4vB8nL1pR6sD3wH5jC0"


def redacted(data: bytes) -> bytes:
    return Scrubber([TOKEN]).redact(data).data


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=2000),
    st.sampled_from([b"", b"\x1f\x8b\x08", b"\\", b"=3D quoted-printable"]),
)
def test_what_holds_no_token_is_returned_as_it_is(data: bytes, head: bytes) -> None:
    """No byte of anybody else's data changes, whatever it looks like."""
    assert redacted(head + data) == head + data


@settings(max_examples=300, deadline=None)
@given(
    before=st.binary(max_size=200),
    after=st.binary(max_size=200),
    size=st.integers(1, 80),
    gap=st.sampled_from([b"\n", b"\r\n", b"\n    ", b" \n  ", b" "]),
    following=st.sampled_from([b"bootcmd:\n", b"runcmd: []\n", b"append: true\n", b"", b"x\n"]),
    padded=st.booleans(),
)
def test_base64_keeps_every_other_bit_and_never_runs_into_the_next_key(
    before: bytes, after: bytes, size: int, gap: bytes, following: bytes, padded: bool
) -> None:
    """However it is wrapped, with or without padding: the characters of other bytes stay."""
    text = base64.b64encode(before + TOKEN + after)
    text = text if padded else text.rstrip(b"=")
    lines = gap.join(text[at : at + size] for at in range(0, len(text), size))
    head = b"content: |\n    "
    data = head + lines + b"\n" + following
    clean = redacted(data)
    assert len(clean) == len(data)
    assert clean.startswith(head) and clean.endswith(b"\n" + following)
    body = re.sub(rb"\s", b"", clean[len(head) : len(head) + len(lines)])
    assert base64.b64decode(body + b"=" * (-len(body) % 4)) == before + b"x" * len(TOKEN) + after
    # Also the bits of the last character that carry nothing.
    assert not after or body[-1:] == text[-1:]


def test_a_gzip_that_is_cut_is_left_alone() -> None:
    """Garbage after the magic bytes neither raises nor changes."""
    packed = gzip.compress(b"enrollment_token: " + TOKEN + b"\n")
    for end in range(0, len(packed), 7):
        if TOKEN not in packed[:end]:
            assert redacted(packed[:end]) == packed[:end]


@pytest.mark.parametrize(
    "data",
    [
        b"enrollment_token: " + TOKEN,
        b'{"enrollment_token":"' + TOKEN + b'"}',
        base64.b64encode(b"a: " + TOKEN),
        gzip.compress(b"#cloud-config\n#  enrollment_token: '" + TOKEN + b"'\n"),
        b'"bet_9fK2mQ7xT4v\\u0042' + TOKEN[16:] + b'"',
    ],
    ids=["raw", "json", "base64", "gzip", "escaped"],
)
def test_what_an_earlier_look_left_is_told_by_its_mark(data: bytes) -> None:
    """The bytes of a remaining copy give the token again, in whatever form they stand."""
    assert set(recognise(data, lambda word: word == TOKEN, {len(TOKEN)})) == {TOKEN}


def test_many_members_and_many_magic_bytes_take_no_long_time() -> None:
    """Work grows with the size alone: counted in bytes that are decoded."""
    one = gzip.compress(b"")
    for data in (one * 20_000, b"\x1f\x8b\x08" * 300_000, b"QUJD" * 300_000, b"\\n" * 300_000):
        done = Scrubber([TOKEN]).redact(data)
        assert done.data == data and not done.failed
