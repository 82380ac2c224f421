"""Power cuts: a small ext4 whose every write is recorded, and the disk as a cut at any moment would
leave it.

QEMU's `blklogwrites` records beneath a loop mount (CLOUD-INIT.md, section 8; the format is Linux's
dm-log-writes). A device may hold back or reorder what was written after the last flush: `cuts`
gives each prefix of the writes, and at each flush the disk with every second write since the one
before missing.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DAEMON = "qemu-storage-daemon"
SIZE = 48 << 20
MAGIC, VERSION, SECTOR = 0x6A736677736872, 1, 512
FLUSH, DISCARD = 1, 4
START_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Write:
    """One entry of the log: `data` at `offset`, or a flush without data."""

    offset: int
    data: bytes
    flush: bool


@dataclass(frozen=True)
class Cut:
    """A disk as a power cut leaves it: after the first `writes` entries, some of the last ones lost
    if `torn`.
    """

    image: Path
    writes: int
    torn: bool


class Disk:
    """One file system in a file; `recorded` mounts it and notes each write, `mounted` mounts one
    that a cut left.
    """

    def __init__(self, directory: Path) -> None:
        self._image, self._base = directory / "disk.img", directory / "base.img"
        self._log, self._export = directory / "writes.log", directory / "export"
        self._image.touch()
        with self._image.open("r+b") as stream:
            stream.truncate(SIZE)
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", str(self._image)], check=True
        )

    @property
    def image(self) -> Path:
        return self._image

    @contextlib.contextmanager
    def recorded(self, at: Path) -> Iterator[None]:
        """Mount at `at`; what is written inside is in `cuts` afterwards."""
        shutil.copyfile(self._image, self._base)
        self._log.write_bytes(b"")
        self._export.touch()
        drives = [
            f"driver=file,node-name=f,filename={self._image}",
            f"driver=file,node-name=l,filename={self._log}",
            "driver=blklogwrites,node-name=lw,file=f,log=l",
        ]
        export = f"fuse,id=e,node-name=lw,mountpoint={self._export},writable=on"
        command = [
            DAEMON,
            *(part for drive in drives for part in ("--blockdev", drive)),
            "--export",
            export,
        ]
        with subprocess.Popen(command) as daemon:
            try:
                deadline = time.monotonic() + START_DEADLINE_S
                while self._export.stat().st_size != SIZE:
                    if daemon.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{DAEMON} did not export the disk")
                    time.sleep(0.05)
                with mounted(self._export, at):
                    yield
            finally:
                daemon.terminate()

    def writes(self) -> list[Write]:
        """Return what was recorded, in order."""
        return list(read_log(self._log))

    def cuts(self, scratch: Path, *, every: int = 1) -> Iterator[Cut]:
        """Each state that a cut may leave, one in `every`; its image is gone with the next one.

        Each has a file of its own: a loop device that is still being detached may be taken again for
        the same file, with what it remembers of the former bytes.
        """
        state = bytearray(self._base.read_bytes())
        settled = bytes(state)  # what a device has promised to hold
        since: list[Write] = []

        def cut(data: bytes, number: int, *, torn: bool) -> Iterator[Cut]:
            image = scratch / f"cut-{number}-{torn}.img"
            image.write_bytes(data)
            yield Cut(image, number, torn)
            image.unlink()

        for number, write in enumerate(self.writes(), start=1):
            if write.flush and since:
                torn = bytearray(settled)
                for kept in since[::2]:
                    torn[kept.offset : kept.offset + len(kept.data)] = kept.data
                if number % every == 0:
                    yield from cut(torn, number, torn=True)
            state[write.offset : write.offset + len(write.data)] = write.data
            since.append(write)
            if write.flush:
                settled, since = bytes(state), []
            if number % every == 0:
                yield from cut(state, number, torn=False)


@contextlib.contextmanager
def mounted(image: Path, at: Path) -> Iterator[None]:
    """Mount a disk in a file, its journal replayed, and unmount it."""
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


def read_log(log: Path) -> Iterator[Write]:
    """Yield the entries of a log of writes, in order; RuntimeError when it is none."""
    position = SECTOR
    with log.open("rb") as stream:
        magic, version, count, sector = struct.unpack("<QQQI", stream.read(28))
        if (magic, version, sector) != (MAGIC, VERSION, SECTOR):
            raise RuntimeError("not a log of writes")
        for _ in range(count):
            stream.seek(position)
            start, sectors, flags, _length = struct.unpack("<QQQQ", stream.read(32))
            position += SECTOR
            data = b""
            if not flags & DISCARD:
                stream.seek(position)
                data = stream.read(sectors * SECTOR)
                position += len(data)
            yield Write(start * SECTOR, data, bool(flags & FLUSH))
