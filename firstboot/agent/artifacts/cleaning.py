"""One part of an incident bundle without its credentials: text, UTF-16, gzip or other bytes.

`redaction` says what is found. In bytes that are no text a credential becomes as many ``x``, since
places mean something there.
"""

from __future__ import annotations

import codecs
import zlib

from firstboot.api.multipart import LARGEST
from firstboot.base.redaction import redact

_GZIP = b"\x1f\x8b"
# What stands in these cannot be read here: bzip2, xz, zstd, zip, 7z, lz4.
_CLOSED = (
    _GZIP,
    b"BZh",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"PK\x03\x04",
    b"7z\xbc\xaf\x27\x1c",
    b"\x04\x22\x4d\x18",
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\v\x1b")) + b"\x7f"

Kinds = list[str]


def clean(data: bytes) -> tuple[bytes, Kinds, bool]:
    """Return the part, the kinds of what was cut out, and True when all of it could be read.

    A part that holds no credential comes back byte for byte.
    """
    if data.startswith(_CLOSED):
        return _unpacked(data)
    found = clean_text(data)
    return (*(found if found is not None else redact(data, keep_length=True)), True)


def clean_text(data: bytes) -> tuple[bytes, Kinds] | None:
    """Return a text and what was cut out of it, None when `data` is no text.

    A text is UTF-8, UTF-16, or bytes of an unknown encoding without control characters.
    """
    wide = _wide(data)
    if wide is not None:
        even = len(data) & ~1  # a log may be cut in the middle of a character
        text = data[:even].decode(wide, "surrogatepass").encode("utf-8", "surrogatepass")
        fresh, kinds = redact(text)
        if not kinds:
            return data, []
        text = fresh.decode("utf-8", "surrogatepass").encode(wide, "surrogatepass")
        return text + data[even:], kinds
    try:
        data.decode()
    except UnicodeDecodeError:
        if data.translate(None, _CONTROLS) != data:
            return None
    return redact(data)


def _wide(data: bytes) -> str | None:
    """Return the encoding of a text in UTF-16: its mark says so, or every second byte is zero."""
    for encoding, mark, zero in (
        ("utf-16-le", codecs.BOM_UTF16_LE, 1),
        ("utf-16-be", codecs.BOM_UTF16_BE, 0),
    ):
        letters, zeros = data[1 - zero : 256 : 2], data[zero:256:2]
        is_latin = letters.isascii() and b"\0" not in letters and not zeros.strip(b"\0")
        if data.startswith(mark) or (len(data) >= 8 and is_latin):
            return encoding
    return None


def _unpacked(data: bytes) -> tuple[bytes, Kinds, bool]:
    """Clean a rotated log in one gzip member; what is packed otherwise, or twice, is not read."""
    try:
        unpacking = zlib.decompressobj(wbits=31)
        inner = unpacking.decompress(data, LARGEST)
    except zlib.error:
        return data, [], False
    if not unpacking.eof or unpacking.unused_data or inner.startswith(_CLOSED):
        return data, [], False
    fresh, kinds, _ = clean(inner)
    if not kinds:
        return data, [], True
    packing = zlib.compressobj(wbits=31)
    return packing.compress(fresh) + packing.flush(), kinds, True
