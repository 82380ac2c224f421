"""Request 5 against a scripted transport: which redirects are followed, with which headers, and
what of a part is believed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.api import bundles, messages
from firstboot.api import stream as bodies
from firstboot.api.bundles import Coming, StartOver
from firstboot.api.client import Answer, PlaneApi
from firstboot.api.connection import current
from firstboot.api.stream import PIECE_BYTES, SMALLEST_PIECE_BYTES, NoAnswer, Stream
from firstboot.base.errors import TryAgain
from firstboot.base.secret import Secret

KEY = Secret("runtime-key" * 2)
SIGNED = "https://store.example/objects/1?signature=0123456789abcdef"
Script = tuple[int, dict[str, str], bytes]


class Raw:
    """urllib3's side of a body; urllib3 reads exactly what is asked for, as long as there is
    enough.
    """

    def __init__(self, data: bytes) -> None:
        self._file, self.reads = io.BytesIO(data), []  # type: ignore[var-annotated]

    def read(self, size: int, *, decode_content: bool) -> bytes:
        self.reads.append(size)
        return self._file.read(size)


class Scripted:
    """Answers one request after the other, and keeps what was asked."""

    def __init__(self, *answers: Script) -> None:
        self.answers, self.asked = list(answers), []  # type: ignore[var-annotated]
        self.heads_s: list[float] = []

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        bearer: Secret | None = None,
        headers: Any = None,
        deadline_s: float = 0.0,
        head_s: float = 60.0,
    ) -> Iterator[Stream]:
        self.asked.append((url, bearer, dict(headers or {})))
        self.heads_s.append(head_s)
        status, found, body = self.answers.pop(0)
        current.limit = float("inf")
        yield Stream(status, {"content-type": "application/gzip", **found}, Raw(body), "plane")

    def close(self) -> None:
        pass


def ask(*answers: Script, have: int = 0, tag: str | None = None) -> tuple[Any, Scripted]:
    """What request 5 gives: `Coming` and its bytes, or the plane's answer."""
    scripted = Scripted(*answers)
    with PlaneApi("https://plane.example", scripted).bundle(
        "agt_1", KEY, "dep_1", have=have, tag=tag, size=100
    ) as found:  # type: ignore[arg-type]
        if isinstance(found, Coming):
            return (
                found.start,
                found.total,
                found.tag,
                b"".join(found.stream.pieces(1 << 20)),
            ), scripted
        return found, scripted


def test_both_heads_take_no_longer_than_one() -> None:
    """Nothing tells the watchdog of progress before the first byte."""
    _, scripted = ask((307, {"location": SIGNED}, b""), (200, {}, b"abcd"))
    assert scripted.heads_s[0] == 60.0 and 59.0 < scripted.heads_s[1] < 60.0


def test_a_whole_and_a_part() -> None:
    """What is missing is asked for under the tag that the beginning came with."""
    found, scripted = ask((200, {"etag": '"t"', "content-length": "4"}, b"abcd"))
    assert found == (0, 4, '"t"', b"abcd")
    assert (
        scripted.asked[0][0] == "https://plane.example/api/v1/agents/agt_1/deployments/dep_1/bundle"
    )
    assert "Range" not in scripted.asked[0][2] and "gzip" in scripted.asked[0][2]["Accept"]
    found, scripted = ask(
        (206, {"etag": '"t"', "content-range": "bytes 2-3/4"}, b"cd"), have=2, tag='"t"'
    )
    assert found == (2, 4, '"t"', b"cd")
    assert (scripted.asked[0][2]["Range"], scripted.asked[0][2]["If-Range"]) == ("bytes=2-", '"t"')


def test_without_a_strong_tag_no_part_is_asked_for() -> None:
    """A weak one promises no bytes."""
    found, _ = ask((200, {"etag": 'W/"t"'}, b"abcd"))
    assert found[2] is None
    _, scripted = ask((200, {}, b"abcd"), have=2, tag=None)
    assert "Range" not in scripted.asked[0][2]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-range": "bytes 1-3/4"},
        {"content-range": "bytes 0-3/4"},
        {"content-range": "bytes */4"},
        {"content-range": "items 2-3/4"},
        {"content-range": "bytes 2-3"},
        {"content-range": "bytes -2-3/4"},
        {"content-range": "bytes 2-3/4", "etag": '"other"'},
    ],
    ids=str,
)
def test_a_part_that_was_not_asked_for_is_begun_again(headers: dict[str, str]) -> None:
    """Bytes at the wrong place, or of another bundle, are not written."""
    with pytest.raises(StartOver):
        ask((206, headers, b"cd"), have=2, tag='"t"')


def test_a_part_in_answer_to_no_range_is_not_believed() -> None:
    """Only what we asked for."""
    with pytest.raises(StartOver):
        ask((206, {"content-range": "bytes 0-3/4"}, b"abcd"))


@pytest.mark.parametrize(
    "media",
    ["text/html", "application/json", "application/problem+json", "text/plain; charset=utf-8"],
)
def test_words_in_place_of_bytes_are_an_answer(media: str) -> None:
    """A portal's page is not written to the disk as a bundle."""
    found, _ = ask((200, {"content-type": media}, b"<html>"))
    assert isinstance(found, Answer) and not found.is_json


@pytest.mark.parametrize("media", ["text/plain", "text/html", "application/json", "image/png", ""])
def test_a_bundle_may_have_any_media_type(media: str) -> None:
    """Stores give files any: bytes that begin as gzip does are judged by their digest."""
    whole = b"\x1f\x8b" + bytes(range(200))
    for answers in (
        [(200, {"content-type": media}, whole)],
        [(302, {"location": SIGNED}, b""), (200, {"content-type": media}, whole)],
    ):
        assert ask(*answers)[0][3] == whole
    rest = {"content-type": media, "content-range": "bytes 2-3/4", "etag": '"t"'}
    assert ask((206, rest, b"cd"), have=2, tag='"t"')[0][3] == b"cd"


@pytest.mark.parametrize("status", bundles.REDIRECTS)
def test_elsewhere_gets_the_range_and_no_credential(status: int) -> None:
    """Another host, another port, another scheme: another origin."""
    for place in (SIGNED, "https://plane.example:8443/b"):
        found, scripted = ask(
            (status, {"location": place}, b""),
            (206, {"content-range": "bytes 2-3/4", "etag": '"t"'}, b"cd"),
            have=2,
            tag='"t"',
        )
        assert found[3] == b"cd"
        (_, key, _), (url, bearer, headers) = scripted.asked
        assert key == KEY and url == place and bearer is None and headers["Range"] == "bytes=2-"


@pytest.mark.parametrize(
    "place", ["/other/path", "https://plane.example/other/path", "https://PLANE.example:443/x"]
)
def test_the_planes_own_origin_keeps_the_credential(place: str) -> None:
    """A path of its own is still the plane."""
    _, scripted = ask((307, {"location": place}, b""), (200, {}, b"abcd"))
    assert scripted.asked[1][1] == KEY


HOSTILE = [
    "http://store.example/x",
    "ftp://store.example/x",
    "file:///etc/passwd",
    "//user:pw@store.example/x",
    "https://user@store.example/",
    "https://169.254.169.254/latest/meta-data",
    "https://169.254.0.1:8443/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[::ffff:169.254.169.254]/",
    "https://2852039166/",
    "https://0xa9fea9fe/",
    "https://0251.0376.0251.0376/",
    "https://169.254.43518/",
    "https://store.example:0/",
    "https://store.example:99999/",
    "",
    "https://[",
    "https://a b/",
    "https://store.example/\r\nX: y",
    "https://stör.example/",
    "https://store.example/" + "x" * 9000,
]


@pytest.mark.parametrize("place", HOSTILE)
def test_an_address_that_may_not_be_asked_is_not_asked(place: str) -> None:
    """Not https, link-local in any writing, with a user, or no address at all; and its text stands
    in no message.
    """
    scripted = Scripted((302, {"location": place}, b""))
    coming = PlaneApi("https://plane.example", scripted).bundle(
        "a", KEY, "d", have=0, tag=None, size=9
    )  # type: ignore[arg-type]
    with pytest.raises(TryAgain) as caught, coming:
        pass
    assert len(scripted.asked) == 1
    assert len(place) < 8 or place not in f"{caught.value} {caught.value.hint}"


def test_a_redirect_to_nowhere_is_an_error() -> None:
    """No Location."""
    with pytest.raises(TryAgain):
        ask((302, {}, b""))


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 410, 429, 500, 503])
def test_the_other_places_word_is_only_not_now(status: int) -> None:
    """Its 401 is not about our key, its 404 not about our deployment; its Retry-After is heard, its
    address kept quiet.
    """
    with pytest.raises(TryAgain) as caught:
        ask(
            (302, {"location": SIGNED}, b""),
            (status, {"retry-after": "7", "location": SIGNED}, b'{"code": "unknown_agent"}'),
        )
    assert type(caught.value) is TryAgain and caught.value.retry_after == 7.0
    assert "signature" not in str(caught.value)


def test_no_such_part_begins_again() -> None:
    """416, of the plane or of the other place."""
    for answers in (((416, {}, b""),), ((302, {"location": SIGNED}, b""), (416, {}, b""))):
        with pytest.raises(StartOver):
            ask(*answers, have=200, tag='"t"')


@given(st.text(max_size=60))
def test_no_header_breaks_the_reading_of_one(text: str) -> None:
    """Whatever a server says of ranges and tags."""
    tag, part = messages.entity_tag(text), messages.content_range(text)
    assert tag is None or (tag.isascii() and tag.startswith('"'))
    assert part is None or part[0] >= 0


def test_pieces_grow_while_they_come_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 4 to 256 KiB; a slow one makes the next smaller, so that a cut costs little and a
    watchdog hears of us.
    """
    slow, now, waits = {5, 6, 7}, [0.0], []  # type: ignore[var-annotated]
    raw = Raw(bytes(1 << 20))
    read = raw.read

    def timed(size: int, **keywords: Any) -> bytes:
        waits.append(current.limit - now[0])
        now[0] += 30.0 if len(raw.reads) in slow else 0.01
        return read(size, **keywords)

    raw.read = timed  # type: ignore[method-assign]
    monkeypatch.setattr(bodies, "monotonic", lambda: now[0])
    current.limit = float("inf")
    list(Stream(200, {}, raw, "plane").pieces(1 << 20))
    kib = [size // 1024 for size in raw.reads]
    assert kib[:10] == [4, 8, 16, 32, 64, 128, 64, 32, 16, 32]
    assert waits[0] == 23.0 and round(max(waits)) == 60
    assert kib[0] * 1024 == SMALLEST_PIECE_BYTES and max(kib) * 1024 == PIECE_BYTES


def test_a_body_longer_than_allowed_ends_early() -> None:
    """Nothing beyond the ceiling is handed out."""
    got: list[bytes] = []
    current.limit = float("inf")
    with pytest.raises(NoAnswer, match="larger"):
        for piece in Stream(200, {}, Raw(bytes(100_000)), "plane").pieces(50_000):
            got.append(piece)
    assert sum(map(len, got)) <= 50_000
