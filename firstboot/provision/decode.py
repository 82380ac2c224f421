"""Decoders that know where in the source each decoded byte stands.

A layer is a stretch of a source and the `text` that it decodes to. Its `back` turns edits of that
text into edits of the source which have the same length there: only the characters that encode the
edited bytes change, and everything else decodes to what it did before.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

GZIP = b"\x1f\x8b\x08"
MEMBER_LIMIT = 64 << 20  # bytes that one gzip stream may unpack to
PIECE = 16 << 10
HEADER_LIMIT = 64 << 10  # bytes of a gzip header that says a name or a comment
FALSE_STARTS = 1000  # by chance there is one in 16 MiB
SHORTEST_RUN = 20  # characters of base64: no token is shorter
_COMMENT = 0x10  # the flag of gzip's comment field
_BLANKS = b" \t\r\n"
_GAP = re.compile(rb"[ \t\r\n]+")
ESCAPE = "what is packed in it cannot be written with escapes of the old length"
_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_MASK = bytes(0 if byte in _DIGITS else 1 for byte in range(256))
_LEAST = bytes(SHORTEST_RUN)
_PLAIN = _DIGITS + b" "  # what every notation leaves as it is
_QUOTED = re.compile(rb"=(?:\r?\n|[0-9A-Fa-f]{2})")
# JSON's escapes are among those of a double-quoted YAML scalar. `\` and a line end (YAML 1.1 has
# six, of which NEL, LS and PS are U+0085, U+2028 and U+2029): continued.
_END = rb"\r\n|[\r\n]|\xc2\x85|\xe2\x80[\xa8\xa9]"
_ESCAPE = re.compile(
    rb"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|(?:%s)[ \t]*"
    rb"|[0abtnvfre \t\"/\\NLP_])" % _END
)
_CONTINUED = re.compile(rb"(?:\\|=)(?:%s)" % _END)
_LETTERS = {
    **{b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f", b"0": b"\0"},
    **{b"a": b"\a", b"v": b"\v", b"e": b"\x1b", b"_": b"\xc2\xa0"},
    **{b"N": b"\xc2\x85", b"L": b"\xe2\x80\xa8", b"P": b"\xe2\x80\xa9"},
}
QUOTED = "quoted"  # the layer of doubled quotes
_DOUBLED = re.compile(rb"''")


class Unredactable(Exception):
    """A copy was found in a form that does not fit into its old length."""


@dataclass(frozen=True)
class Edit:
    """New bytes at a place; `filler` may follow a byte where its escape is two characters long."""

    at: int
    data: bytes
    filler: bytes = b"x"


def applied(data: bytes, edits: Iterable[Edit]) -> bytes:
    """Return `data` with the edits made, in their order."""
    fresh = bytearray(data)
    for edit in edits:
        fresh[edit.at : edit.at + len(edit.data)] = edit.data
    return bytes(fresh)


class Escaped:
    """A source with escapes; between them its text is the source itself."""

    def __init__(self, name: str, source: bytes, units: Iterable[tuple[int, int, bytes]]) -> None:
        """`units` are start and end of each escape in `source`, and what it stands for."""
        self.name = name
        self._source = source
        self._units: list[tuple[int, int, int, int]] = []  # start, end in the text; in the source
        pieces, end, size = [], 0, 0
        for lower, upper, plain in units:
            pieces += [source[end:lower], plain]
            size += lower - end + len(plain)
            self._units.append((size - len(plain), size, lower, upper))
            end = upper
        self.text = b"".join([*pieces, source[end:]])
        self._ends = [unit[1] for unit in self._units]

    def __bool__(self) -> bool:
        return bool(self._units)

    def back(self, edit: Edit) -> Iterator[Edit]:
        """Yield the edits of the source; Unredactable where an escape cannot say the new byte."""
        at, end = edit.at, edit.at + len(edit.data)
        past = (len(self.text), len(self.text), len(self._source), len(self._source))
        while at < end:
            index = bisect_right(self._ends, at)
            before = self._units[index - 1] if index else (0, 0, 0, 0)
            start, stop, lower, upper = self._units[index] if index < len(self._units) else past
            if at < start:
                piece = edit.data[at - edit.at : start - edit.at]
                self._check(at, piece)
                yield Edit(before[3] + at - before[1], piece, edit.filler)
                at += len(piece)
                continue
            byte = edit.data[at - edit.at : at - edit.at + 1]
            if byte != self.text[at : at + 1]:
                fresh = _encoded(self._source[lower:upper], byte, edit.filler)
                if stop - start != 1 or len(fresh) != upper - lower:
                    raise Unredactable(ESCAPE)
                yield Edit(lower, fresh, edit.filler)
            at += 1

    def _check(self, at: int, piece: bytes) -> None:
        """Raise Unredactable for bytes that do not stand for themselves in the source."""
        old = self.text[at : at + len(piece)]
        if old != piece and any(a != b and b not in _PLAIN for a, b in zip(old, piece)):
            raise Unredactable(ESCAPE)


def _encoded(unit: bytes, byte: bytes, filler: bytes) -> bytes:
    """Return an escape for `byte` of the kind of `unit`."""
    if unit[:1] == b"=" and len(unit) == 3:
        return b"=%02X" % byte[0]
    if unit[:2] in (b"\\x", b"\\u", b"\\U") and len(unit) > 2:
        return unit[:2] + b"%0*x" % (len(unit) - 2, byte[0])
    return byte + filler


def quoted_printable(source: bytes) -> Escaped:
    """Undo quoted-printable, in whatever part of the source it is."""
    return Escaped("quoted-printable", source, _units(_QUOTED, source))


def escapes(source: bytes) -> Escaped:
    """Undo the escapes of JSON and of double-quoted YAML, wherever they stand."""
    return Escaped("escaped", source, _units(_ESCAPE, source))


def doubled_quotes(source: bytes) -> Escaped:
    """Undo the doubled quotes of single-quoted YAML."""
    return Escaped(QUOTED, source, _units(_DOUBLED, source))


def _units(pattern: re.Pattern[bytes], source: bytes) -> Iterator[tuple[int, int, bytes]]:
    for match in pattern.finditer(source):
        yield match.start(), match.end(), _meant(match)


def _meant(match: re.Match[bytes]) -> bytes:
    unit = match.group()
    if _CONTINUED.match(unit):
        return b""
    if unit[:1] == b"=" and len(unit) == 3:
        return bytes([int(unit[1:], 16)])
    if unit[:1] == b"\\" and len(unit) > 2:
        code = int(unit[2:], 16)
        return chr(code).encode("utf-8", "surrogatepass") if code < 0x110000 else b"?"
    return _LETTERS.get(unit[1:], unit[1:])


def unbase64(data: bytes) -> bytes:
    """Decode base64 whose characters may have blanks between them; ValueError for anything else."""
    return base64.b64decode(data.translate(None, _BLANKS), validate=True)


class Base64:
    """One run of base64 in a source, over blanks and line ends, from one of its first characters.

    A run may begin with words that are none of it (a key, a header), and go on into such: the
    characters before shift the rest by up to three, those after change nothing before them.
    """

    def __init__(self, gaps: Gaps, start: int, end: int) -> None:
        self._gaps = gaps
        self._start = start
        self._run = gaps.stripped[start : end - ((end - start) % 4 == 1)]
        self._text: bytes | None = None

    @property
    def text(self) -> bytes:
        if self._text is None:
            self._text = binascii.a2b_base64(self._run + b"=" * (-len(self._run) % 4))
        return self._text

    def back(self, edit: Edit) -> Iterator[Edit]:
        """Yield the edits of the characters that carry the edited bits, and of no other."""
        self._text = applied(self.text, [edit])
        first = edit.at // 3
        last = min((edit.at + len(edit.data) + 2) // 3, (len(self.text) + 2) // 3)
        old = self._run[first * 4 : last * 4]
        fresh = base64.b64encode(self.text[first * 3 : last * 3])[: len(old)]
        if len(fresh) % 4:  # the bits of the last character that carry nothing stay as they were
            spare = 3 if len(fresh) % 4 == 3 else 15
            kept = _DIGITS.index(old[-1]) & spare | _DIGITS.index(fresh[-1]) & ~spare
            fresh = fresh[:-1] + _DIGITS[kept : kept + 1]
        self._run = self._run[: first * 4] + fresh + self._run[last * 4 :]
        for at, piece in self._gaps.split(self._start + first * 4, fresh):
            yield Edit(at, piece, b" ")


class Gaps:
    """A source without its blanks and line ends, and where each character of it stands."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self.stripped = source.translate(None, _BLANKS)
        self._starts: list[int] = []
        self._shifts: list[int] = []

    def runs(self) -> Iterator[tuple[bytes, list[Base64]]]:
        """Yield each run of base64, and how to decode it in each of its four alignments."""
        mask = self.stripped.translate(_MASK)  # an expression takes ten times as long
        start = mask.find(_LEAST)
        while start >= 0:
            end = mask.find(1, start)
            end = len(mask) if end < 0 else end
            yield self.stripped[start:end], [Base64(self, start + n, end) for n in range(4)]
            start = mask.find(_LEAST, end)

    def split(self, at: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield `data`, which begins at character `at` without gaps, as pieces of the source."""
        if not self._starts:
            shift, self._starts, self._shifts = 0, [-1], [0]
            for gap in _GAP.finditer(self._source):
                self._starts.append(gap.start() - shift)
                shift += gap.end() - gap.start()
                self._shifts.append(shift)
        while data:
            index = bisect_right(self._starts, at)
            room = self._starts[index] - at if index < len(self._starts) else len(data)
            yield at + self._shifts[index - 1], data[:room]
            at, data = at + room, data[room:]


class Gzip:
    """The gzip members that stand one after the other at `at`: one stream, for every reader."""

    def __init__(self, source: bytes, at: int) -> None:
        self.start = self.end = at
        self._members: list[tuple[int, int]] = []  # end in the source, end in the text
        texts, size = [], 0
        while source.startswith(GZIP, self.end):
            member = _member(source, self.end, MEMBER_LIMIT - size)
            if member is None:
                break
            text, self.end = member
            texts.append(text)
            size += len(text)
            self._members.append((self.end, size))
        self.text = b"".join(texts)

    def rebuilt(self, edits: list[Edit]) -> Edit:
        """Return the members with the edits made, packed again into the length that they had."""
        text = applied(self.text, edits)
        first = bisect_right([size for _, size in self._members], min(edit.at for edit in edits))
        changed = max(edit.at + len(edit.data) for edit in edits)
        last = next(n for n, (_, size) in enumerate(self._members) if size >= changed)
        start, begin = self._members[first - 1] if first else (self.start, 0)
        end, stop = self._members[last]
        return Edit(start, _packed(text[begin:stop], end - start), b"")


def _member(source: bytes, at: int, limit: int) -> tuple[bytes, int] | None:
    """Return the text and the end of one member; None unless it is whole and within `limit`."""
    unpacker = zlib.decompressobj(wbits=31)
    texts, room, start = [], limit, at
    while not unpacker.eof:
        # By pieces: what is left over is copied, for each of perhaps very many members.
        piece = unpacker.unconsumed_tail or source[at : at + PIECE]
        at += 0 if unpacker.unconsumed_tail else len(piece)
        try:
            texts.append(unpacker.decompress(piece, room + 1))
        except zlib.error:
            return None
        room -= len(texts[-1])
        headless = room == limit and at - start > HEADER_LIMIT and not unpacker.eof
        if room < 0 or headless or not (piece or unpacker.eof):
            return None
    return b"".join(texts), at - len(unpacker.unused_data)


def _packed(text: bytes, length: int) -> bytes:
    """Pack `text` as gzip of exactly `length` bytes, the rest in the header's comment field."""
    tail = struct.pack("<II", zlib.crc32(text), len(text) & 0xFFFFFFFF)
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        body = packer.compress(text) + packer.flush() + tail
        spare = length - 10 - len(body)
        if spare >= 0:
            comment = b" " * (spare - 1) + b"\0" if spare else b""
            flags = _COMMENT if spare else 0
            return GZIP + bytes([flags]) + b"\0\0\0\0\x02\xff" + comment + body
    raise Unredactable("its gzip does not fit into the old length")


def gzips(source: bytes) -> Iterator[Gzip]:
    """Yield every gzip stream in `source`, wherever it begins."""
    at, none = source.find(GZIP), 0
    while at >= 0 and none < FALSE_STARTS:
        found = Gzip(source, at)
        none += found.end == at
        if found.end > at:
            yield found
        at = source.find(GZIP, max(found.end, at + 1))
