"""Tars and bundles made block by block, and what unpacking them comes to."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path
from typing import Any

from firstboot.activate import unpack
from firstboot.activate.tarstream import PACKED_PIECE
from firstboot.base.errors import Untrusted
from tests.controlplane import bundles
from tests.controlplane.bundles import archive, members_of, pack

LONG = "n" * 200
FILES = {"spec.kv": b"name = one\n", "adapters/feed.conf": b"feed = 1\n"}


def verdict(data: bytes, place: Path, *, packed_size: int = 0) -> str:
    """Unpack in `place`/into and return the code; whatever it is, nothing beside `into` may have
    changed.
    """
    place.mkdir(exist_ok=True)
    bundle, into = place / "bundle", place / "into"
    bundle.write_bytes(data)
    (place / "neighbour").write_bytes(b"untouched")
    before = picture(place.parent, without=into)
    try:
        unpack.unpack(bundle, into, packed_size=packed_size or len(data))
        code = "ok"
    except Untrusted as error:
        code = error.code
        assert str(error).startswith("the bundle is ")
        assert str(error).isprintable()
    assert picture(place.parent, without=into) == before
    return code


def picture(top: Path, *, without: Path) -> dict[str, tuple[int, bytes]]:
    """Every name below `top` with its mode and bytes, but for the tree `without`."""
    found = {}
    for path in sorted(top.rglob("*")):
        if without not in (path, *path.parents):
            facts = path.lstat()
            found[str(path)] = (
                facts.st_mode,
                path.read_bytes() if stat.S_ISREG(facts.st_mode) else b"",
            )
    return found


def contents(into: Path) -> dict[str, bytes]:
    """The files of an unpacked directory."""
    return {
        str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()
    }


def having(*extra: bundles.Member) -> bytes:
    """The good bundle and more."""
    return pack(archive([*members_of(FILES), *extra]))


def raw(*headers: bytes) -> bytes:
    """The good bundle with blocks of our own making before its end."""
    good = archive(members_of(FILES)).rstrip(b"\0")
    return pack(good + bytes(-len(good) % 512) + b"".join(headers) + bytes(1024))


def header(
    name: str = "x", *, kind: bytes = b"0", data: bytes = b"", claims: int = -1, **fields: Any
) -> bytes:
    """One entry as blocks: `claims` is a size that is not the data's, `fields` are TarInfo's."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if claims < 0 else claims
    for key, value in fields.items():
        setattr(info, key, value)
    # Each format writes the type and size as they are; a name that needs an extension is the
    # caller's affair.
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def patched(block: bytes, at: int, text: bytes) -> bytes:
    """A header with `text` at an offset and its checksum made right again."""
    changed = bytearray(block)
    changed[at : at + len(text)] = text
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def pax(*records: bytes, kind: bytes = b"x", entry: bytes = b"") -> bytes:
    """An extended header of these ``KEY=VALUE`` records, then an entry."""
    body = b""
    for record in records:
        length = len(record) + 3
        length = len(record) + 2 + len(str(len(record) + 2 + len(str(length))))
        body += b"%d %s\n" % (length, record)
    return header("PaxHeaders", kind=kind, data=body) + entry


def filled(packed: bytes) -> bytes:
    """A gzip member made as long as the pieces that are read, by a name in its header."""
    return (
        packed[:3]
        + b"\x08"
        + packed[4:10]
        + b"n" * (PACKED_PIECE - len(packed) - 1)
        + b"\0"
        + packed[10:]
    )
