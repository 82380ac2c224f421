"""Bodies as they travel: an answer's in pieces or whole, never more than was allowed; a request's in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from firstboot.api.connection import current
from firstboot.base.clock import from_http_date, monotonic
from firstboot.base.errors import TryAgain

# Of an answer: larger gains little. A cut connection costs the piece that it cut, so pieces grow where they come quickly.
SMALLEST_PIECE_BYTES, PIECE_BYTES = 4 * 1024, 256 * 1024
QUICK_S = 1.0  # a piece within this is followed by a larger one
# How long a piece is waited for: so slow a connection is worth less than another one. Never longer than LONGEST_S, for
# whoever reads pieces says after each that he is alive, and a drip must not outlast a watchdog.
STALL_S, STALLED_BYTES_S, LONGEST_S = 15.0, 512, 60.0
BLOCK_BYTES = 256 * 1024  # of a request; http.client's own 8 KiB take twice the time
SLOWEST_BYTES_S = (
    16 * 1024
)  # a transfer that is slower than this on the whole is given up, and taken up again
BODILESS = (
    204,
    304,
)  # their Content-Length, if any, is that of the body which another answer would have (RFC 9110, 8.6)


class NoAnswer(TryAgain):
    """The request may have arrived; its answer did not, or not whole."""


class Body(Protocol):
    """A request's body of known length, read once from its beginning."""

    def __len__(self) -> int:
        """Return how many bytes `read` gives in all."""

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` of the next bytes, nothing at the end."""


@dataclass(frozen=True)
class Stream:
    """One answer whose body was not read yet; header names in lower case. Good inside ``Transport.stream`` only."""

    status: int
    headers: Mapping[str, str]
    raw: Any
    host: str

    @property
    def date(self) -> float | None:
        """Its ``Date`` in seconds since the epoch, None without a readable one."""
        try:
            return from_http_date(self.headers.get("date", ""))
        except ValueError:
            return None

    def pieces(self, ceiling: int) -> Iterator[bytes]:
        """The body as it comes; NoAnswer when it is larger than `ceiling` bytes or not as long as announced."""
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise NoAnswer(f"{self.host} answered in an encoding that was not asked for")
        size, wish, limit = 0, SMALLEST_PIECE_BYTES, current.limit
        while True:
            began = monotonic()
            current.limit = min(limit, began + min(LONGEST_S, STALL_S + wish / STALLED_BYTES_S))
            piece = self.raw.read(wish, decode_content=False)
            if not piece:
                break
            quick = monotonic() - began < QUICK_S
            wish = min(PIECE_BYTES, wish * 2) if quick else max(SMALLEST_PIECE_BYTES, wish // 2)
            size += len(piece)
            if size > ceiling:
                raise NoAnswer(f"the answer of {self.host} is larger than {ceiling} bytes")
            yield piece
        # A body cut short raises for a read without a size only (performance.md, section 3): count.
        announced = self.headers.get("content-length", "")
        if announced.isdigit() and int(announced) != size and self.status not in BODILESS:
            raise NoAnswer(f"the answer of {self.host} was cut after {size} of {announced} bytes")

    def whole(self, ceiling: int) -> bytes:
        """The whole body of at most `ceiling` bytes."""
        return b"".join(self.pieces(ceiling))


def deadline_for(size: int) -> float:
    """Seconds that a transfer of `size` bytes may take beyond a request's own."""
    return size / SLOWEST_BYTES_S
