"""Bodies as they travel: answers in pieces, requests in blocks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from firstboot.api.connection import ON_THE_WAY, current
from firstboot.base.clock import from_http_date, monotonic
from firstboot.base.errors import TryAgain

# Of an answer: larger gains little. A cut connection costs the piece that it cut, so pieces grow
# where they come quickly.
SMALLEST_PIECE_BYTES, PIECE_BYTES = 4 * 1024, 256 * 1024
QUICK_S = 1.0  # a piece within this is followed by a larger one
# How long a piece is waited for: so slow a connection is worth less than another one. Never longer
# than LONGEST_S: the reader reports progress after each, and a drip must not outlast a watchdog.
STALL_S, STALLED_BYTES_S, LONGEST_S = 15.0, 512, 60.0
BLOCK_BYTES = 256 * 1024  # of a request; http.client's own 8 KiB take twice the time
SLOWEST_BYTES_S = 16 * 1024  # a transfer slower than this on the whole is given up, and resumed
# Their Content-Length, if any, is that of the body of another answer (RFC 9110, 8.6).
BODILESS = (204, 304)
PART = 206
GZIP_WINDOW = 16 + zlib.MAX_WBITS  # zlib's word for: with gzip's header


class NoAnswer(TryAgain):
    """The request may have arrived; its answer did not, or not whole."""

    def __init__(self, message: str, *, hint: str = ON_THE_WAY) -> None:
        super().__init__(message, hint=hint)


class Body(Protocol):
    """A request's body of known length, read once from its beginning."""

    def __len__(self) -> int:
        """Return how many bytes `read` gives in all."""

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` of the next bytes, nothing at the end."""


@dataclass(frozen=True)
class Reply:
    """One whole answer; `date` is its ``Date`` in seconds since the epoch."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    date: float | None


@dataclass(frozen=True)
class Stream:
    """One answer whose body was not read yet.

    Header names are in lower case. Valid inside ``Transport.stream`` only.
    """

    status: int
    headers: Mapping[str, str]
    raw: Any
    host: str
    _peeked: list[bytes] = field(default_factory=list)

    @property
    def date(self) -> float | None:
        """Its ``Date`` in seconds since the epoch, None without a readable one."""
        try:
            return from_http_date(self.headers.get("date", ""))
        except ValueError:
            return None

    def begins_with(self, prefix: bytes) -> bool:
        """Return True when the body begins so; nothing of it is lost."""
        self._peeked.append(self.raw.read(len(prefix), decode_content=False))
        return self._peeked[0] == prefix

    def pieces(self, ceiling: int) -> Iterator[bytes]:
        """Yield the body; NoAnswer when it exceeds `ceiling` or was cut.

        gzip is undone although we never ask for it: some middleboxes compress all the same.
        """
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("gzip", "x-gzip") and self.status != PART:
            found = self._unzipped()
        elif encoding == "identity":
            found = self._received()
        else:
            raise NoAnswer(
                f"{self.host} answered in the encoding {encoding[:20]!r}, which was not asked for",
                hint="a proxy or load balancer on the way changes answers: switch that off there",
            )
        size = 0
        for piece in found:
            size += len(piece)
            if size > ceiling:
                raise NoAnswer(f"the answer of {self.host} is larger than {ceiling} bytes")
            yield piece

    def whole(self, ceiling: int) -> bytes:
        """Return the whole body of at most `ceiling` bytes."""
        return b"".join(self.pieces(ceiling))

    def _received(self) -> Iterator[bytes]:
        size, wish, limit = 0, SMALLEST_PIECE_BYTES, current.limit
        while True:
            began = monotonic()
            current.limit = min(limit, began + min(LONGEST_S, STALL_S + wish / STALLED_BYTES_S))
            piece = (
                self._peeked.pop() if self._peeked else self.raw.read(wish, decode_content=False)
            )
            if not piece:
                break
            quick = monotonic() - began < QUICK_S
            wish = min(PIECE_BYTES, wish * 2) if quick else max(SMALLEST_PIECE_BYTES, wish // 2)
            size += len(piece)
            yield piece
        # A body cut short raises for a read without a size only: count.
        announced = self.headers.get("content-length", "")
        if announced.isdigit() and int(announced) != size and self.status not in BODILESS:
            raise NoAnswer(f"the answer of {self.host} was cut after {size} of {announced} bytes")

    def _unzipped(self) -> Iterator[bytes]:
        decoder, any_came = zlib.decompressobj(GZIP_WINDOW), False
        try:
            for piece in self._received():
                any_came, rest = True, piece
                while rest:
                    yield decoder.decompress(rest, PIECE_BYTES)
                    rest = decoder.unconsumed_tail
        except zlib.error as error:
            raise NoAnswer(f"the answer of {self.host} is damaged gzip") from error
        if any_came and not decoder.eof:
            raise NoAnswer(f"the answer of {self.host} was cut in its gzip")


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type in lower case, without parameters."""
    return headers.get("content-type", "").split(";")[0].strip().lower()


def deadline_for(size: int) -> float:
    """Return the seconds that `size` bytes add to a request's deadline."""
    return size / SLOWEST_BYTES_S
