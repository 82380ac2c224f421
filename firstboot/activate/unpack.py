"""Unpack a verified bundle into a fresh directory, or refuse it with the reason (contract 3).

A signature says who made an archive, not that it is harmless: with the signing key alone nobody may
write outside the directory, fill the disk or the memory, or leave a name behind that two programs
read differently. Modes are ours (0755, 0644, an executable 0755); owners, times and attributes of
the archive are not taken. `tarstream` refuses members that are neither file nor directory.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from firstboot.activate.tarstream import Entry, entries, malformed, shown, unsafe
from firstboot.base import files, trees
from firstboot.base.errors import Untrusted
from firstboot.base.layout import DEPLOYMENT_MARKER, SIGNING_KEYS, SPEC

UNPACKED_LIMIT = 4 << 30  # bytes of the whole tar
RATIO_LIMIT = 200  # times the packed size
# Bytes; a smaller bundle counts as this large: tar fills up to 10 KiB with zeros.
RATIO_FLOOR = 4096
BLOCK_BYTES = 4096  # of a file system
ENTRY_LIMIT = 4096
IMPLIED_LIMIT = 4096  # directories that have no entry of their own
COMPONENT_LIMIT = 255  # bytes, as every file system of Linux has it
PATH_LIMIT = 1024  # bytes
DEPTH_LIMIT = 32  # components

# Control and format characters and line ends: what a terminal obeys and a reader cannot see.
_INVISIBLE = {"Cc", "Cf", "Zl", "Zp"}
_ALIKE = "a name that differs only in case or accents"


def measure(bundle: Path, *, packed_size: int) -> int:
    """Return the bytes on disk that `bundle` unpacks to; Untrusted when it is not to be unpacked.

    Everything that can be refused is refused here, before a byte is written.
    """
    total = 0
    for _, entry, pieces in _admitted(bundle, packed_size):
        for _ in pieces:
            pass
        total += -(-entry.size // BLOCK_BYTES) * BLOCK_BYTES + BLOCK_BYTES  # with its inode
    return total


def unpack(
    bundle: Path, into: Path, *, packed_size: int, ours: Mapping[str, bytes] | None = None
) -> None:
    """Unpack `bundle`, of `packed_size` bytes, into the new directory `into`.

    Untrusted says why not. `ours` are files of this host's, which are added. Nothing is written
    outside `into`; after an error what is there is for the caller to remove. Not durable: that is
    `trees.complete`. Not checked: that the bundle is the one that was signed.
    """
    with trees.filling(into) as tree:
        for parts, entry, pieces in _admitted(bundle, packed_size):
            encoded = [part.encode() for part in parts]
            if entry.is_directory:
                tree.directory(encoded)
            else:
                tree.file(encoded, pieces, executable=bool(entry.mode & 0o111))
        for name, data in (ours or {}).items():
            tree.file([name.encode()], [data], executable=False)


def _admitted(
    bundle: Path, packed_size: int
) -> Iterator[tuple[tuple[str, ...], Entry, Iterator[bytes]]]:
    """Yield the entries that may be written, with their names' components and their bytes."""
    limit = min(UNPACKED_LIMIT, RATIO_LIMIT * max(packed_size, RATIO_FLOOR))
    names = _Names()
    with _opened(bundle) as source:
        for entry, pieces in entries(source, bundle, limit=limit):
            if entry.mode & 0o7000:
                unsafe(f"{shown(entry.name)} has set-id or sticky bits")
            yield names.admit(entry), entry, pieces
    if not names.is_file((SPEC,)):
        malformed(f"it has no {SPEC}")


@dataclass(frozen=True)
class _Made:
    parts: tuple[str, ...]
    kind: str  # file, directory, or implied: a directory that only the names below it ask for


class _Names:
    """The names that an archive has had so far.

    Two that a file system without case would take for one are refused.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str, ...], _Made] = {}
        self._entries = 0

    def admit(self, entry: Entry) -> tuple[str, ...]:
        """Return the components of a name that may be made now."""
        self._entries += 1
        if self._entries > ENTRY_LIMIT:
            unsafe(f"more than {ENTRY_LIMIT} entries")
        parts = components(entry)
        folded = tuple(map(_fold, parts))
        if folded[:1] in _RESERVED:
            unsafe(f"{shown(entry.name)} is this host's own name")
        for depth in range(1, len(parts)):
            above = self._made.setdefault(folded[:depth], _Made(parts[:depth], "implied"))
            if above.kind == "file" or above.parts != parts[:depth]:
                unsafe(f"{shown(entry.name)} is below a file, or {_ALIKE}")
        known = self._made.get(folded)
        if known is not None and not (entry.is_directory and known == _Made(parts, "implied")):
            if parts == (SPEC,) == known.parts:
                malformed(f"it has two {SPEC}")
            unsafe(f"{shown(entry.name)} is there twice, or beside {_ALIKE}")
        self._made[folded] = _Made(parts, "directory" if entry.is_directory else "file")
        if len(self._made) > ENTRY_LIMIT + IMPLIED_LIMIT:
            unsafe(f"more than {ENTRY_LIMIT + IMPLIED_LIMIT} files and directories")
        return parts

    def is_file(self, parts: tuple[str, ...]) -> bool:
        return self._made.get(tuple(map(_fold, parts))) == _Made(parts, "file")


def components(entry: Entry) -> tuple[str, ...]:
    """Split a name that may be written; ``./a//b`` is ``a/b``, as ``tar -C DIR .`` writes it."""
    name = entry.name
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        unsafe(f"{shown(name)} is not UTF-8")
    raw = text.split("/")
    parts = tuple(part for part in raw if part not in ("", "."))
    if text.startswith("/") or ".." in raw:
        unsafe(f"{shown(name)} leads out of the directory")
    if not text or (not entry.is_directory and raw[-1] in ("", ".")):
        unsafe(f"{shown(name)} is no name of a file")
    if (
        len(name) > PATH_LIMIT
        or len(parts) > DEPTH_LIMIT
        or any(len(part.encode()) > COMPONENT_LIMIT for part in parts)
    ):
        unsafe(f"{shown(name)} is too long or too deep")
    if "\\" in text or any(unicodedata.category(letter) in _INVISIBLE for letter in text):
        unsafe(f"{shown(name)} has an invisible character or a backslash")
    return parts


def _fold(part: str) -> str:
    """Return the same for names that differ in case or in how letters are composed.

    Unicode's canonical caseless matching.
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", part).casefold())


_RESERVED = {(_fold(name),) for name in (DEPLOYMENT_MARKER, SIGNING_KEYS)}


def spec_hash(into: Path) -> str:
    """Return ``sha256:<hex>`` of the ``spec.kv`` in an unpacked directory."""
    path, digest = into / SPEC, hashlib.sha256()
    with _opened(path) as stream, files.attempt("read", path):
        while piece := stream.read(trees.PIECE):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _opened(path: Path) -> BinaryIO:
    """Open a file in a directory of ours for reading; a link is not followed."""
    with files.attempt("read", path):
        return os.fdopen(os.open(path, files.READ), "rb")


def read_member(into: Path, name: str, *, limit: int) -> bytes | None:
    """Return the bytes of one file of an unpacked directory, None when there is no such file.

    Untrusted when it is too large.
    """
    path = into / name
    if not path.is_file() or path.is_symlink():
        return None
    if path.stat().st_size > limit:
        raise Untrusted("malformed_bundle", f"{name} in the bundle is larger than {limit} bytes")
    return files.read(path, limit=limit)
