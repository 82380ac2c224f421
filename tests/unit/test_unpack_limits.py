"""Unpacking within the limits of the contract, of memory and of the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Callable

import pytest

from firstboot.activate import unpack
from firstboot.base.errors import Untrusted
from tests.controlplane import bundles
from tests.controlplane.bundles import archive, member, members_of, pack
from tests.unit.tars import (
    FILES,
    having,
    header,
    pax,
    raw,
    verdict,
)


def test_a_full_disk_is_a_fault_of_this_host(tmp_path: Path) -> None:
    """The plane must not hear that its bundle is bad when ours is the disk that is full."""
    (tmp_path / "bundle").write_bytes(having(member("large", os.urandom(200_000))))
    said = limited(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))",
        tmp_path,
        packed_size=200_000,
    )
    assert said.startswith("LocalFault cannot write a file in")


def test_the_limits_are_those_of_the_contract() -> None:
    """They are numbers that the plane's publisher relies on."""
    assert (unpack.UNPACKED_LIMIT, unpack.RATIO_LIMIT, unpack.ENTRY_LIMIT) == (4 << 30, 200, 4096)


@pytest.mark.parametrize("over", [0, 1])
def test_the_ratio_counts_the_whole_tar(over: int, tmp_path: Path) -> None:
    """200 times the packed size is allowed, one block more is not: the same count as the plane's
    examiner makes.
    """
    tar = archive(members_of({"spec.kv": bytes(2 << 20)}))
    assert verdict(pack(tar), tmp_path / "w", packed_size=len(tar) // 200 - over) == (
        "ok" if not over else "unsafe_archive"
    )


LARGE = 16 << 20  # four times what may be in memory
BOMBS: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: having(member("zeros", bytes(LARGE))),
    "zeros_in_a_pax_header": lambda: raw(header("P", kind=b"x", data=bytes(LARGE)), header()),
    "zeros_in_a_long_name": lambda: raw(header("L", kind=b"L", data=bytes(LARGE)), header()),
    "headers_without_an_entry": lambda: raw(*[pax(b"comment=x", kind=b"g")] * 16_000),
    "zeros_after_the_end": lambda: pack(archive(members_of(FILES)) + bytes(LARGE)),
    "zeros_before_anything": lambda: pack(bytes(LARGE)),
    "name_in_the_gzip_header": lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * LARGE,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_fills_neither_memory_nor_disk(name: str, tmp_path: Path) -> None:
    """Refused while it is inflated: by what is left on the disk, and by the peak of memory, under 4
    MiB.
    """
    data = BOMBS[name]()
    (tmp_path / "bundle").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(Untrusted):
            unpack.unpack(tmp_path / "bundle", tmp_path / "into", packed_size=len(data))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    written = sum(path.stat().st_size for path in (tmp_path / "into").rglob("*"))
    assert written <= 200 * max(len(data), 4096)


@pytest.mark.slow
def test_gibibytes_are_refused_in_a_process_that_may_have_little_memory(tmp_path: Path) -> None:
    """The kernel's own limit on the address space, which also sees what zlib allocates."""
    (tmp_path / "bundle").write_bytes(bundles.build(FILES) + pack(bytes(64 << 20)) * 65)
    limit = (
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20),) * 2)"
    )
    said = limited(limit, tmp_path, packed_size=1 << 30)
    assert said.startswith(
        "Untrusted the bundle is not safe to unpack: it unpacks to more than 4 GiB"
    )


def limited(limit: str, place: Path, *, packed_size: int) -> str:
    """What a process under a limit of the kernel says of `place`/bundle."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from firstboot.activate import unpack\n"
        "from firstboot.base.errors import ByteorError\n"
        f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{limit}\n"
        f"try: unpack.unpack(Path(sys.argv[1]), Path(sys.argv[2]), packed_size={packed_size})\n"
        "except ByteorError as error: print(type(error).__name__, error)\n"
    )
    argv = [sys.executable, "-c", code, place / "bundle", place / "into"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout
