"""A power cut at any moment of an activation: the next start finds one whole deployment, the old or the new."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstboot import files

from . import power

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]


@pytest.fixture
def disk(tmp_path: Path) -> power.Disk:
    """A fresh disk."""
    return power.Disk(tmp_path)


def test_the_recording_shows_a_writer_that_does_not_sync(disk: power.Disk, tmp_path: Path) -> None:
    """In every cut our durable write is old or new, whole; a file that somebody wrote without fsync is cut in one."""
    place, ours, theirs = tmp_path / "mnt", set(), set()
    place.mkdir()
    with power.mounted(disk.image, place):
        files.write(place / "ours", b"old" * 1000)
        os.sync()
    with disk.recorded(place):
        with (place / "theirs").open("wb") as careless:
            careless.write(b"new" * 1_000_000)
        files.write(place / "ours", b"new" * 1000)
    for cut in disk.cuts(tmp_path):
        with power.mounted(cut.image, place):
            ours.add((place / "ours").read_bytes())
            theirs.add((place / "theirs").stat().st_size if (place / "theirs").exists() else None)
    assert ours == {b"old" * 1000, b"new" * 1000}
    assert theirs - {None, 3_000_000}
