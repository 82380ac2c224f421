"""What erasing leaves is never forgotten: the receipt comes first, and its rows stay until seen."""

from __future__ import annotations

import base64
import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstboot.base import files, inplace
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision.erase import scrub
from firstboot.provision.erase.copies import erase
from firstboot.provision.erase.scrub import Scrubber, recognise
from firstboot.provision.erase.search import MOVED
from firstboot.provision.erase.unfinished import AWAY, MOST_SPOTS, UNKNOWN, spots
from tests.schemas import judge
from tests.unit.test_erase import TEXT, TOKEN, X, host

LOG = "/var/log/cloud-init-output.log"


def known(word: bytes) -> bool:
    return word == TOKEN


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let nobody overwrite one file."""
    real = inplace.overwrite

    def refuse(path: Path) -> None:
        def overwrite(held: inplace.Held, data: bytes) -> inplace.Held:
            if held.path == path:
                raise LocalFault(f"cannot overwrite {path}", hint="x")
            return real(held, data)

        monkeypatch.setattr(inplace, "overwrite", overwrite)

    return refuse


def with_log(tmp_path: Path, text: bytes = b"said " + TOKEN + b"\n") -> tuple[Layout, Path]:
    layout, log = host(tmp_path), tmp_path / LOG[1:]
    log.parent.mkdir(parents=True)
    log.write_bytes(text)
    return layout, log


def rows(layout: Layout) -> dict[str, dict[str, Any]]:
    judge("byteor-firstboot", "erase", layout.erasure.read_text())
    return {row["path"]: row for row in json.loads(layout.erasure.read_text())["copies"]}


# -- the receipt before the sources


def test_the_receipt_names_what_is_left_before_a_source_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: Callable[[Path], None]
) -> None:
    """At the first source's write it has the log that stays, and says of the sources: not yet."""
    layout, log = with_log(tmp_path)
    stuck(log)
    seen: list[dict[str, dict[str, Any]]] = []
    real = inplace.overwrite

    def overwrite(held: inplace.Held, data: bytes) -> inplace.Held:
        if held.path.name == "user-data.txt":
            seen.append(rows(layout))
        return real(held, data)

    monkeypatch.setattr(inplace, "overwrite", overwrite)
    last = erase(layout, [TOKEN], now=1.7e9)
    assert last.remaining == [LOG]
    source = "/var/lib/cloud/instances/iid-1/user-data.txt"
    assert {path for path, row in seen[0].items() if row["result"] == "remains"} == {LOG, source}
    assert "about to be erased" in seen[0][source]["reason"]
    assert rows(layout)[source]["result"] == "overwritten"


def test_without_a_receipt_no_source_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: Callable[[Path], None]
) -> None:
    """A full disk: the sentence says so, the sources still show the token, the next look ends it."""
    layout, log = with_log(tmp_path)
    stuck(log)
    real = files.write_json

    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        if path == layout.erasure:
            files.fail("write", path, OSError(errno.ENOSPC, "no space"))
        real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", full)
        with pytest.raises(LocalFault, match="without a receipt"):
            erase(layout, [TOKEN], now=1.7e9)
    source = layout.cloud / "instances/iid-1/user-data.txt"
    assert source.read_bytes() == TEXT
    assert erase(layout, [TOKEN], now=1.7e9).remaining == [LOG]
    assert TOKEN not in source.read_bytes()


# -- rows that stay


def left(tmp_path: Path, stuck: Callable[[Path], None], text: bytes) -> tuple[Layout, Path]:
    """Return a host whose log could not be erased, and may be from now on."""
    layout, log = with_log(tmp_path, text)
    real = inplace.overwrite
    stuck(log)
    assert erase(layout, [TOKEN], now=1.7e9).remaining == [LOG]
    inplace.overwrite = real  # the fixture's patch undoes this as well
    return layout, log


def test_an_unreadable_file_keeps_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: Callable[[Path], None]
) -> None:
    """One EIO says nothing; the next look that reads it tells it by its mark."""
    layout, log = left(tmp_path, stuck, b"said " + TOKEN + b"\n")
    real = files.read_with_facts

    def broken(path: Path, **kwargs: Any) -> Any:
        if path == log:
            files.fail("read", path, OSError(errno.EIO, "io"))
        return real(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_with_facts", broken)
        assert erase(layout, [], now=1.7e9, known=known, lengths={len(TOKEN)}).remaining == [LOG]
        assert "cannot read" in rows(layout)[LOG]["reason"]
    assert not erase(layout, [], now=1.7e9, known=known, lengths={len(TOKEN)}).remaining
    assert log.read_bytes() == b"said " + X + b"\n"


def test_what_nothing_recognises_stays_until_its_bytes_change(
    tmp_path: Path, stuck: Callable[[Path], None]
) -> None:
    """Lost marks recognise nothing: the same bytes are the same copy, others are none."""
    layout, log = left(tmp_path, stuck, b"said " + TOKEN + b"\n")
    for _ in range(2):
        assert erase(layout, [], now=1.7e9).remaining == [LOG]
    assert rows(layout)[LOG]["reason"] == UNKNOWN
    with log.open("ab") as stream:
        stream.write(b"more\n")
    assert erase(layout, [], now=1.7e9).remaining == [LOG]
    log.write_bytes(log.read_bytes().replace(TOKEN, X))
    assert not erase(layout, [], now=1.7e9).remaining


@pytest.mark.parametrize("form", [bytes, base64.b64encode, gzip.compress])
def test_a_copy_that_was_shifted_is_found(
    tmp_path: Path, stuck: Callable[[Path], None], form: Callable[[bytes], bytes]
) -> None:
    """A line before it, and other bytes where it stood: the whole file is read for the mark."""
    layout, log = left(tmp_path, stuck, form(b"enrollment_token: " + TOKEN + b"\n"))
    log.write_bytes(b"added\n" * 20 + log.read_bytes())
    assert not erase(layout, [], now=1.7e9, known=known, lengths={20, len(TOKEN)}).remaining
    assert rows(layout)[LOG]["result"] == "overwritten"
    assert not set(recognise(log.read_bytes(), known, {len(TOKEN)}))


@pytest.mark.parametrize("limit", ["TRIES", "VIEW_LIMIT"])
def test_a_file_that_is_too_much_work_keeps_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: Callable[[Path], None], limit: str
) -> None:
    """Its old place shows nothing any more, and the rest was not seen."""
    layout, log = left(tmp_path, stuck, TOKEN)
    log.write_bytes(b"A" * 5000 + b"!" + base64.b64encode(TOKEN * 2))
    with monkeypatch.context() as patch:
        patch.setattr(scrub, limit, 4000)
        assert erase(layout, [], now=1.7e9, known=known, lengths={len(TOKEN)}).remaining == [LOG]
        assert rows(layout)[LOG]["reason"] == scrub.UNRECOGNISED
    assert not erase(layout, [], now=1.7e9, known=known, lengths={len(TOKEN)}).remaining
    assert base64.b64encode(TOKEN * 2) not in log.read_bytes()


def test_a_removed_file_ends_its_row(tmp_path: Path, stuck: Callable[[Path], None]) -> None:
    """Gone from the very file system that it stood on."""
    layout, log = left(tmp_path, stuck, TOKEN)
    log.unlink()
    assert not erase(layout, [], now=1.7e9).remaining


def test_a_renamed_file_is_found_by_its_inode(
    tmp_path: Path, stuck: Callable[[Path], None]
) -> None:
    """Rotated between two looks: it is erased where it is now."""
    layout, log = left(tmp_path, stuck, b"said " + TOKEN)
    log.rename(f"{log}.1")
    log.write_bytes(b"fresh")
    receipt = erase(layout, [], now=1.7e9, known=known, lengths={len(TOKEN)})
    assert not receipt.remaining and rows(layout)[f"{LOG}.1"]["result"] == "overwritten"
    assert TOKEN not in Path(f"{log}.1").read_bytes()


def test_a_file_that_is_no_place_any_more_keeps_its_row(
    tmp_path: Path, stuck: Callable[[Path], None]
) -> None:
    """`erase.paths` named it once: the token is recognised, and nobody may write there."""
    layout, other = host(tmp_path), tmp_path / "srv/copy"
    other.parent.mkdir()
    other.write_bytes(TOKEN)
    stuck(other)
    assert erase(layout, [TOKEN], now=1.7e9, named=["/srv/copy"]).remaining == ["/srv/copy"]
    assert erase(layout, [], now=1.7e9, known=known, lengths={len(TOKEN)}).remaining == [
        "/srv/copy"
    ]


@pytest.mark.parametrize("copies", [1, 2, MOST_SPOTS + 10])
@pytest.mark.parametrize("size", [32, 300, 4096])
def test_each_copy_in_a_file_has_its_own_place(
    tmp_path: Path, stuck: Callable[[Path], None], copies: int, size: int
) -> None:
    """Minified JSON with a long token, twice: an enclosing stretch would tell nothing."""
    token = b"bet_" + os.urandom(size).hex().encode()[: size - 4]
    layout, log = with_log(tmp_path, b'{"a":["' + b'","'.join([token] * copies) + b'"]}')
    stuck(log)
    erase(layout, [token], now=1.7e9)
    stored = rows(layout)[LOG]["spots"]
    assert len(stored) == min(copies, MOST_SPOTS + 1)
    assert all(spot["length"] == size for spot in stored[:MOST_SPOTS])
    asked: list[bytes] = []
    erase(
        layout,
        [],
        now=1.7e9,
        known=lambda word: asked.append(word) or word == token,
        lengths={size},
    )
    assert token in asked


@pytest.mark.parametrize("form", ["wrapped base64", "escapes", "quoted-printable"])
def test_a_copy_in_pieces_is_one(form: str) -> None:
    """A token over lines is told by one stretch from its first character to its last."""
    import quopri

    data = {
        "wrapped base64": b"a: |\n    "
        + base64.encodebytes(b"x: " + TEXT * 3).replace(b"\n", b"\n    "),
        "escapes": b'["' + TOKEN[:9] + b"\\u%04x" % TOKEN[9] + TOKEN[10:] + b'"]',
        "quoted-printable": b"Content-Transfer-Encoding: quoted-printable\n\n"
        + quopri.encodestring(b"#" * 60 + b"=" + TOKEN),
    }[form]
    done = Scrubber([TOKEN]).redact(data)
    found = spots(data, done.spans)
    assert len(found) == data.count(b"x: ") or len(found) in (1, 3)
    for spot in found:
        piece = data[spot.offset : spot.offset + spot.length]
        assert set(recognise(piece, known, {len(TOKEN)})) == {TOKEN}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_system_that_is_not_mounted_keeps_its_row(tmp_path: Path, nested: bool) -> None:
    """/boot/firmware is there in one boot and not in the next; then it is, and is erased.

    Also where /boot is a file system of its own.
    """
    code = """
import subprocess, sys
from pathlib import Path
from firstboot.base import inplace
from firstboot.base.errors import LocalFault
from firstboot.provision.erase.copies import erase
sys.path.insert(0, sys.argv[2])
from tests.unit.test_erase import TOKEN, host
layout = host(Path(sys.argv[1]))
boot, disk = layout.root / "boot/firmware", layout.root / "disk"
mount = lambda *words: subprocess.run(words, check=True)
boot.parent.mkdir(); disk.mkdir()
if sys.argv[3] == "True":
    mount("mount", "-t", "tmpfs", "-o", "mode=755", "boot", str(boot.parent))
boot.mkdir()
mount("mount", "-t", "tmpfs", "disk", str(disk))
(disk / "user-data").write_bytes(b"a " + TOKEN)
mount("mount", "--bind", str(disk), str(boot))
real = inplace.overwrite
def refuse(held, data):
    if held.path.parent == boot:
        raise LocalFault("refused", hint="x")
    return real(held, data)
inplace.overwrite = refuse
known = lambda word: word == TOKEN
said = [erase(layout, [TOKEN], now=1.7e9).remaining]
inplace.overwrite = real
mount("umount", str(boot))
for _ in range(2):
    away = erase(layout, [], now=1.7e9, known=known, lengths={len(TOKEN)})
    said.append(away.remaining)
print(next(copy.reason for copy in away.copies if copy.result == "remains"))
(boot / "user-data").write_bytes(b"beneath the mount point")
said.append(erase(layout, [], now=1.7e9, known=known, lengths={len(TOKEN)}).remaining)
mount("mount", "--bind", str(disk), str(boot))
said.append(erase(layout, [], now=1.7e9, known=known, lengths={len(TOKEN)}).remaining)
print(said, TOKEN in (boot / "user-data").read_bytes())
"""
    top = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private"]
        + [sys.executable, "-I", "-c", code, str(tmp_path), str(top), str(nested)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where = ["/boot/firmware/user-data"]
    assert done.stdout.splitlines() == [AWAY, f"{[where] * 4 + [[]]} False"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_the_sources_go_last_on_a_running_host() -> None:
    """`Layout()` itself, where the instance is a link that the kernel follows."""
    code = """
import os, subprocess, sys
from pathlib import Path
from firstboot.base import inplace
from firstboot.base.layout import Layout
from firstboot.provision.erase.copies import erase
for place in ("/var/lib", "/run"):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "none", place], check=True)
instance = Path("/var/lib/cloud/instances/iid-1")
for directory in (instance / "scripts", Path("/run/byteor-firstboot"), Path("/var/lib/byteor/identity")):
    directory.mkdir(parents=True)
Path("/var/lib/cloud/instance").symlink_to(instance)
token = b"bet_" + os.urandom(16).hex().encode()
names = ["scripts/run", "user-data.txt", "user-data.txt.i", "vendor-data.txt", "zz"]
for path in [*(instance / name for name in names), Layout().drop_place]:
    path.write_bytes(b"enrollment_token: " + token)
real, order = inplace.overwrite, []
def overwrite(held, data):
    order.append(held.path.name)
    if held.path.name == "user-data.txt.i":
        order.append(Layout().erasure.exists())
    return real(held, data)
inplace.overwrite = overwrite
erase(Layout(), [token], now=1.7e9)
print(*order)
"""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *first, source, early, rest = done.stdout.split(maxsplit=4)
    assert sorted(first) == ["run", "zz"] and (source, early) == ("user-data.txt.i", "True")
    # The drop place is overwritten, then wiped.
    assert rest.split() == ["vendor-data.txt", "user-data.txt", "settings.yaml", "settings.yaml"]


# -- overwriting what somebody else writes, too


def held_of(path: Path) -> inplace.Held:
    held = inplace.read(path, limit=1 << 20)
    assert held is not None
    return held


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    """An edit beside the token, of the same length, outlives the overwriting; on it, it is said."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * 5000 + TOKEN + b"b" * 5000)
    held = held_of(path)
    path.write_bytes(b"c" * 5000 + TOKEN + b"b" * 5000)
    after = inplace.overwrite(held, held.data.replace(TOKEN, X))
    assert after.data == path.read_bytes() == b"c" * 5000 + X + b"b" * 5000
    path.write_bytes(b"c" * 5001 + TOKEN + b"b" * 4999)
    with pytest.raises(inplace.Changed):
        inplace.overwrite(held, held.data.replace(TOKEN, X))
    assert path.read_bytes() == b"c" * 5001 + TOKEN + b"b" * 4999


def growing(monkeypatch: pytest.MonkeyPatch, path: Path, pieces: Iterator[bytes]) -> None:
    """Append one more piece just before each overwriting."""
    real = inplace.overwrite

    def overwrite(held: inplace.Held, data: bytes) -> inplace.Held:
        if held.path == path:
            with path.open("ab") as stream:
                stream.write(next(pieces, b""))
        return real(held, data)

    monkeypatch.setattr(inplace, "overwrite", overwrite)


@pytest.mark.parametrize("pieces", [[b"more\n"] * 9, [b"again " + TOKEN, b"more"]])
def test_a_log_that_grows_meanwhile_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]
) -> None:
    """What is appended stays, and is searched as well."""
    layout, log = with_log(tmp_path)
    growing(monkeypatch, log, iter(pieces))
    receipt = erase(layout, [TOKEN], now=1.7e9)
    assert not receipt.remaining and rows(layout)[LOG]["result"] == "overwritten"
    assert log.read_bytes() in (
        b"said " + X + b"\nmore\n",
        b"said " + X + b"\nagain " + X + b"more",
    )


def test_a_log_that_gets_the_token_again_and_again_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times, then it is said."""
    layout, log = with_log(tmp_path)
    growing(monkeypatch, log, iter([TOKEN] * 9))
    assert erase(layout, [TOKEN], now=1.7e9).remaining == [LOG]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_log_that_is_rotated_meanwhile_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Both the renamed file and the one in its place are erased, or what is not seen is said."""
    layout, log = with_log(tmp_path)
    real = inplace.overwrite

    def overwrite(held: inplace.Held, data: bytes) -> inplace.Held:
        rotates = held.path == log and not Path(f"{log}.1").exists()
        done = real(held, data) if moment == "after" or not rotates else None
        if rotates:
            log.rename(f"{log}.1")
            log.write_bytes(b"new " + TOKEN)
        return done or real(held, data)

    monkeypatch.setattr(inplace, "overwrite", overwrite)
    receipt = erase(layout, [TOKEN], now=1.7e9)
    assert not receipt.remaining
    assert log.read_bytes() == b"new " + X and Path(f"{log}.1").read_bytes() == b"said " + X + b"\n"
    said = rows(layout)
    assert (said[LOG].get("reason") == MOVED) == (moment == "before")


def test_a_file_that_is_removed_meanwhile_is_said_and_does_not_remain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody overwrote it: that is said, and there is nothing to be done."""
    layout, log = with_log(tmp_path)
    real = inplace.overwrite

    def overwrite(held: inplace.Held, data: bytes) -> inplace.Held:
        if held.path == log:
            log.unlink()
        return real(held, data)

    monkeypatch.setattr(inplace, "overwrite", overwrite)
    assert not erase(layout, [TOKEN], now=1.7e9).remaining
    assert (rows(layout)[LOG]["result"], rows(layout)[LOG]["reason"]) == ("not_looked_at", MOVED)


def test_the_drop_place_that_goes_meanwhile_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody removed it after it was overwritten: nothing remains."""
    layout = host(tmp_path)
    layout.drop_place.parent.mkdir(parents=True)
    layout.drop_place.write_bytes(b"enrollment_token: " + TOKEN)
    real = inplace.overwrite

    def overwrite(held: inplace.Held, data: bytes) -> inplace.Held:
        done = real(held, data)
        if held.path == layout.drop_place:
            held.path.unlink()
        return done

    monkeypatch.setattr(inplace, "overwrite", overwrite)
    assert not erase(layout, [TOKEN], now=1.7e9).remaining
    assert rows(layout)["/run/byteor-firstboot/settings.yaml"]["result"] == "unlinked"


def test_a_damaged_pickle_cannot_be_looked_at(tmp_path: Path) -> None:
    """Its text is overwritten where it is seen; that nothing else is in it is not claimed."""
    layout = host(tmp_path)
    pickled = layout.cloud / "instances/iid-1/obj.pkl"
    whole = pickled.read_bytes()
    pickled.chmod(0o600)
    pickled.write_bytes(whole[: whole.index(TOKEN) + 40] + b"\xff\xff\xff")
    erase(layout, [TOKEN], now=1.7e9)
    row = rows(layout)["/var/lib/cloud/instances/iid-1/obj.pkl"]
    assert row["result"] == "not_looked_at" and "damaged" in row["reason"]
    assert row["encodings"] and TOKEN not in pickled.read_bytes()
