"""Find every copy of a secret in a tree, in whatever form something wrote it.

Searched in the bytes as they are: the secret raw, reversed, in hex, in UTF-16, and in base64 at its
three alignments, also where a line break cuts it. Then in what the bytes unpack to: gzip, zstd, xz
and bzip2 wherever one begins, base64, pickles, each inside another too. File names and link targets
are searched as well. What could not be read is reported, never passed over: a scan with something
``unread`` proves nothing.

The secret's longest stretch of letters and digits stands for it, since nothing escapes or quotes
those; it has to be at least 20 long, as ``canary()`` makes them.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import lzma
import os
import pickletools
import re
import secrets
import stat
import string
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import zstandard

CORE_CHARACTERS = 20
# What one packed member may unpack to, how much of a file is looked at together, and how deep
# members are unpacked: all far above what cloud-init, the journal and a package manager write.
PIECE_BYTES = 64 * 1024 * 1024
OVERLAP_BYTES = 1024 * 1024
DEPTH = 5

_STEP = 64 * 1024
_GAPS = re.compile(rb"=\r?\n|\\r|\\n|\s+")  # line breaks: quoted-printable's, JSON's, everybody's
_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/_-]{32,}")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class _Decompressor(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


_PACKED: tuple[tuple[str, bytes, Callable[[], _Decompressor]], ...] = (
    ("gzip", b"\x1f\x8b\x08", lambda: zlib.decompressobj(wbits=31)),
    ("zstd", b"\x28\xb5\x2f\xfd", lambda: zstandard.ZstdDecompressor().decompressobj()),
    ("xz", b"\xfd7zXZ\0", lzma.LZMADecompressor),
    ("bzip2", b"BZh", bz2.BZ2Decompressor),
)


def canary(length: int = 40) -> str:
    """A random secret to plant: letters and digits only, so that every writer writes it the same
    way.
    """
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


@dataclass(frozen=True)
class Hit:
    """One copy: the place, and the forms from the outermost to the one the secret was in."""

    place: str
    form: str

    def __str__(self) -> str:
        return f"{self.place} ({self.form})"


@dataclass
class Findings:
    """What a scan found, how much it looked at, and what it could not look at."""

    hits: list[Hit] = field(default_factory=list)
    files: int = 0
    octets: int = 0
    unread: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def places(self) -> set[str]:
        """The places with at least one copy."""
        return {hit.place for hit in self.hits}

    def add(self, other: Findings) -> None:
        """Take over what another scan found."""
        self.hits += other.hits
        self.files += other.files
        self.octets += other.octets
        self.unread += other.unread


def scan_bytes(data: bytes, secret: str) -> set[str]:
    """The forms in which ``secret`` is in ``data``: ``raw``, ``base64+1``, ``gzip > raw``, …"""
    return _forms(data, _needles(secret), DEPTH)


def scan_file(path: Path, secret: str, *, place: str | None = None) -> Findings:
    """Scan one regular file, a piece at a time; ``place`` names it in the hits."""
    name, needles = place or str(path), _needles(secret)
    found, forms = Findings(files=1), set()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                found.octets += len(piece)
                forms |= _forms(piece, needles, DEPTH)
                if len(piece) == PIECE_BYTES:
                    file.seek(-OVERLAP_BYTES, os.SEEK_CUR)
    except (FileNotFoundError, ProcessLookupError):
        return Findings()  # a live system: it was removed, or the process ended, while we looked
    except OSError as error:
        found.unread.append(f"{name}: {error.strerror}")
    found.hits += [Hit(name, form) for form in sorted(forms)]
    return found


def scan_tree(root: Path, secret: str, *, prefix: str = "", skip: Collection[str] = ()) -> Findings:
    """Scan every name, link target and regular file under ``root``; ``skip`` names directories by
    their path below it.

    Places are given as paths below ``root`` with ``prefix`` before them. Mounts below ``root`` are
    entered.
    """
    needles, found = _needles(secret), Findings()
    for path, below, mode in _walk(root, "", skip, found):
        place = f"{prefix}/{below}"
        names = os.fsencode(below)
        if stat.S_ISLNK(mode):
            names += b" -> " + os.readlink(os.fsencode(path))
        found.hits += [Hit(place, f"name > {form}") for form in sorted(_forms(names, needles, 1))]
        if stat.S_ISREG(mode):
            found.add(scan_file(path, secret, place=place))
    return found


def scan_processes(proc: Path, secret: str) -> Findings:
    """Scan the environment and the command line of every process under a mounted ``proc``."""
    found = Findings()
    for process in proc.iterdir():
        if process.name.isdecimal():
            for part in ("environ", "cmdline"):
                found.add(scan_file(process / part, secret, place=f"/proc/{process.name}/{part}"))
    return found


def _walk(
    directory: Path, below: str, skip: Collection[str], found: Findings
) -> Iterator[tuple[Path, str, int]]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        found.unread.append(f"{directory}: {error.strerror}")
        return
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if name in skip:
            continue
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except FileNotFoundError:
            continue
        yield Path(entry.path), name, mode
        if stat.S_ISDIR(mode):
            yield from _walk(Path(entry.path), name, skip, found)


def _needles(secret: str) -> tuple[tuple[str, bytes], ...]:
    core = max(re.findall(r"[A-Za-z0-9]+", secret), key=len, default="")
    if len(core) < CORE_CHARACTERS:
        raise ValueError(
            f"scan for a secret with at least {CORE_CHARACTERS} letters and digits on end"
        )
    raw = core.encode("ascii")
    needles = {
        ("raw", raw),
        ("reversed", raw[::-1]),
        ("hex", raw.hex().encode()),
        ("hex", raw.hex().upper().encode()),
        ("utf-16le", core.encode("utf-16-le")),
        ("utf-16be", core.encode("utf-16-be")),
    }
    for shift in range(3):
        # A character of base64 holds six bits: only characters made of the secret's own bits are
        # the same whatever stands around it.
        first, end = -(-8 * shift // 6), 8 * (shift + len(raw)) // 6
        coded = base64.b64encode(b"\0" * shift + raw)[first:end]
        needles |= {
            (f"base64+{shift}", coded),
            (f"base64+{shift}", coded.translate(bytes.maketrans(b"+/", b"-_"))),
        }
    return tuple(sorted(needles))


def _forms(data: bytes, needles: tuple[tuple[str, bytes], ...], depth: int) -> set[str]:
    forms = {form for form, needle in needles if needle in data}
    joined = _GAPS.sub(b"", data) if b"\n" in data or b"\\n" in data else data
    if joined is not data:
        forms |= {form for form, needle in needles if needle in joined}
    if depth > 0:
        for outer, inner in _unpacked(data, joined):
            forms |= {f"{outer} > {form}" for form in _forms(inner, needles, depth - 1)}
    return forms


def _unpacked(data: bytes, joined: bytes) -> Iterator[tuple[str, bytes]]:
    for form, magic, decompressor in _PACKED:
        start = data.find(magic)
        while start >= 0:
            inner = _decompressed(data, start, decompressor())
            if inner:
                yield form, inner
            start = data.find(magic, start + 1)
    for text in {data, joined}:
        runs = [run.translate(_URL_SAFE) for run in _BASE64_RUN.findall(text)]
        for shift in range(4 if runs else 0):  # letters may stand directly before the coded text
            yield "base64", b"\xff\xfe".join(_decoded(run[shift:]) for run in runs)
    if data.startswith(b"\x80") or data.endswith(
        b"."
    ):  # how newer pickles begin, and how all of them end
        yield from (("pickle", inner) for inner in _pickled(data))


def _decompressed(data: bytes, start: int, decompressor: _Decompressor) -> bytes:
    """What can be unpacked from ``start`` on: a member that is cut or damaged gives what came
    before the damage.
    """
    out = bytearray()
    view = memoryview(data)
    for position in range(start, len(data), _STEP):
        try:
            out += decompressor.decompress(bytes(view[position : position + _STEP]))
        except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError):
            break
        if len(out) > PIECE_BYTES or getattr(decompressor, "eof", False):
            break
    return bytes(out)


def _decoded(coded: bytes) -> bytes:
    try:
        return binascii.a2b_base64(coded[: len(coded) // 4 * 4])
    except binascii.Error:
        return b""


def _pickled(data: bytes) -> Iterator[bytes]:
    """Every string in a pickle, without unpickling anything: the old protocols write bytes
    escaped.
    """
    try:
        for _, argument, _ in pickletools.genops(data):
            if isinstance(argument, bytes):
                yield argument
            elif isinstance(argument, str):
                # protocols 0 to 2 write bytes as the text of their latin-1 reading
                yield argument.encode("latin-1", "replace")
    except (ValueError, KeyError, IndexError):
        return  # it only looked like a pickle, or it is cut
