"""Replace every copy of a token by ``x`` at the same length, in each form that it stands in.

Raw text and pickles hold the token as it is; base64 (three alignments, wrapped or not) and gzip,
also inside each other, are unpacked, redacted and packed again at the very same length, so that
cloud-init can still read its files. All ``x`` reads as "no token". A token that an interrupted
overwrite tore apart is no longer whole, and not searched.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections import Counter
from collections.abc import Sequence

UNPACKED_LIMIT = 64 << 20
DEPTH_LIMIT = 4
# A run of base64 long enough for the shortest token, over line breaks and YAML's indentation.
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{20,}(?:(?:\r?\n[ \t]*|\\n)[A-Za-z0-9+/]+)*={0,2}")
_GAP = re.compile(rb"\r?\n[ \t]*|\\n")
_GZIP = b"\x1f\x8b\x08"
_COMMENT = 0x10


class Unredactable(Exception):
    """A copy was found in a form that does not fit into its old length."""


def redact(data: bytes, tokens: Sequence[bytes], *, depth: int = 0) -> tuple[bytes, Counter[str]]:
    """Return `data` with every copy of `tokens` x-ed out, and how many stood in which encoding."""
    found: Counter[str] = Counter()
    if depth < DEPTH_LIMIT:
        # Before the raw text: gzip stores what does not deflate as it is, and a checksum over it.
        data = _redact_gzip(data, tokens, found, depth)
        data = _redact_base64(data, tokens, found, depth)
    for token in tokens:
        count = data.count(token)
        if count:
            found["raw"] += count
            data = data.replace(token, b"x" * len(token))
    return data, found


def _redact_gzip(data: bytes, tokens: Sequence[bytes], found: Counter[str], depth: int) -> bytes:
    at = data.find(_GZIP)
    while at >= 0:
        member = _member(data, at)
        if member is not None:
            text, length = member
            inner, counts = redact(text, tokens, depth=depth + 1)
            if counts:
                data = data[:at] + _packed(inner, length) + data[at + length :]
                found["gzip"] += sum(counts.values())
        at = data.find(_GZIP, at + 1)
    return data


def _member(data: bytes, at: int) -> tuple[bytes, int] | None:
    """Return the text and the packed length of the gzip member at `at`; None unless it is whole."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data[at:], UNPACKED_LIMIT)
    except zlib.error:
        return None
    return (text, len(data) - at - len(unpacker.unused_data)) if unpacker.eof else None


def _packed(text: bytes, length: int) -> bytes:
    """Pack `text` as gzip of exactly `length` bytes, the rest in the header's comment field."""
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        body = (
            packer.compress(text)
            + packer.flush()
            + struct.pack("<II", zlib.crc32(text), len(text) & 0xFFFFFFFF)
        )
        spare = length - 10 - len(body)
        if spare >= 0:
            comment = b" " * (spare - 1) + b"\0" if spare else b""
            flags = _COMMENT if spare else 0
            return _GZIP + bytes([flags]) + b"\0\0\0\0\x02\xff" + comment + body
    raise Unredactable("its gzip does not fit into the old length")


def _redact_base64(data: bytes, tokens: Sequence[bytes], found: Counter[str], depth: int) -> bytes:
    pieces, end = [], 0
    for run in _BASE64.finditer(data):
        wrapped = run.group()
        plain = _GAP.sub(b"", wrapped)
        fresh = _redact_run(plain, tokens, found, depth)
        if fresh != plain:
            pieces += [data[end : run.start()], _rewrapped(wrapped, fresh)]
            end = run.end()
    return b"".join([*pieces, data[end:]]) if pieces else data


def _redact_run(run: bytes, tokens: Sequence[bytes], found: Counter[str], depth: int) -> bytes:
    for start in range(4):
        body = run[start:].rstrip(b"=")
        body = body[: len(body) - (len(body) % 4 == 1)]
        try:
            text = base64.b64decode(body + b"=" * (-len(body) % 4))
        except binascii.Error:
            continue
        inner, counts = redact(text, tokens, depth=depth + 1)
        if counts:
            packed = base64.b64encode(inner).rstrip(b"=")[: len(body)]
            run = run[:start] + packed + run[start + len(body) :]
            found["base64"] += sum(counts.values())
    return run


def _rewrapped(wrapped: bytes, fresh: bytes) -> bytes:
    out, at, end = [], 0, 0
    for gap in _GAP.finditer(wrapped):
        size = gap.start() - end
        out += [fresh[at : at + size], gap.group()]
        at, end = at + size, gap.end()
    return b"".join([*out, fresh[at:]])
