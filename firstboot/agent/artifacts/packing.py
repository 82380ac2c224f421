"""Open a file, or pack a directory as an incident bundle.

A bundle is a gzip'd tar with its parts in the order of their names; times and owners are fixed, so
that the same content gives the same bytes. ``redactions.json`` at its end says what was cut out of
which part, what was left out (links, devices) and what could not be read (archives).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from firstboot.agent.artifacts import cleaning
from firstboot.api.multipart import LARGEST
from firstboot.base import files, trees
from firstboot.base.errors import LocalFault
from firstboot.base.layout import REDACTIONS, SIGNING_KEYS, SPEC
from firstboot.base.redaction import learn, redact_text

if TYPE_CHECKING:
    import tarfile

# What the vendor documents of a bundle, v1.
V1_PARTS = (
    SPEC,
    "spec_validation.json",
    "runtime.json",
    "policy_audit.json",
    "environment.json",
)
OURS = REDACTIONS
# Never changed, wherever they stand: a hash is taken of the former, the latter holds public keys.
VERBATIM = (SPEC, SIGNING_KEYS)
MOST_PARTS, DEEPEST = 4096, 16
LARGEST_PART, LARGEST_WHOLE = 64 << 20, 512 << 20  # bytes before packing


def hold(data: bytes) -> int:
    """Return an open file without a name that holds `data`; the caller closes it."""
    fd = os.memfd_create("artifact", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as stream:
            stream.write(data)
    except OSError as error:
        os.close(fd)
        raise LocalFault(
            f"there is no memory for an artifact of {len(data)} bytes", hint="free some memory"
        ) from error
    return fd


def digest(source: int, name: str) -> tuple[int, str]:
    """Return size and hash of an open file; LocalFault when it cannot be an artifact."""
    with files.attempt("read", Path(name)):
        announced = os.fstat(source).st_size
        if announced > LARGEST:
            raise LocalFault(
                f"{name} is larger than {LARGEST >> 20} MiB",
                hint=f"an artifact has at most {LARGEST >> 20} MiB",
            )
        found, size = hashlib.sha256(), 0
        while size <= announced:
            piece = os.pread(source, trees.PIECE, size)
            if not piece:
                break
            size += len(piece)
            found.update(piece)
    if size != announced:
        raise changed(name)
    if not size:
        raise LocalFault(f"{name} is empty", hint="there is nothing to upload")
    return size, found.hexdigest()


def changed(name: str) -> LocalFault:
    """Return the error for a file that somebody writes to while it is read."""
    return LocalFault(
        f"{name} changed while it was read", hint="upload a copy that nobody writes to"
    )


@dataclass
class Packed:
    """The parts of a bundle; `newest` is the time of the youngest, `spec_hash` that of the spec."""

    names: list[str] = field(default_factory=list)
    replaced: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    newest: float = 0.0
    spec_hash: str | None = None

    @property
    def missing(self) -> list[str]:
        """Name the parts of v1 that the directory does not have."""
        return [name for name in V1_PARTS if name not in self.names]


Part = tuple[str, float, bytes]  # path, time of change, content


def pack(top: int, into: BinaryIO) -> Packed:
    """Pack the directory open as `top`; LocalFault when it is unreadable or too large."""
    for _, _, data in _parts(top, Packed()):
        learn(data)
    packed = Packed()
    return write(_parts(top, packed), packed, into)


def write(parts: Iterable[Part], packed: Packed, into: BinaryIO) -> Packed:
    """Write `parts`, in their order, without their credentials; `packed` says what was done."""
    import gzip  # both stay out of the resident agent
    import tarfile

    used = {OURS}
    # Level and format are said, so that no default of another Python changes the bytes.
    with (
        gzip.GzipFile("", "wb", 6, into, mtime=0) as packing,
        tarfile.open(
            mode="w|", fileobj=packing, format=tarfile.PAX_FORMAT, encoding="utf-8"
        ) as tar,
    ):
        for path, changed_at, data in parts:
            packed.names.append(path)
            packed.newest = max(packed.newest, changed_at)
            if path == SPEC:
                packed.spec_hash = f"sha256:{hashlib.sha256(data).hexdigest()}"
            name = _name(path, used)
            is_verbatim = path.rpartition("/")[2] in VERBATIM
            clean, found, seen = (data, [], True) if is_verbatim else cleaning.clean(data)
            kinds = [*found, "name"] if name != path else found
            if kinds:
                packed.replaced.append({"part": name, "kinds": kinds})
            if not seen:
                packed.unseen.append(name)
            _put(tar, name, clean)
            _require_small(into)
        if not packed.names:
            raise LocalFault(
                "the directory holds no file", hint="an incident bundle has at least one part"
            )
        said = {
            "replaced": packed.replaced,
            "left_out": packed.left_out,
            "not_looked_into": packed.unseen,
        }
        if any(said.values()):
            _put(tar, OURS, (json.dumps({"v": 1, **said}, indent=1) + "\n").encode())
    _require_small(into)
    return packed


def _require_small(into: BinaryIO) -> None:
    if into.tell() > LARGEST:
        raise LocalFault(
            f"the incident bundle is larger than {LARGEST >> 20} MiB when packed",
            hint="leave parts out",
        )


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tar.tarinfo(name)
    entry.size, entry.mode = len(data), 0o644  # time and owners are 0 and nameless from the start
    tar.addfile(entry, io.BytesIO(data))


def _name(path: str, used: set[str]) -> str:
    """Return the part's name in the bundle: printable, without credentials, not yet used."""
    shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    name = "/".join(map(redact_text, shown.split("/")))
    free, number = name, 0
    while free in used:
        number += 1
        free = f"{name}.{number}"
    used.add(free)
    return free


def _parts(top: int, found: Packed) -> Iterator[Part]:
    """Yield path, time and bytes of each regular file below `top`; list others in `left_out`."""
    count, whole = 0, 0
    for path, fd in _files(top, "", 0, found):
        with files.attempt("read", Path(path)):
            before = os.fstat(fd)
            if before.st_size > LARGEST_PART:
                raise LocalFault(
                    f"{path} is larger than {LARGEST_PART >> 20} MiB",
                    hint="leave it out, or cut it",
                )
            with open(fd, "rb", closefd=False) as stream:
                data = stream.read(before.st_size + 1)
            after = os.fstat(fd)
        if len(data) != before.st_size or (before.st_size, before.st_mtime_ns) != (
            after.st_size,
            after.st_mtime_ns,
        ):
            raise LocalFault(
                f"{path} changed while it was read", hint="pack a copy that nobody writes to"
            )
        count, whole = count + 1, whole + len(data)
        if count > MOST_PARTS or whole > LARGEST_WHOLE:
            raise LocalFault(
                f"the directory holds more than {MOST_PARTS} files or {LARGEST_WHOLE >> 20} MiB",
                hint="leave parts out",
            )
        yield path, before.st_mtime, data


def _files(directory: int, above: str, depth: int, found: Packed) -> Iterator[tuple[str, int]]:
    """Yield path and descriptor of each regular file; no link is followed."""
    if depth > DEEPEST:
        raise LocalFault(
            f"{above} is deeper than {DEEPEST} directories", hint="leave it out, or pack it flatter"
        )
    with files.attempt("read", Path(above or ".")):
        names = sorted(os.listdir(directory))
    for name in names:
        path = f"{above}{name}"
        with files.attempt("read", Path(path)):
            mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                # Told by its mode alone: opening a device does things.
                found.left_out.append({"part": _name(path, set()), "why": kind_of(mode)})
                continue
            flags = files.DIRECTORY if stat.S_ISDIR(mode) else files.READ
            fd = os.open(name, flags, dir_fd=directory)
        try:
            if stat.S_ISDIR(mode):
                yield from _files(fd, f"{path}/", depth + 1, found)
            elif stat.S_ISREG(os.fstat(fd).st_mode):
                yield path, fd
        finally:
            os.close(fd)


def kind_of(mode: int) -> str:
    """Return a noun for what stands in a directory, with its article."""
    nouns = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a directory",
        stat.S_IFREG: "a file",
    }
    return nouns.get(stat.S_IFMT(mode), "a device")
