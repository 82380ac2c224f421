"""Read a gzip'd tar once, front to back: strict, in bounded memory, within its limit.

Not `tarfile`: it takes a damaged header for the end of the archive, reads extension headers of any
size into memory, and understands kinds of entries that a bundle must not have. Read are the headers
that GNU tar, bsdtar, Go, git and Python write: ustar, GNU long names, pax. Every doubt is a
refusal, `malformed_bundle` or `unsafe_archive`; what a name may be is decided in `unpack`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from firstboot.base import files
from firstboot.base.errors import Untrusted

BLOCK = 512  # bytes; the unit of a tar
PIECE = 256 << 10  # bytes inflated at a time
# Bytes read at a time; what is not inflated yet is copied at each step, so it is small.
PACKED_PIECE = 32 << 10
# Bytes of one pax or long-name header: extended attributes are up to 64 KiB each.
EXTENSION_LIMIT = 256 << 10

FORBIDDEN = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"K": "a link",
    b"S": "a sparse file",
}
# Records of an extended header that say what an entry is; times, owners, attributes are not for us.
_MEANT = (b"path", b"size", b"linkpath")


@dataclass(frozen=True)
class Entry:
    """A file or directory as the archive names it; `mode` may have more bits than chmod's."""

    name: bytes
    is_directory: bool
    mode: int
    size: int


def malformed(sentence: str) -> NoReturn:
    raise Untrusted("malformed_bundle", f"the bundle is damaged: {sentence}")


def unsafe(sentence: str) -> NoReturn:
    raise Untrusted("unsafe_archive", f"the bundle is not safe to unpack: {sentence}")


def shown(name: bytes) -> str:
    """Return a name out of an archive for a message: short, on one line, quoted and escaped."""
    return repr(name.decode("utf-8", "backslashreplace")[:80])


def entries(source: BinaryIO, path: Path, *, limit: int) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """Yield each entry with its bytes in pieces.

    The pieces are to be taken before the next entry is asked for. `limit` is for the whole tar in
    bytes, headers and padding included; `path` names the file in a LocalFault.
    """
    tar = _Inflated(source, path, limit)
    extension: dict[bytes, bytes] | None = None
    while True:
        block = tar.exactly(BLOCK)
        if not any(block):
            break
        kind, size = _checked(block), _number(block[124:136])
        if kind in (b"x", b"g", b"L"):
            found = _extension(kind, tar, size)
            if kind == b"g":
                continue
            if extension is not None:
                malformed("two headers that extend one entry")
            extension = found
            continue
        entry = _entry(block, kind, extension or {}, size)
        extension = None
        tar.require(entry.size)  # what cannot be allowed is refused before the first of its bytes
        yield entry, tar.pieces(entry.size)
        tar.padding(entry.size)
    if extension is not None:
        malformed("an extended header at the end")
    while piece := tar.read(PIECE):
        if piece.count(0) != len(piece):
            malformed("something after the end of the archive")


def _checked(block: bytes) -> bytes:
    """The kind of entry of a header whose checksum and magic are right."""
    unsigned = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if block[257:263] not in (b"ustar\0", b"ustar ") or _number(block[148:156]) != unsigned:
        malformed("not a tar header")
    return block[156:157]


def _entry(block: bytes, kind: bytes, extension: dict[bytes, bytes], size: int) -> Entry:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0]
    if prefix and block[257:263] == b"ustar\0":  # GNU's own format has times in its place
        name = prefix + b"/" + name
    name = extension.get(b"path", name)
    if kind not in (b"0", b"\0", b"5"):
        unsafe(f"{shown(name)} is {FORBIDDEN.get(kind, 'of a kind that a bundle cannot have')}")
    if b"linkpath" in extension or any(key.startswith(b"GNU.sparse.") for key in extension):
        unsafe(f"{shown(name)} is a link or a sparse file")
    if b"size" in extension:
        if not re.fullmatch(rb"[0-9]{1,20}", extension[b"size"]):
            malformed("a size that is no number")
        size = int(extension[b"size"])
    is_directory = kind == b"5"
    if is_directory and size:
        malformed("a directory that has a size")
    return Entry(name, is_directory, _number(block[100:108]), size)


def _extension(kind: bytes, tar: _Inflated, size: int) -> dict[bytes, bytes]:
    """Return what a header says that extends the next entry, as far as it is for us."""
    if size > EXTENSION_LIMIT:
        unsafe(f"an extended header of more than {EXTENSION_LIMIT} bytes")
    data = b"".join(tar.pieces(size))
    tar.padding(size)
    if kind == b"L":
        return {b"path": data[:-1] if data.endswith(b"\0") else data}
    found = _records(data)
    if kind == b"g" and found:
        unsafe("a global header that renames or resizes every entry")
    return found


def _records(data: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax header that say what an entry is.

    Each is ``LENGTH KEY=VALUE\\n``, the length being the record's.
    """
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        match = re.compile(rb"([0-9]{1,7}) ([^=]+)=").match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            malformed("an extended header that cannot be read")
        key = match[2]
        if key in _MEANT or key.startswith(b"GNU.sparse."):
            if key in found:
                malformed("an extended header that says a thing twice")
            found[key] = data[match.end() : end - 1]
        at = end
    return found


def _number(field: bytes) -> int:
    """Return a number of a header: octal digits, or GNU's base 256 for what is too large."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", text):
        malformed("a number that is none")
    return int(text or b"0", 8)


class _Inflated:
    """The tar inside a gzip file of one or more members; inflates at most `limit` bytes."""

    def __init__(self, source: BinaryIO, path: Path, limit: int) -> None:
        self._source, self._path, self._left = source, path, limit
        self._member = zlib.decompressobj(wbits=31)
        self._packed = b""

    def require(self, size: int) -> None:
        if size > self._left:
            unsafe("it unpacks to more than 4 GiB, or to more than 200 times its packed size")

    def read(self, size: int) -> bytes:
        """At least one byte and at most `size`; none only at the end."""
        while True:
            if self._member.eof:
                self._packed = self._member.unused_data or self._more()
                if not self._packed:
                    return b""
                self._member = zlib.decompressobj(wbits=31)
            self._packed = self._packed or self._more()
            over = not self._packed
            try:
                piece = self._member.decompress(self._packed, size)
            except zlib.error as error:
                raise Untrusted(
                    "malformed_bundle", "the bundle is damaged: not gzip, or changed"
                ) from error
            self._packed = self._member.unconsumed_tail
            self.require(len(piece))
            self._left -= len(piece)
            if piece:
                return piece
            if over and not self._member.eof:
                malformed("cut off")

    def _more(self) -> bytes:
        with files.attempt("read", self._path):
            return self._source.read(PACKED_PIECE)

    def pieces(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.read(min(size, PIECE))
            if not piece:
                malformed("cut off")
            size -= len(piece)
            yield piece

    def exactly(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def padding(self, size: int) -> None:
        """Pass over what fills the last block of `size` bytes."""
        self.exactly(-size % BLOCK)
