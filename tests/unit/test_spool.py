"""The spool: in durably and once, whole or not at all, out by one rename; full means refused, and
nothing old is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstboot.agent.artifacts import memory, packing, spool
from firstboot.agent.artifacts.spool import About
from firstboot.api.multipart import LARGEST
from firstboot.base import files, trees
from firstboot.base.errors import Corrupt, LocalFault, TryAgain
from firstboot.base.layout import Layout

ABOUT = About("snapshot", "shot.bin", 1_700_000_000.0)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "var/lib/byteor").mkdir(parents=True)
    (tmp_path / "run/byteor-agent").mkdir(parents=True)
    return Layout(tmp_path)


def put(layout: Layout, data: bytes, about: About = ABOUT) -> spool.Added:
    held = packing.hold(data)
    try:
        return spool.add(layout, held, about)
    finally:
        os.close(held)


def contents(directory: Path) -> list[bytes]:
    return [(directory / name / "data").read_bytes() for name in spool.ids(directory)]


def test_what_is_added_is_there_whole_and_private(layout: Layout) -> None:
    """Data, hash, size, kind and time as given; nobody else may read it."""
    added = put(layout, b"abc")
    entry = spool.load(layout.spool / added.id)
    assert added.state == spool.NEW and entry is not None
    assert entry.data.read_bytes() == b"abc" and entry.name == "shot.bin"
    assert (entry.metadata.kind, entry.metadata.size) == ("snapshot", 3)
    assert entry.metadata.sha256 == added.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert entry.metadata.captured_at == "2023-11-14T22:13:20Z"
    assert (
        stat.S_IMODE(layout.spool.stat().st_mode)
        == stat.S_IMODE(entry.path.stat().st_mode)
        == 0o700
    )
    assert {stat.S_IMODE(path.stat().st_mode) for path in entry.path.iterdir()} == {0o600}


@pytest.mark.parametrize("at", [0.0, -5.0, 4e9, 1e18])
def test_a_time_that_cannot_be_is_replaced_by_now(layout: Layout, at: float) -> None:
    """A file from 1970 or from the future: the plane would refuse its date."""
    entry = spool.load(layout.spool / put(layout, b"abc", About("snapshot", "x", at)).id)
    assert (
        entry is not None
        and entry.metadata.captured_at.startswith("20")
        and entry.metadata.captured_at < "2033"
    )


def test_what_the_plane_would_not_accept_of_a_deployment_is_left_out(layout: Layout) -> None:
    """An id or spec hash of another shape does not make an artifact that is refused."""
    entry = spool.load(
        layout.spool / put(layout, b"abc", About("snapshot", "x", 1e9, "../x", "sha256:0")).id
    )
    assert (
        entry is not None
        and entry.metadata.deployment_id is None
        and entry.metadata.spec_hash is None
    )


def test_equal_content_is_there_once_wherever_it_is(layout: Layout) -> None:
    """In the spool, in quarantine (as the same kind) and after it was uploaded: the first one is
    named.
    """
    first = put(layout, b"abc")
    assert put(layout, b"abc", About("diagnostic", "y", 1e9)) == spool.Added(
        first.id, spool.WAITING, first.sha256
    )
    spool.quarantine(layout, first.id, spool.Refusal(422, "x", "y"))
    assert put(layout, b"abc") == spool.Added(first.id, spool.QUARANTINED, first.sha256)
    other = put(layout, b"abc", About("diagnostic", "y", 1e9))
    assert other.state == spool.NEW
    entry = spool.load(layout.spool / other.id)
    assert entry is not None
    memory.remember(layout, entry.id, entry.metadata, "art_1")
    spool.drop(layout, other.id)
    again = put(layout, b"abc", About("incident-bundle", "y", 1e9))
    assert again == spool.Added(other.id, spool.UPLOADED, first.sha256, "art_1")
    assert spool.ids(layout.spool) == []


def test_ids_are_in_order_and_are_not_used_again(layout: Layout) -> None:
    """The oldest is first, also beyond eight digits; what left does not give its number away."""
    names = [put(layout, bytes([n])).id for n in range(3)]
    assert spool.ids(layout.spool) == names and [spool.number(name) for name in names] == [1, 2, 3]
    (layout.spool / names[2]).rename(layout.spool / f"99999999-{names[2][9:]}")
    last = put(layout, b"z").id
    assert last.startswith("100000000-") and spool.ids(layout.spool)[-1] == last


def test_empty_and_too_large_are_refused_before_anything_is_copied(layout: Layout) -> None:
    """0 bytes and 64 MiB + 1: a sentence each, and nothing in the spool."""
    for size, said in ((0, "empty"), (LARGEST + 1, "larger than 64 MiB")):
        held = packing.hold(b"")
        os.truncate(held, size)
        with pytest.raises(LocalFault, match=said):
            spool.add(layout, held, ABOUT)
        os.close(held)
    assert os.listdir(layout.spool) == []


@pytest.mark.parametrize("change", ["grows", "shrinks", "differs"])
def test_a_file_that_changes_while_it_is_copied_is_refused(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Between the hash and the copy: nothing half right is kept."""
    held = packing.hold(b"a" * 1000)
    real = trees.copy

    def copy(source: int, target: Path, **keywords: Any) -> Any:
        if change == "shrinks":
            os.truncate(source, 10)
        else:
            os.pwrite(source, b"b", 1000 if change == "grows" else 0)
        return real(source, target, **keywords)

    monkeypatch.setattr(trees, "copy", copy)
    with pytest.raises(LocalFault, match="changed while it was read"):
        spool.add(layout, held, ABOUT)
    os.close(held)
    assert sorted(os.listdir(layout.spool)) == ["lock"]


@pytest.mark.parametrize(("entries", "size"), [(3, 1 << 20), (1000, 10)])
def test_a_full_spool_refuses_the_new_one_and_keeps_the_old(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, entries: int, size: int
) -> None:
    """By number or by bytes, what is in quarantine counted in; equal content is still answered."""
    monkeypatch.setattr(spool, "MOST_ENTRIES", entries)
    monkeypatch.setattr(spool, "MOST_BYTES", size)
    first, *_ = added = [put(layout, bytes([n]) * 3) for n in range(3)]
    spool.quarantine(layout, first.id, spool.Refusal())
    before = sorted(os.walk(layout.agent))
    with pytest.raises(spool.Full, match="2 waiting and 1 quarantined") as raised:
        put(layout, b"more")
    assert raised.value.hint and raised.value.exit_code == 7
    assert sorted(os.walk(layout.agent)) == before
    assert put(layout, bytes([1]) * 3).id == added[1].id


def test_a_disk_without_room_is_said_before_it_is_filled(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The free space is looked at first."""
    real = os.statvfs

    def statvfs(path: Any) -> Any:
        facts = list(real(path))
        facts[4] = 0
        return os.statvfs_result(facts)

    monkeypatch.setattr(os, "statvfs", statvfs)
    with pytest.raises(spool.Full, match="no room for 3 bytes"):
        put(layout, b"abc")
    assert spool.ids(layout.spool) == []


def test_a_text_loses_its_secrets_and_is_there_once(layout: Layout) -> None:
    """What was replaced stands beside it, by kind; repeated it is the same artifact."""
    text = b"start\n\xff password=hunter22\n"
    first = spool.add_text(layout, text, deployment_id="dep_1", spec_hash="sha256:" + "0" * 64)
    assert spool.add_text(layout, text).state == spool.WAITING
    entry = spool.load(layout.spool / first.id)
    assert entry is not None
    assert entry.data.read_text() == "start\n\ufffd password=<secret>\n"
    assert entry.replaced == ({"part": "diagnostic", "kinds": ["value"]},)
    assert (entry.metadata.deployment_id, entry.metadata.spec_hash) == (
        "dep_1",
        "sha256:" + "0" * 64,
    )
    assert "hunter22" not in (entry.path / "meta.json").read_text()


def test_quarantine_and_back(layout: Layout) -> None:
    """With its reason there, shown; back under its own id without it; an unknown id is False."""
    name = put(layout, b"abc").id
    spool.quarantine(layout, name, spool.Refusal(415, "unsupported_media_type", "no"))
    assert contents(layout.quarantine) == [b"abc"] and contents(layout.spool) == []
    (row,) = spool.quarantined(layout)
    assert row.pop("at")
    assert row == {
        "id": name, "kind": "snapshot", "size": 3, "name": "shot.bin", "status": 415,
        "code": "unsupported_media_type", "detail": "no",
    }  # fmt: skip
    assert spool.census(layout) == spool.Census(0, 1, 3)
    for unknown in ("x", "../spool", name[:-1], ".."):
        assert not spool.release(layout, unknown)
    assert spool.release(layout, name) and not spool.release(layout, name)
    assert contents(layout.spool) == [b"abc"]
    assert sorted(os.listdir(layout.spool / name)) == ["data", "meta.json"]


def test_the_memory_is_bounded_and_a_damaged_one_is_kept_aside(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest uploads are remembered; what is not ours to read begins anew."""
    monkeypatch.setattr(memory, "MOST", 2)
    for number in range(4):
        entry = spool.load(layout.spool / put(layout, bytes([number])).id)
        assert entry is not None
        memory.remember(layout, entry.id, entry.metadata, f"art_{number}")
    assert [row.artifact_id for row in memory.read(layout).values()] == ["art_2", "art_3"]
    layout.uploaded.write_text('{"v": 1, "uploaded": [5]}')
    with pytest.raises(Corrupt):
        memory.read(layout)
    assert put(layout, b"abc").state == spool.NEW
    memory.remember(layout, entry.id, entry.metadata, "art_9")
    assert [row.artifact_id for row in memory.read(layout).values()] == ["art_9"]
    assert layout.uploaded.with_name("uploaded.json.corrupt-1").exists()


def test_what_is_half_done_goes_unless_somebody_is_at_it(layout: Layout) -> None:
    """The rests of a power cut go at the next start; those of a living upload stay."""
    put(layout, b"abc")
    coming, going = (layout.spool / f".00000007-0123456789abcdef.{end}" for end in ("new", "gone"))
    for rest in (coming, going):
        rest.mkdir()
        (rest / "data").write_text("half")
    with files.locked(layout.spool / "lock", wait_s=0, busy=lambda: TryAgain("busy")):
        spool.recover(layout)
        assert coming.exists() and not going.exists()
    going.mkdir()
    put(layout, b"def")
    assert not coming.exists() and going.exists()  # what goes is the agent's, which may be at it
    spool.recover(layout)
    assert sorted(os.listdir(layout.spool)) == [*spool.ids(layout.spool), "lock"]
    assert contents(layout.spool) == [b"abc", b"def"]


# -- kills: a child of its own ends at the n-th change of the disk

_STEPS = ("mkdir", "open", "fsync", "rename", "unlink", "rmdir", "chmod", "fchmod", "write")


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that is killed before its `step`-th call; True when it came to its
    end.
    """
    child = os.fork()
    if not child:
        try:
            left = step

            def counted(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **keywords: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **keywords)

                return call

            for name in _STEPS:
                setattr(os, name, counted(getattr(os, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def whole(directory: Path) -> dict[str, bytes]:
    """Every artifact there, each complete and as its metadata says; nothing else but the lock."""
    found = {}
    for name in os.listdir(directory):
        if name == "lock":
            continue
        entry = spool.load(directory / name)
        assert entry is not None
        found[name] = entry.data.read_bytes()
        assert hashlib.sha256(found[name]).hexdigest() == entry.metadata.sha256
    return found


def test_killed_at_every_call_an_artifact_is_whole_or_not_there(layout: Layout) -> None:
    """Coming in, and again: exactly one, and no rest."""
    put(layout, b"before")
    for step in range(1000):
        ended = killed_at(step, lambda: put(layout, b"new"))
        spool.recover(layout)
        assert sorted(whole(layout.spool).values()) in ([b"before"], [b"before", b"new"])
        put(layout, b"new")
        assert sorted(whole(layout.spool).values()) == [b"before", b"new"]
        spool.drop(layout, spool.ids(layout.spool)[-1])
        if ended:
            assert step > 20
            return
    pytest.fail("it never came to its end")


@pytest.mark.parametrize("way", ["drop", "quarantine", "release"])
def test_killed_at_every_call_an_artifact_is_in_one_place(layout: Layout, way: str) -> None:
    """Leaving, refused or brought back: in the spool, in quarantine or gone, never twice and never
    half.
    """
    ways: dict[str, Callable[[str], object]] = {
        "drop": lambda name: spool.drop(layout, name),
        "quarantine": lambda name: spool.quarantine(layout, name, spool.Refusal(413)),
        "release": lambda name: spool.release(layout, name),
    }
    for step in range(1000):
        name = put(layout, b"abc").id
        if way == "release" and name in spool.ids(layout.spool):
            spool.quarantine(layout, name, spool.Refusal(413))
        ended = killed_at(step, lambda: ways[way](name))  # noqa: B023
        spool.recover(layout)
        places = [*whole(layout.spool), *whole(layout.quarantine)]
        assert places in ([name], [] if way == "drop" else [name])
        if ended:
            assert step > 3
            assert bool(places) == (way != "drop")
            return
        if way != "release" and name in spool.ids(layout.quarantine):
            assert "status" in json.loads((layout.quarantine / name / "reason.json").read_text())
            if way == "quarantine":
                spool.release(layout, name)
    pytest.fail("it never came to its end")


def test_a_refusal_right_after_a_release_keeps_its_reason(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent refuses it anew the moment it is in the spool: the new reason stands."""
    name = put(layout, b"abc").id
    spool.quarantine(layout, name, spool.Refusal(413))
    move = files.move_into

    def and_refused(path: Path, directory: Path) -> None:
        move(path, directory)
        if directory == layout.spool:
            spool.quarantine(layout, name, spool.Refusal(422))

    monkeypatch.setattr(files, "move_into", and_refused)
    assert spool.release(layout, name)
    assert [row["status"] for row in spool.quarantined(layout)] == [422]


@pytest.mark.parametrize("left", [".a.gone", ".b.new"])
def test_what_cannot_be_removed_stops_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Something half done that stays: said, and the rest is cleaned up."""
    spool.prepare(layout)
    for name in (left, ".c.gone"):
        (layout.spool / name).mkdir()
    remove = trees.remove

    def refusing(path: Path) -> None:
        if path.name == left:
            raise LocalFault("cannot remove: operation not permitted")
        remove(path)

    monkeypatch.setattr(trees, "remove", refusing)
    spool.recover(layout)
    assert not (layout.spool / ".c.gone").exists() and (layout.spool / left).exists()


def test_uploads_at_the_same_time_do_not_meet(layout: Layout) -> None:
    """Four processes with shared and own contents: each content once, each number once."""
    code = (
        "import os, sys; from pathlib import Path; from firstboot.agent.artifacts import packing, spool; from firstboot.base.layout import Layout\n"
        "for n in range(8):\n"
        "    for data in (b'shared %d' % n, b'own %d of %s' % (n, sys.argv[2].encode())):\n"
        "        spool.add(Layout(Path(sys.argv[1])), packing.hold(data), spool.About('snapshot', 'x', 1e9))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(layout.root), str(n)]) for n in range(4)
    ]
    assert [process.wait(60) for process in running] == [0] * 4
    found = whole(layout.spool)
    assert sorted(found.values()) == sorted(
        [b"shared %d" % n for n in range(8)]
        + [b"own %d of %d" % (n, p) for n in range(8) for p in range(4)]
    )
    assert len({spool.number(name) for name in found}) == len(found)


# -- what is damaged


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("shelf") / "00000001-0123456789abcdef"
    path.mkdir()
    yield path


GOOD = {
    "v": 1,
    "kind": "snapshot",
    "sha256": "0" * 64,
    "size": 3,
    "captured_at": "2026-01-01T00:00:00Z",
    "name": "x",
}
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    change=st.dictionaries(
        st.sampled_from([*GOOD, "deployment_id", "spec_hash", "replaced", "more"]),
        _json,
        max_size=3,
    )
)
def test_any_metadata_is_an_artifact_or_damaged(shelf: Path, change: dict[str, Any]) -> None:
    """Whatever stands there: a value of the right shape, or Corrupt."""
    (shelf / "meta.json").write_text(json.dumps({**GOOD, **change}))
    try:
        entry = spool.load(shelf)
    except Corrupt:
        return
    assert (
        entry is not None
        and 0 < entry.metadata.size <= LARGEST
        and len(entry.metadata.sha256) == 64
    )


def test_what_vanishes_or_is_damaged_while_it_is_looked_at(layout: Layout) -> None:
    """No artifact is None, one without metadata is Corrupt, and neither stops a census or a
    list.
    """
    name = put(layout, b"abc").id
    assert spool.load(layout.spool / "00000009-0123456789abcdef") is None
    (layout.spool / name / "meta.json").unlink()
    with pytest.raises(Corrupt, match="no meta.json"):
        spool.load(layout.spool / name)
    spool.quarantine(layout, name, spool.Refusal())
    (layout.quarantine / name / "reason.json").write_text('{"v": 1, "status": "x", "code": 5}')
    assert spool.quarantined(layout)[0]["status"] is None
    (layout.quarantine / name / "data").unlink()
    assert spool.census(layout) == spool.Census(0, 1, 0)


# -- waking
