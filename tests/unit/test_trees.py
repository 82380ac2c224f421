"""Trees and links on disk: filled inside, copied as hashed, durable before they are named, removed
without following.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from firstboot.base import trees
from firstboot.base.errors import LocalFault


def copied(source: Path, target: Path, **words: Any) -> Any:
    fd = os.open(source, os.O_RDONLY)
    try:
        return trees.copy(fd, target, **words)
    finally:
        os.close(fd)


def test_a_copy_is_private_and_its_hash_is_of_what_was_written(tmp_path: Path) -> None:
    """From the start, wherever the descriptor stands; a stale target, even a link, is replaced and
    not written through.
    """
    data = os.urandom(700_000)
    (tmp_path / "source").write_bytes(data)
    (tmp_path / "victim").write_bytes(b"untouched")
    (tmp_path / "target").symlink_to("victim")
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    os.lseek(fd, 12345, os.SEEK_SET)
    steps: list[int] = []
    assert trees.copy(fd, tmp_path / "target", limit=1 << 30, each=steps.append) == (
        700_000,
        hashlib.sha256(data).hexdigest(),
    )
    os.close(fd)
    assert (tmp_path / "target").read_bytes() == data
    assert stat.S_IMODE((tmp_path / "target").lstat().st_mode) == 0o600
    assert (tmp_path / "victim").read_bytes() == b"untouched"
    assert steps == [trees.PIECE, 2 * trees.PIECE, 700_000]


def test_a_source_that_grows_is_copied_up_to_the_limit(tmp_path: Path) -> None:
    """What its owner adds meanwhile is not taken, for ever or at all."""
    source = tmp_path / "source"
    source.write_bytes(b"a" * 1000)

    def grow(_: int) -> None:
        with source.open("ab") as stream:
            stream.write(b"b" * 1000)

    assert copied(source, tmp_path / "t", limit=1000, each=grow) == (
        1000,
        hashlib.sha256(b"a" * 1000).hexdigest(),
    )
    assert copied(source, tmp_path / "t", limit=1999) == (
        1999,
        hashlib.sha256(b"a" * 1000 + b"b" * 999).hexdigest(),
    )
    assert copied(source, tmp_path / "t", limit=0) == (0, hashlib.sha256().hexdigest())


def test_a_source_that_shrinks_or_changes_is_hashed_as_copied(tmp_path: Path) -> None:
    """Size and hash never promise bytes that are not in the target."""
    source = tmp_path / "source"
    source.write_bytes(bytes(3 * trees.PIECE))

    def change(done: int) -> None:
        if done == trees.PIECE:
            source.write_bytes(b"x" * (trees.PIECE + 5))

    size, digest = copied(source, tmp_path / "t", limit=1 << 30, each=change)
    assert size == trees.PIECE + 5
    assert digest == hashlib.sha256((tmp_path / "t").read_bytes()).hexdigest()


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Of a full disk, of a source that is no file, of a caller who gives up."""
    (tmp_path / "source").write_bytes(bytes(200_000))
    code = (
        "import os, resource, signal, sys; from pathlib import Path\n"
        "from firstboot.base import trees; from firstboot.base.errors import LocalFault\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (99_999, 99_999))\n"
        "try: trees.copy(os.open(sys.argv[1], os.O_RDONLY), Path(sys.argv[2]), limit=1 << 30)\n"
        "except LocalFault as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "source", tmp_path / "t"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(f"cannot copy into {tmp_path}/t: file too large"), done.stderr

    def give_up(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copied(tmp_path / "source", tmp_path / "t", limit=1 << 30, each=give_up)
    with pytest.raises(LocalFault):
        copied(tmp_path, tmp_path / "t", limit=1 << 30)
    with pytest.raises(LocalFault):
        copied(tmp_path / "source", tmp_path / "absent/t", limit=1 << 30)
    assert os.listdir(tmp_path) == ["source"]


def test_free_bytes_are_the_file_systems_own_count(tmp_path: Path) -> None:
    """Nothing is written, and no memory is taken, to find out."""
    assert 0 < trees.free_bytes(tmp_path) < 1 << 60
    with pytest.raises(LocalFault):
        trees.free_bytes(tmp_path / "absent")


def test_a_filled_directory_is_readable_by_all_only_when_it_is_whole(tmp_path: Path) -> None:
    """0700 while it is filled and after an error, 0755 afterwards; never one that is there
    already.
    """
    with trees.filling(tmp_path / "t") as tree:
        tree.directory([b"a", b"b"])
        tree.directory([b"a"])
        tree.directory([])
        tree.file([b"a", b"f"], [b"1", b"2"], executable=False)
        assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o755
    assert (tmp_path / "t/a/f").read_bytes() == b"12"
    with pytest.raises(LocalFault), trees.filling(tmp_path / "t"):
        pass
    with pytest.raises(KeyboardInterrupt), trees.filling(tmp_path / "u"):
        raise KeyboardInterrupt
    assert stat.S_IMODE((tmp_path / "u").stat().st_mode) == 0o700


@pytest.mark.parametrize("part", [b"", b".", b"..", b"/etc", b"a/b", b"../x"])
def test_a_name_that_leads_elsewhere_is_not_written(part: bytes, tmp_path: Path) -> None:
    """The second net beneath whoever judges names."""
    with trees.filling(tmp_path / "t") as tree:
        for attempt in (lambda: tree.directory([part]), lambda: tree.file([part], [b"x"], executable=False),
                        lambda: tree.file([part, b"f"], [b"x"], executable=False)):  # fmt: skip
            with pytest.raises(LocalFault):
                attempt()
    assert list((tmp_path / "t").rglob("*")) == []


def test_links_that_appear_in_a_tree_are_not_followed(tmp_path: Path) -> None:
    """Neither as a directory on the way nor as the file; nor is a file written twice, nor the tree
    itself exchanged.
    """
    (tmp_path / "victim").mkdir()
    with trees.filling(tmp_path / "t") as tree:
        (tmp_path / "t/d").symlink_to("../victim")
        (tmp_path / "t/f").symlink_to("../victim/f")
        tree.file([b"once"], [b"1"], executable=False)
        for parts in ([b"d", b"f"], [b"f"], [b"once"], [b"once", b"f"]):
            with pytest.raises(LocalFault):
                tree.file(parts, [b"x"], executable=False)
        (tmp_path / "t").rename(tmp_path / "moved")
        (tmp_path / "t").symlink_to("victim")
        tree.file([b"late"], [b"1"], executable=False)
    assert os.listdir(tmp_path / "victim") == []
    assert (tmp_path / "moved/late").exists()


def test_everything_is_durable_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of fsync and rename that a power cut tests."""
    staging = tmp_path / ".staging"
    (staging / "a/b").mkdir(parents=True)
    for name in ("a/b/f", "a/g", "h"):
        (staging / name).write_bytes(b"x")
    order: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        order.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))
        fsync(fd)

    def renamed(one: Path, other: Path) -> None:
        order.append(f"{one.name} -> {other.name}")
        rename(one, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    trees.complete(staging, tmp_path / "final")
    names = [
        ".staging",
        ".staging/a",
        ".staging/a/b",
        ".staging/a/b/f",
        ".staging/a/g",
        ".staging/h",
    ]
    assert sorted(order[:-2]) == names
    assert order[-2:] == [".staging -> final", "."]
    assert order.index(".staging") == len(names) - 1
    assert (tmp_path / "final/a/b/f").read_bytes() == b"x"


@pytest.mark.parametrize("there", ["directory", "empty", "file", "link"])
def test_nothing_that_is_there_is_replaced(there: str, tmp_path: Path) -> None:
    """A complete directory never takes the place of another, not even of an empty one."""
    staging, final = tmp_path / ".staging", tmp_path / "final"
    staging.mkdir()
    make: dict[str, Callable[[], object]] = {
        "directory": lambda: (final / "x").mkdir(parents=True),
        "empty": final.mkdir,
        "file": lambda: final.write_bytes(b"x"),
        "link": lambda: final.symlink_to("nowhere"),
    }
    make[there]()
    with pytest.raises(LocalFault, match="exists"):
        trees.complete(staging, final)
    assert staging.is_dir()


def test_a_directory_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it would be named without being durable."""
    (tmp_path / ".staging/a").mkdir(parents=True)
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if str(path).endswith("/a"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        with pytest.raises(LocalFault, match="input/output error"):
            trees.complete(tmp_path / ".staging", tmp_path / "final")
    assert os.listdir(tmp_path) == [".staging"]


def test_what_cannot_be_completed_stays_where_it_is(tmp_path: Path) -> None:
    """An absent staging directory is a fault, not an empty success."""
    with pytest.raises(LocalFault):
        trees.complete(tmp_path / "absent", tmp_path / "final")
    assert os.listdir(tmp_path) == []


def test_a_link_is_replaced_and_is_never_missing(tmp_path: Path) -> None:
    """A reader in another process meanwhile sees one target or the other at every look."""
    link = tmp_path / "current"
    (tmp_path / ".current.tmp").write_bytes(b"left by a crash")
    trees.point(link, "deployments/one")
    code = (
        "import os, sys\nprint('ready', flush=True); seen = set()\n"
        "while 'end' not in seen: seen.add(os.readlink(sys.argv[1]))\n"
        "print(*sorted(seen))\n"
    )
    argv = [sys.executable, "-c", code, link]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        for number in range(300):
            trees.point(link, f"deployments/{'two' if number % 2 else 'one'}")
        trees.point(link, "end")
        said, errors = reader.communicate(timeout=60)
    assert not errors
    assert set(said.split()) <= {"deployments/one", "deployments/two", "end"}
    assert os.listdir(tmp_path) == ["current"]


def test_something_that_is_no_link_is_never_replaced_by_one(tmp_path: Path) -> None:
    """An operator's own spec.kv stays; so does a directory."""
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "directory").mkdir()
    for name in ("file", "directory"):
        with pytest.raises(LocalFault, match="not a symbolic link") as caught:
            trees.point(tmp_path / name, "target")
        assert caught.value.hint
    with pytest.raises(LocalFault):
        trees.point(tmp_path / "absent/link", "target")
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


def test_removing_a_tree_follows_no_link(tmp_path: Path) -> None:
    """Nor does removing a link; absent, a file, and what a killed removal left behind are no
    trouble.
    """
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/f").write_bytes(b"untouched")
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/link").symlink_to("../../victim")
    (tree / "file").symlink_to(tmp_path / "victim/f")
    (tmp_path / ".tree.gone/half").mkdir(parents=True)
    trees.remove(tree)
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "plain").write_bytes(b"x")
    for name in ("link", "plain", "absent", "absent/below", "tree"):
        trees.remove(tmp_path / name)
    assert os.listdir(tmp_path) == ["victim"]
    assert (tmp_path / "victim/f").read_bytes() == b"untouched"


def test_a_removal_that_is_cut_leaves_no_half_tree_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is hidden before the first file goes; the next removal finishes."""
    tree = tmp_path / "tree"
    tree.mkdir()

    def cut(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut)
        with pytest.raises(KeyboardInterrupt):
            trees.remove(tree)
    assert os.listdir(tmp_path) == [".tree.gone"]
    trees.remove(tree)
    assert os.listdir(tmp_path) == []


def test_modes_do_not_keep_a_tree(tmp_path: Path) -> None:
    """Without root, directories that may not be written are opened first; what is not ours is a
    LocalFault.
    """
    code = (
        "import os, sys; from pathlib import Path; from firstboot.base import trees; from firstboot.base.errors import LocalFault\n"
        "os.geteuid() or os.setuid(65534)\n"
        "top = Path(sys.argv[1]); (top / 'tree/a/b').mkdir(parents=True); (top / 'tree/a/f').write_bytes(b'x')\n"
        "for name in ('tree/a/b', 'tree/a', 'tree'): (top / name).chmod(0o500 if name == 'tree' else 0)\n"
        "trees.remove(top / 'tree'); print(os.listdir(top))\n"
        "try: trees.remove(Path('/usr'))\n"
        "except LocalFault as error: print(error.hint)\n"
    )
    place = (
        Path("/tmp") / f"byteor-trees-{os.getpid()}"
    )  # pytest's own directories are closed to another user
    place.mkdir()
    place.chmod(0o777)
    try:
        done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True)
    finally:
        shutil.rmtree(place)
    assert done.stdout.startswith("[]\n"), done.stderr
    assert "run as root" in done.stdout
