"""Bundles: built reproducibly, and every kind of archive that a host must refuse."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import Callable, Optional

FOUR_GIB = 4 << 30
MAX_ENTRIES = 4096
Member = tuple[tarfile.TarInfo, Optional[bytes]]


def pack(data: bytes) -> bytes:
    """gzip without name and time, so that the same content is the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def member(
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    link: str = "",
) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = 1, 3
    return info, data if kind == tarfile.REGTYPE else None


def archive(members: Iterable[Member]) -> bytes:
    """A tar of `members` as they are: order, names and modes are the caller's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if data is not None else None)
    return buffer.getvalue()


def members_of(files: Mapping[str, bytes]) -> Iterable[Member]:
    """Directories before their files, sorted, root's, at time zero."""
    directories = {name[:at] for name in files for at, letter in enumerate(name) if letter == "/"}
    for name in sorted([*files, *directories]):
        if name in directories:
            yield member(name, kind=tarfile.DIRTYPE, mode=0o755)
        else:
            yield member(name, files[name])


def build(files: Mapping[str, bytes]) -> bytes:
    """The bundle of `files`: the same bytes for the same content."""
    return pack(archive(members_of(files)))


def _with(*extra: Member) -> Callable[[Mapping[str, bytes]], bytes]:
    return lambda files: pack(archive([*members_of(files), *extra]))


def _over_four_gib(files: Mapping[str, bytes]) -> bytes:
    # A gzip file may have many members: one packed block of zeros, repeated, is quick to make and
    # small to send.
    block = bytes(64 << 20)
    count = FOUR_GIB // len(block) + 1
    info, _ = member("zeros")
    info.size = count * len(block)
    head = b"".join(
        archive([one])[: 512 + -(-one[0].size // 512) * 512] for one in members_of(files)
    )
    return pack(head + info.tobuf(tarfile.GNU_FORMAT)) + pack(block) * count + pack(bytes(1024))


def _two_specs(files: Mapping[str, bytes]) -> bytes:
    return pack(archive([*members_of(files), member("spec.kv", b"another = 1\n")]))


UNSAFE: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "absolute": _with(member("/etc/evil", b"x")),
    "parent": _with(member("../evil", b"x")),
    "parent_inside": _with(member("adapters/../../evil", b"x")),
    "symlink": _with(member("evil", kind=tarfile.SYMTYPE, link="/etc/passwd")),
    "hardlink": _with(member("evil", kind=tarfile.LNKTYPE, link="spec.kv")),
    "character_device": _with(member("evil", kind=tarfile.CHRTYPE)),
    "block_device": _with(member("evil", kind=tarfile.BLKTYPE)),
    "fifo": _with(member("evil", kind=tarfile.FIFOTYPE)),
    "set_uid": _with(member("evil", b"x", mode=0o4755)),
    "set_gid": _with(member("evil", b"x", mode=0o2755)),
    "duplicate": _with(member("notes.txt", b"1"), member("notes.txt", b"2")),
    "case_collision": _with(member("notes.txt", b"1"), member("NOTES.txt", b"2")),
    "file_and_directory": _with(member("notes", b"1"), member("notes/inside", b"2")),
    "entries": _with(*(member(f"n{number}") for number in range(MAX_ENTRIES + 1))),
    "ratio": _with(member("zeros", bytes(16 << 20))),
    "size": _over_four_gib,
}
MALFORMED: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "not_gzip": lambda files: archive(members_of(files)),
    "not_tar": lambda files: pack(b"this is no archive\n" * 100),
    "cut": lambda files: build(files)[:-20],
    "cut_tar": lambda files: pack(archive(members_of(files))[:700]),
    "empty": lambda files: pack(archive([])),
    "no_spec": lambda files: build(
        {**{name: data for name, data in files.items() if name != "spec.kv"}, "a": b"a"}
    ),
    "two_specs": _two_specs,
}
