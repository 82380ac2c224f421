"""Whether a file holds one given secret as it is: in its raw bytes, or in what a gzip file unpacks to.

The last net before an artifact is sent. What is packed otherwise, packed twice or encoded is not looked into.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

from firstboot.api.multipart import WrongContent
from firstboot.base.secret import Secret

SCAN_BYTES = 256 * 1024
MOST_INFLATED = 1 << 30  # bytes; a packed file of 64 MiB can unpack to 64 GiB
_GZIP = b"\x1f\x8b"


def holds(fd: int, secret: Secret) -> bool:
    """Whether the secret stands in the file that `fd` is open on; WrongContent when that cannot be read."""
    needle = secret.reveal().encode()
    return _within(_raw(fd), needle) or _within(_inflated(fd), needle)


def _within(pieces: Iterator[bytes], needle: bytes) -> bool:
    tail = b""
    for piece in pieces:
        window = tail + piece
        if needle in window:
            return True
        tail = window[-len(needle) :]
    return False


def _raw(fd: int) -> Iterator[bytes]:
    offset = 0
    while True:
        try:
            piece = os.pread(fd, SCAN_BYTES, offset)
        except OSError as error:
            # Not an OSError: a bad sector under one artifact must not end the loop (as in `multipart`).
            raise WrongContent(
                f"the artifact cannot be read: {os.strerror(error.errno or 0).lower()}"
            ) from error
        if not piece:
            return
        offset += len(piece)
        yield piece


def _inflated(fd: int) -> Iterator[bytes]:
    """What a gzip file unpacks to, all its members; damage, or the bound, ends it quietly."""
    unpacking, count, packed = zlib.decompressobj(wbits=31), 0, False
    for piece in _raw(fd):
        packed = packed or piece.startswith(_GZIP)
        if not packed:
            return
        while piece:
            try:
                inner = unpacking.decompress(piece, SCAN_BYTES)
            except zlib.error:
                return
            count += len(inner)
            yield inner
            if count > MOST_INFLATED:
                return
            piece = unpacking.unconsumed_tail
            if unpacking.eof:
                # Members follow one another, with or without zeros between them.
                piece, unpacking = unpacking.unused_data.lstrip(b"\0"), zlib.decompressobj(wbits=31)
    yield unpacking.flush()  # what the bound of the last call held back: some bytes
