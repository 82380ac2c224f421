"""A power cut at any moment of an activation: the next start finds one whole deployment, the old or
the new.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstboot.base import files
from tests.integration.activations import Activations

from . import power

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]


@pytest.fixture
def disk(tmp_path: Path) -> power.Disk:
    """A fresh disk."""
    return power.Disk(tmp_path)


def test_the_recording_shows_a_writer_that_does_not_sync(disk: power.Disk, tmp_path: Path) -> None:
    """In every cut our durable write is old or new, whole; a file that somebody wrote without fsync
    is cut in one.
    """
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


@pytest.mark.parametrize("good", [True, False], ids=["healthy", "rolled_back"])
def test_a_cut_at_any_moment_of_an_activation(disk: power.Disk, tmp_path: Path, good: bool) -> None:
    """In every cut `current` names one whole deployment, and the next start ends as an undisturbed
    one would, reported once.
    """
    flag = tmp_path / "broken"
    root = tmp_path / "root"
    state = root / "var/lib/byteor"
    state.mkdir(parents=True)
    check = ["/bin/sh", "-c", f"! test -e {flag} || grep -q one {state}/current/spec.kv"]
    with power.mounted(disk.image, state):
        host = Activations(root, activation={"health": check})
        host.deploy("one")
        host.offer(host.make("two"))
        os.sync()
    if not good:
        flag.touch()
    with disk.recorded(state):
        host.activate()
    expected = "name = two\n" if good else "name = one\n"
    statuses = ["active", "active"] if good else ["active", "failed", "rolled_back"]
    seen = set()
    for cut in disk.cuts(tmp_path):
        with power.mounted(cut.image, state):
            seen.add(host.spec())
            host.activate()
            assert host.spec() == expected, cut
            assert [status for _, status, _ in host.said()] == statuses, cut
            assert not (state / "activation/journal.json").exists()
    assert seen == {"name = one\n", "name = two\n"}
