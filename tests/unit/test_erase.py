"""Finding and overwriting copies: every encoding, the same length, still readable for cloud-init;
the receipt's truth.
"""

from __future__ import annotations

import base64
import errno
import gzip
import json
import os
import pickle
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from firstboot.base import inplace
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision import decode, schema, userdata
from firstboot.provision.erase import places, search
from firstboot.provision.erase.copies import cloud_init_finished, erase
from firstboot.provision.erase.receipt import GIVEN, Copy
from firstboot.provision.erase.scrub import Redacted, Scrubber
from firstboot.provision.erase.seeds import still_served

TOKEN = b"bet_9fK2mQ7xT4vB8nL1pR6sD3wH5jC0"
X = b"x" * len(TOKEN)
TEXT = b"#cloud-config\n#byteor-firstboot:\n#  enrollment_token: " + TOKEN + b"\nhostname: edge\n"


# -- on a tree


def host(tmp_path: Path, text: bytes = TEXT) -> Layout:
    instance = tmp_path / "var/lib/cloud/instances/iid-1"
    (instance / "scripts").mkdir(parents=True)
    (instance / "user-data.txt").write_bytes(text)
    (instance / "obj.pkl").write_bytes(pickle.dumps({"u": text}))
    (instance / "obj.pkl").chmod(0o400)
    (instance / "scripts/runcmd").write_bytes(b"#!/bin/sh\necho '" + TOKEN + b"'\n")
    (tmp_path / "var/lib/cloud/instance").symlink_to("/var/lib/cloud/instances/iid-1")
    (tmp_path / "var/lib/byteor/identity").mkdir(parents=True)
    return Layout(tmp_path)


def results(layout: Layout, *, late: bool = True) -> dict[str, str]:
    receipt = erase(layout, [TOKEN], now=1.7e9, late=late)
    return {copy.path.rsplit("/", 1)[1]: copy.result for copy in receipt.copies}


def test_files_are_overwritten_on_their_own_blocks(tmp_path: Path) -> None:
    """The same inode, mode and length; never a new file beside."""
    layout = host(tmp_path)
    path = layout.cloud / "instances/iid-1/obj.pkl"
    before = path.stat()
    assert set(results(layout).values()) == {"overwritten"}
    after = path.stat()
    assert (before.st_ino, before.st_size, before.st_mode) == (
        after.st_ino,
        after.st_size,
        after.st_mode,
    )
    assert pickle.loads(path.read_bytes())["u"] == TEXT.replace(TOKEN, X)


def test_what_a_later_stage_runs_is_left_alone_while_cloud_init_works(tmp_path: Path) -> None:
    """runcmd must not see x: its script waits for `byteor-erase`, and the receipt says so."""
    layout = host(tmp_path)
    assert "runcmd" not in results(layout, late=False)
    assert TOKEN in (layout.cloud / "instances/iid-1/scripts/runcmd").read_bytes()
    assert "byteor-erase" in json.loads(layout.erasure.read_text())["not_looked_at"][-1]
    assert results(layout)["runcmd"] == "overwritten"


def test_what_sources_read_is_overwritten_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cut anywhere sees the token again, as long as any copy is there."""
    layout = host(tmp_path)
    layout.drop_place.parent.mkdir(parents=True)
    layout.drop_place.write_bytes(b"enrollment_token: " + TOKEN)
    order: list[str] = []
    real = inplace.overwrite
    monkeypatch.setattr(
        inplace,
        "overwrite",
        lambda held, data: (order.append(held.path.name), real(held, data))[1],
    )
    results(layout)
    assert sorted(order[:2]) == ["obj.pkl", "runcmd"]
    assert order[2:4] == ["user-data.txt", "settings.yaml"]


@dataclass(frozen=True)
class Unresolved(Layout):
    """Paths as a running host has them: the kernel follows their links, nobody else."""

    @property
    def is_host(self) -> bool:
        return True

    @property
    def owner(self) -> int:
        return os.geteuid()

    def path(self, absolute: str, *, follow: bool = False) -> Path:
        return Path(f"{self.root}{absolute}")

    def shown(self, path: Path) -> str:
        return "/" + str(path.relative_to(self.root))


def test_the_order_is_the_same_where_the_kernel_follows_links(tmp_path: Path) -> None:
    """On a running host the instance's directory is a link, too: its user data goes last."""
    host(tmp_path)
    (tmp_path / "var/lib/cloud/instance").unlink()
    (tmp_path / "var/lib/cloud/instance").symlink_to(tmp_path / "var/lib/cloud/instances/iid-1")
    (tmp_path / "var/lib/cloud/instances/iid-1/user-data.txt.i").write_bytes(TEXT)
    found = places.find(Unresolved(tmp_path)).places
    assert [place.path.name for place in found if place.kind is places.Kind.SOURCE] == [
        "user-data.txt.i",
        "user-data.txt",
    ]


def test_the_drop_place_and_the_token_file_go_only_when_they_hold_the_token(tmp_path: Path) -> None:
    """Ours: overwritten, then unlinked; another token in them stays."""
    layout = host(tmp_path)
    for path in (layout.drop_place, layout.token_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    layout.drop_place.write_bytes(b"enrollment_token: " + TOKEN)
    layout.token_file.write_bytes(b"bet_another_token_of_somebody")
    found = results(layout)
    assert found["settings.yaml"] == "unlinked" and not layout.drop_place.exists()
    assert layout.token_file.exists()


def test_links_lead_nowhere(tmp_path: Path) -> None:
    """A link planted below /var/lib/cloud does not get somebody else's file overwritten."""
    layout = host(tmp_path)
    outside = tmp_path / "outside"
    outside.write_bytes(TOKEN)
    (layout.cloud / "link").symlink_to(outside)
    (layout.cloud / "directory").symlink_to(tmp_path)
    os.mkfifo(layout.cloud / "fifo")
    results(layout)
    assert outside.read_bytes() == TOKEN


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a file immutable")
def test_a_copy_that_stays_is_said(tmp_path: Path) -> None:
    """A file that we could have written and that did not let us: remains, which is exit 9."""
    layout = host(tmp_path)
    path = layout.cloud / "instances/iid-1/user-data.txt"
    if subprocess.run(["chattr", "+i", str(path)], capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        receipt = erase(layout, [TOKEN], now=1.7e9)
        assert receipt.remaining == ["/var/lib/cloud/instances/iid-1/user-data.txt"]
        stored = json.loads(layout.erasure.read_text())
        assert [
            copy["result"] for copy in stored["copies"] if copy["path"].endswith("user-data.txt")
        ] == ["remains"]
        # A later look has no token in hand, and tells the copy by its mark.
        again = erase(layout, [], now=1.7e9, known=lambda word: word == TOKEN, lengths={len(TOKEN)})
        assert again.remaining == receipt.remaining
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root opens any file, whatever its mode: run as another user"
)
def test_a_read_only_file_of_ones_own_is_overwritten_without_root(tmp_path: Path) -> None:
    """obj.pkl is 0400: on a tree of their own people are not root, and its mode stays as it was."""
    path = tmp_path / "obj.pkl"
    path.write_bytes(TEXT)
    path.chmod(0o400)
    held = inplace.read(path, limit=1 << 20)
    assert held is not None
    inplace.overwrite(held, b"x" * len(TEXT))
    assert path.read_bytes() == b"x" * len(TEXT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400


def test_the_receipt_is_private_and_never_holds_a_token(tmp_path: Path) -> None:
    """0600, versioned, with what was not looked at."""
    layout = host(tmp_path)
    results(layout)
    text = layout.erasure.read_text()
    assert stat.S_IMODE(layout.erasure.stat().st_mode) == 0o600
    assert TOKEN.decode() not in text
    first = json.loads(text)
    assert first["v"] == 2 and first["not_looked_at"] and first["copies"]


SEED = "DataSourceNoCloud: DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud][dsmode=net]"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("DataSourceEc2: DataSourceEc2Local", 1),
        ("DataSourceNoCloud: DataSourceNoCloud [seed=/dev/sr0][dsmode=net]", 1),
        ("DataSourceNoCloud: DataSourceNoCloudNet [seed=http://192.0.2.1/]", 1),
        ("DataSourceConfigDrive: DataSourceConfigDrive [net,ver=2][source=/dev/sr0]", 1),
        ("DataSourceOpenStack: DataSourceOpenStackLocal [net,ver=2]", 1),
        ("DataSourceHetzner", 1),
        ("DataSourceAzure: DataSourceAzure [seed=/dev/sr0]", 1),
        ("DataSourceOracle: DataSourceOracle", 1),
        ("DataSourceLXD: DataSourceLXD", 1),
        ("DataSourceGCE", 1),
        ("DataSourceVMware", 1),
        (SEED, 0),
        ("DataSourceNoCloud: DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud,file:///x/]", 0),
        ("DataSourceNoCloud: DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud,http://x/]", 1),
        ("DataSourceNone: DataSourceNone", 0),
        ("", 0),
    ],
)
def test_a_datasource_that_serves_again_is_said(tmp_path: Path, line: str, said: int) -> None:
    """All but a seed directory: a medium or a service gives the token to whoever asks again."""
    layout = host(tmp_path)
    (layout.cloud / "instances/iid-1/datasource").write_text(line)
    assert len(still_served(layout)) == said
    assert cloud_init_finished(layout)


def test_a_receipt_keeps_what_this_boot_and_the_enrolling_one_erased(tmp_path: Path) -> None:
    """A second look finds nothing more, and what the first erased is still said, one row a path."""
    layout = host(tmp_path)
    first = erase(layout, [TOKEN], now=1.7e9)
    again = erase(layout, [TOKEN], now=1.8e9)
    assert {copy.path: copy.at for copy in again.copies} == {
        copy.path: copy.at for copy in first.copies
    }
    stored = json.loads(layout.erasure.read_text())
    assert stored["enrolling_boot_id"] == stored["boot_id"] == stored["copies"][0]["boot_id"]
    (layout.cloud / "instances/iid-1/user-data.txt").write_bytes(TEXT)
    third = erase(layout, [TOKEN], now=1.9e9)
    paths = [copy.path for copy in third.copies]
    assert len(paths) == len(set(paths)) == len(first.copies)


def test_every_place_is_looked_at(tmp_path: Path) -> None:
    """Outside cloud-init's own tree, too: each named place, and rotated and packed logs."""
    layout = host(tmp_path)
    names = [
        "run/cloud-init/combined-cloud-config.json",
        "etc/cloud/cloud.cfg.d/90_dpkg.cfg",
        "var/lib/waagent/ovf-env.xml",
        "boot/firmware/user-data",
        "boot/user-data",
        "var/log/installer/autoinstall-user-data",
        "var/log/cloud-init.log",
        "var/log/cloud-init-output.log",
        "var/lib/cloud/data/status.json",
    ]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a " + TOKEN)
    rotated = tmp_path / "var/log/cloud-init.log.1.gz"
    rotated.write_bytes(gzip.compress(TEXT))
    found = results(layout)
    assert {Path(name).name for name in names} <= set(found)
    assert found["cloud-init.log.1.gz"] == "overwritten"
    assert TOKEN not in gzip.decompress(rotated.read_bytes())


def test_the_system_log_is_searched_as_it_is(tmp_path: Path) -> None:
    """Many copies in many lines, in time; not decoded, and not even read without a token."""
    layout = host(tmp_path)
    logs = [tmp_path / name[1:] for name in places.SYSTEM]
    logs[0].parent.mkdir(parents=True)
    line, packed = b"edge cloud-init[400]: + echo %s\n", base64.b64encode(b"..." + TOKEN)
    for log in logs:
        log.write_bytes(line % TOKEN * 3000 + line % packed + b"x" * (2 << 20))
    receipt = erase(layout, [TOKEN], now=1.7e9)
    said = {row.path: row for row in receipt.copies}
    for log in logs:
        row = said[layout.shown(log)]
        assert (row.result, row.encodings) == ("overwritten", {"raw": 3000})
        assert log.read_bytes()[: 3000 * len(line % X)] == line % X * 3000
        assert packed in log.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        read = inplace.read
        patch.setattr(
            inplace, "read", lambda path, limit: (seen.append(path), read(path, limit=limit))[1]
        )
        seen: list[Path] = []
        erase(layout, [], now=1.7e9)
    assert seen and not set(logs) & set(seen)


def test_another_disk_and_many_files_and_depth_are_looked_at(tmp_path: Path) -> None:
    """`instances` may be a link to another disk, and no number of files ends the walk."""
    layout = host(tmp_path)
    (layout.cloud / "instances").rename(tmp_path / "disk")
    (layout.cloud / "instances").symlink_to("/disk")
    deep = tmp_path / "disk" / "/".join("d" * 30)
    deep.mkdir(parents=True)
    (deep / "copy").write_bytes(TOKEN)
    assert {"user-data.txt", "obj.pkl", "runcmd", "copy"} <= set(results(layout))


@pytest.mark.parametrize("seedfrom", ["/seed/", "file:///seed/", "/seed"])
def test_a_local_seed_outside_the_trees_is_erased_or_named(tmp_path: Path, seedfrom: str) -> None:
    """A meta-data's `seedfrom`, and a seed directory's link to a file: by the rules of paths."""
    layout = host(tmp_path)
    nocloud = tmp_path / "var/lib/cloud/seed/nocloud"
    for directory in (tmp_path / "seed", tmp_path / "other", tmp_path / "open", nocloud):
        directory.mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    line = f"DataSourceNoCloud: DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud,{seedfrom}]"
    (layout.cloud / "instances/iid-1/datasource").write_text(line)
    for name in ("seed/user-data", "other/user-data", "open/vendor-data"):
        (tmp_path / name).write_bytes(TEXT)
    (nocloud / "user-data").symlink_to("/other/user-data")
    (nocloud / "vendor-data").symlink_to("../../../../../open/vendor-data")
    (tmp_path / "seed/vendor-data").symlink_to("/other/user-data")
    receipt = erase(layout, [TOKEN], now=1.7e9, served=still_served(layout))
    found = {copy.path: copy.result for copy in receipt.copies}
    assert not receipt.still_served
    assert found["/seed/user-data"] == found["/other/user-data"] == "overwritten"
    assert found["/var/lib/cloud/seed/nocloud/vendor-data"] == "not_looked_at"
    assert found["/seed/vendor-data"] == "not_looked_at"
    assert TOKEN not in (tmp_path / "seed/user-data").read_bytes()
    assert (tmp_path / "open/vendor-data").read_bytes() == TEXT
    shown = {layout.shown(path) for path in places.find(layout).elsewhere}
    assert shown == {"/seed/user-data", "/seed/meta-data", "/other/user-data"} | (
        {f"/seed{name}" for name in ("user-data", "vendor-data", "meta-data")}
        if seedfrom == "/seed"
        else set()
    )


def test_a_directory_that_others_may_change_is_not_followed_and_said(tmp_path: Path) -> None:
    """A link to what others may write could lead to anybody's file."""
    layout = host(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/file").write_bytes(TOKEN)
    (layout.cloud / "link").symlink_to("/open")
    assert results(layout)["link"] == "not_looked_at"
    assert (tmp_path / "open/file").read_bytes() == TOKEN


def test_named_files_are_erased_where_only_root_can_change_them(tmp_path: Path) -> None:
    """`erase.paths`: a regular file with one link, and nobody else on the way to it."""
    layout = host(tmp_path)
    (tmp_path / "srv").mkdir()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in ("srv/good", "open/file", "srv/twice", "srv/target"):
        (tmp_path / name).write_bytes(TOKEN)
    os.link(tmp_path / "srv/twice", tmp_path / "srv/second")
    (tmp_path / "srv/link").symlink_to("/srv/target")
    (tmp_path / "srv/way").symlink_to("/open")
    named = ["/srv/good", "/open/file", "/srv/twice", "/srv/link", "/srv/way/file", "/srv/none"]
    receipt = erase(layout, [TOKEN], now=1.7e9, named=named)
    found = {copy.path: copy.result for copy in receipt.copies if copy.path in named}
    refused = dict.fromkeys(named[1:5], "not_looked_at")
    assert found == {"/srv/good": "overwritten", **refused}
    assert (tmp_path / "open/file").read_bytes() == TOKEN


@pytest.mark.parametrize("moment", ["overwrite", "unlink"])
def test_a_file_renamed_in_meanwhile_is_not_destroyed_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Overwriting and unlinking go by the inode that was read; the next look reads the new file."""
    layout = host(tmp_path)
    layout.drop_place.parent.mkdir(parents=True)
    layout.drop_place.write_bytes(b"enrollment_token: " + TOKEN)
    real = inplace.overwrite

    def renamed(held: inplace.Held, data: bytes) -> inplace.Held:
        last = not data.strip(b"\0")
        if held.path == layout.drop_place and last == (moment == "unlink"):
            if last:
                real(held, data)
            fresh = layout.drop_place.with_name("fresh")
            fresh.write_bytes(b"enrollment_token: bet_of_somebody_else")
            fresh.rename(layout.drop_place)
            if last:
                return inplace.Held(held.path, data, held.device, held.inode)
        return real(held, data)

    monkeypatch.setattr(inplace, "overwrite", renamed)
    results(layout)
    assert layout.drop_place.read_bytes() == b"enrollment_token: bet_of_somebody_else"


def test_what_the_reader_still_reads_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the scrubber blind, the reader itself says what is left: never gone where it is not."""
    layout = host(tmp_path)
    monkeypatch.setattr(Scrubber, "redact", lambda self, data: Redacted(data))
    found = results(layout)
    assert found["user-data.txt"] == found["obj.pkl"] == "remains"


def test_a_stream_that_does_not_fit_remains_and_the_rest_is_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says why; raw copies beside it in the same file go all the same."""
    layout = host(tmp_path)
    path = layout.cloud / "instances/iid-1/user-data.txt"
    path.write_bytes(TEXT + gzip.compress(TEXT) + TEXT)

    def unfit(text: bytes, length: int) -> bytes:
        raise decode.Unredactable("its gzip does not fit into the old length")

    monkeypatch.setattr(decode, "_packed", unfit)
    receipt = erase(layout, [TOKEN], now=1.7e9)
    row = next(copy for copy in receipt.copies if copy.path.endswith("user-data.txt"))
    assert row.result == "remains" and row.reason == "its gzip does not fit into the old length"
    assert path.read_bytes().count(TOKEN) == 0
    monkeypatch.undo()
    again = erase(layout, [], now=1.8e9, known=lambda word: word == TOKEN, lengths={len(TOKEN)})
    assert not again.remaining
    assert TOKEN not in gzip.decompress(path.read_bytes()[len(TEXT) : -len(TEXT)])


@pytest.mark.parametrize("inside", [True, False])
def test_a_token_file_is_named_as_long_as_it_holds_the_token(tmp_path: Path, inside: bool) -> None:
    """A later look reads it again, and searches for its token although no source shows it."""
    layout, given = host(tmp_path), tmp_path / "token"
    given.write_bytes(TOKEN + b"\n")
    named = "/token" if inside else str(given)
    row = Copy(named, {"raw": 1}, "kept", GIVEN)
    erase(layout, [TOKEN], now=1.7e9, kept=[row])
    (layout.cloud / "late").write_bytes(TOKEN)
    later = erase(layout, [], now=1.8e9, known=lambda word: word == TOKEN, lengths={len(TOKEN)})
    said = {copy.path: copy.result for copy in later.copies}
    assert said[named] == "kept" and said["/var/lib/cloud/late"] == "overwritten"
    given.unlink()
    assert named not in [
        copy.path
        for copy in erase(
            layout, [], now=1.9e9, known=lambda word: word == TOKEN, lengths={len(TOKEN)}
        ).copies
    ]


BROKEN = b"""#cloud-config
byteor:
  org_id: org_1
  enrollment_token: "bet_9fK2mQ7xT4vB8nL1pR6sD3wH5jC0
  name: x
"""


def test_what_cloud_init_prints_of_a_broken_line_is_x_ed_out(tmp_path: Path) -> None:
    """The token is cut there and not spent; nothing else in the log changes."""
    layout = host(tmp_path, BROKEN)
    (tmp_path / "var/log").mkdir(parents=True)
    log = tmp_path / "var/log/cloud-init-output.log"
    text = b'  enrollment_token: "bet_9fK2mQ7xT4vB8nL1pR6sD ... \n  enrollment_token: other\nbet_9fK2\n'
    log.write_bytes(text)
    status = tmp_path / "var/lib/cloud/data/status.json"
    status.parent.mkdir(parents=True)
    status.write_bytes(
        b'{"errors": ["in line: enrollment_token: \\"bet_9fK2mQ7xT4vB8nL1pR6s ... "]}'
    )
    receipt = erase(layout, [], now=1.7e9)
    assert {copy.path: dict(copy.encodings) for copy in receipt.copies} == {
        "/var/log/cloud-init-output.log": {"fragment": 1},
        "/var/lib/cloud/data/status.json": {"fragment": 1},
    }
    cut = b"bet_9fK2mQ7xT4vB8nL1pR6sD"
    assert log.read_bytes() == text.replace(cut, b"x" * len(cut))
    assert b"mQ7x" not in status.read_bytes() and json.loads(status.read_text())


def test_a_read_only_view_is_not_a_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EROFS is `still_served` only where the file system itself is read-only: else it remains."""

    def refuse(held: inplace.Held, data: bytes) -> None:
        raise LocalFault("cannot overwrite it") from OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(inplace, "overwrite", refuse)
    layout = host(tmp_path)
    assert set(results(layout).values()) == {"remains"}
    monkeypatch.setattr(search, "_read_only", lambda path: True)
    assert set(results(layout).values()) == {"still_served"}


def large(root: Path) -> Layout:
    """Store user data with 1 MiB of somebody's base64 beside our block, as cloud-init does."""
    content = base64.b64encode(os.urandom(1 << 20))
    text = TEXT + b"write_files:\n- path: /x\n  encoding: b64\n  content: " + content + b"\n"
    layout = host(root, text)
    instance = layout.cloud / "instances/iid-1"
    head = b"Content-Type: text/cloud-config\nMIME-Version: 1.0\n\n"
    (instance / "user-data.txt.i").write_bytes(head + text)
    (instance / "cloud-config.txt").write_bytes(b"#cloud-config\n" + text[len(TEXT) :])
    return layout


def test_large_user_data_costs_little_and_no_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 MiB of base64 in each of four copies: a byte search comes before any YAML is composed.

    It takes 0.25 s with a token in hand, and nothing in an ordinary boot; the bound is for a
    machine that is busy.
    """
    layout = large(tmp_path)
    composed = []
    real = schema.compose
    monkeypatch.setattr(
        userdata,
        "compose",
        lambda data, where: (composed.append(len(data)), real(data, where=where)),
    )
    began = time.process_time()
    erase(layout, [], now=1.7e9)
    assert time.process_time() - began < 0.2
    receipt = erase(layout, [TOKEN], now=1.7e9)
    assert time.process_time() - began < 2.5
    assert {copy.result for copy in receipt.copies} == {"overwritten"}
    assert composed == []
