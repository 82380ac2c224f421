"""Unpacking a bundle: what is harmless comes out byte for byte, everything else is refused by its
code and leaves no mark.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import subprocess
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

import pytest

from firstboot.activate import unpack
from firstboot.base.errors import LocalFault, Untrusted
from tests.controlplane import bundles
from tests.controlplane.bundles import archive, member, members_of, pack
from tests.unit.tars import (
    FILES,
    LONG,
    contents,
    filled,
    having,
    header,
    patched,
    pax,
    raw,
    verdict,
)

TAR = archive(members_of(FILES))
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "bundles.json").read_text())


UNSAFE: dict[str, Callable[[], bytes]] = {
    "absolute_directory": lambda: having(member("/etc", kind=tarfile.DIRTYPE)),
    "absolute_after_dot": lambda: raw(pax(b"path=/./etc/x", entry=header())),
    "parent_directory": lambda: having(member("..", kind=tarfile.DIRTYPE)),
    "parent_last": lambda: having(member("adapters/..", kind=tarfile.DIRTYPE)),
    "parent_in_pax": lambda: raw(pax(b"path=../evil", entry=header())),
    "parent_in_long_name": lambda: raw(header("L", kind=b"L", data=b"../evil\0"), header()),
    "parent_in_prefix": lambda: raw(
        patched(patched(header("evil"), 257, b"ustar\x0000"), 345, b"..\0")
    ),
    "file_named_dot": lambda: having(member(".", b"x")),
    "file_ending_in_dot": lambda: having(member("evil/.", b"x")),
    "file_ending_in_slash": lambda: raw(patched(header("evil", data=b"x"), 0, b"evil/")),
    "empty_name": lambda: raw(patched(header("x"), 0, b"\0")),
    "empty_name_of_a_directory": lambda: raw(patched(header("x", kind=b"5"), 0, b"\0\0")),
    "entries_4097": lambda: pack(
        archive([member("spec.kv", b"x"), *(member(f"n{i}") for i in range(4096))])
    ),
    "empty_name_in_pax": lambda: raw(pax(b"path=", entry=header())),
    "backslash": lambda: having(member("..\\evil", b"x")),
    "line_end": lambda: having(member("a\nb", b"x")),
    "escape": lambda: having(member("a\x1b[2Jb", b"x")),
    "delete": lambda: having(member("a\x7fb", b"x")),
    "nul_in_pax": lambda: raw(pax(b"path=a\0b", entry=header())),
    "right_to_left": lambda: having(member("a\u202efdp.exe", b"x")),
    "zero_width": lambda: having(member("spec\u200b.kv", b"x")),
    "not_utf8": lambda: raw(patched(header("xx"), 0, b"\xff\xfe")),
    "surrogate": lambda: raw(pax(b"path=\xed\xa0\x80", entry=header())),
    "long_component": lambda: having(member("n" * 256, b"x")),
    "long_component_in_bytes": lambda: having(member("é" * 128, b"x")),
    "long_path": lambda: having(member("/".join(["n" * 100] * 11), b"x")),
    "deep_path": lambda: having(member("/".join("n" * 33), b"x")),
    "sticky": lambda: having(member("evil", kind=tarfile.DIRTYPE, mode=0o1777)),
    "set_gid_directory": lambda: having(member("evil", kind=tarfile.DIRTYPE, mode=0o2755)),
    "contiguous": lambda: raw(header("evil", kind=b"7")),
    "dump_directory": lambda: raw(header("evil", kind=b"D")),
    "volume_label": lambda: raw(header("evil", kind=b"V")),
    "continued": lambda: raw(header("evil", kind=b"M")),
    "old_sparse": lambda: raw(header("evil", kind=b"S")),
    "long_link_name": lambda: raw(header("L", kind=b"K", data=b"/etc/passwd\0"), header()),
    "unknown_kind": lambda: raw(header("evil", kind=b"Q")),
    "kind_beyond_ascii": lambda: raw(header("evil", kind=b"\xff")),
    "pax_sparse": lambda: raw(pax(b"GNU.sparse.major=1", b"GNU.sparse.name=evil", entry=header())),
    "pax_link": lambda: raw(pax(b"linkpath=/etc/passwd", entry=header())),
    "pax_link_directory": lambda: raw(pax(b"linkpath=/etc", entry=header("d", kind=b"5"))),
    "global_path": lambda: raw(pax(b"path=evil", kind=b"g", entry=header())),
    "global_size": lambda: raw(pax(b"size=0", kind=b"g", entry=header())),
    "composed": lambda: having(member("caf\u00e9", b"1"), member("cafe\u0301", b"2")),
    "sharp_s": lambda: having(member("straße", b"1"), member("STRASSE", b"2")),
    "iota_below": lambda: having(
        member("\u03b1\u0345\u0301", b"1"), member("\u03b1\u0301\u0345", b"2")
    ),
    "kelvin": lambda: having(member("k", b"1"), member("\u212a", b"2")),
    "directories_but_for_case": lambda: having(member("Dir/a", b"1"), member("dir/b", b"2")),
    "below_a_directory_but_for_case": lambda: having(member("Adapters/other", b"1")),
    "directory_twice": lambda: having(member("adapters", kind=tarfile.DIRTYPE)),
    "file_then_directory": lambda: having(member("n", b"1"), member("n", kind=tarfile.DIRTYPE)),
    "directory_then_file": lambda: having(member("n", kind=tarfile.DIRTYPE), member("n", b"1")),
    "implied_then_file": lambda: having(member("n/inside", b"1"), member("n", b"2")),
    "top_twice": lambda: having(
        member("./", kind=tarfile.DIRTYPE), member(".", kind=tarfile.DIRTYPE)
    ),
    "same_but_for_dot": lambda: having(member("n", b"1"), member("./n", b"2")),
    "same_but_for_slashes": lambda: having(member("d/n", b"1"), member("d//n", b"2")),
    "spec_but_for_case": lambda: having(member("SPEC.KV", b"other")),
    "below_spec": lambda: having(member("spec.kv/x", b"1")),
    "claims_5_gib": lambda: raw(header("big", claims=5 << 30)),
    "claims_more_than_a_disk": lambda: raw(header("big", claims=1 << 80)),
    "claims_in_pax": lambda: raw(pax(b"size=1152921504606846976", entry=header("big"))),
    "extension_too_large": lambda: raw(header("P", kind=b"x", claims=1 << 40)),
    "long_name_too_large": lambda: raw(header("L", kind=b"L", data=b"n" * (1 << 19))),
    "global_too_large": lambda: raw(header("P", kind=b"g", claims=1 << 40)),
    "zeros_after_the_end": lambda: pack(archive(members_of(FILES)) + bytes(8 << 20)),
    "many_implied_directories": lambda: having(*(member(f"{n}/a/b/c", b"") for n in range(3000))),
}


MALFORMED: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "gzip_of_nothing": lambda: pack(b""),
    "gzip_magic_alone": lambda: b"\x1f\x8b",
    "zlib_not_gzip": lambda: zlib.compress(archive(members_of(FILES))),
    "cut_in_the_trailer": lambda: bundles.build(FILES)[:-4],
    "wrong_gzip_checksum": lambda: (
        bundles.build(FILES)[:-8] + b"\0\0\0\0" + bundles.build(FILES)[-4:]
    ),
    "wrong_gzip_length": lambda: bundles.build(FILES)[:-4] + b"\0\0\0\0",
    "garbage_after_gzip": lambda: bundles.build(FILES) + b"garbage",
    "zeros_after_gzip": lambda: bundles.build(FILES) + bytes(512),
    "garbage_after_a_piece": lambda: filled(bundles.build(FILES)) + b"garbage",
    "cut_second_member": lambda: bundles.build(FILES) + pack(bytes(512))[:-3],
    "wrong_checksum": lambda: raw(header().replace(b"0", b"1", 1)),
    "no_magic": lambda: raw(patched(header(), 257, bytes(8))),
    "no_end": lambda: pack(archive([member("spec.kv", b"x")])[:1024]),
    "cut_in_a_body": lambda: pack(archive(members_of(FILES))[:1100]),
    "second_archive": lambda: pack(archive(members_of(FILES)) + archive([member("other", b"x")])),
    "entry_after_one_zero_block": lambda: raw(bytes(512), header()),
    "not_octal": lambda: raw(patched(header(), 124, b"0000000009\0")),
    "python_number": lambda: raw(patched(header(), 124, b"0o0_0\0")),
    "signed_number": lambda: raw(patched(header(), 124, b"-1\0")),
    "negative_base_256": lambda: raw(patched(header(), 124, b"\xff" * 12)),
    "directory_with_a_size": lambda: raw(header("d", kind=b"5", data=b"x")),
    "spec_is_a_directory": lambda: pack(archive([member("spec.kv", kind=tarfile.DIRTYPE)])),
    "spec_below": lambda: bundles.build({"sub/spec.kv": b"x"}),
    "spec_but_for_case_alone": lambda: bundles.build({"Spec.kv": b"x"}),
    "two_specs_one_dotted": lambda: having(member("./spec.kv", b"other")),
    "pax_garbage": lambda: raw(header("P", kind=b"x", data=b"garbage"), header()),
    "pax_beyond_its_end": lambda: raw(header("P", kind=b"x", data=b"99 path=x\n"), header()),
    "pax_too_short": lambda: raw(header("P", kind=b"x", data=b"5 path=x\n"), header()),
    "pax_zero": lambda: raw(header("P", kind=b"x", data=b"0 path=x\n"), header()),
    "pax_no_line_end": lambda: raw(header("P", kind=b"x", data=b"9 path=xx"), header()),
    "pax_twice": lambda: raw(pax(b"path=a", b"path=b", entry=header())),
    "pax_size_no_number": lambda: raw(pax(b"size=1e3", entry=header())),
    "pax_size_endless": lambda: raw(pax(b"size=" + b"9" * 5000, entry=header())),
    "two_extensions": lambda: raw(pax(b"path=a"), pax(b"path=b"), header()),
    "extension_at_the_end": lambda: raw(pax(b"path=a")),
}


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: str(case["name"]))
def test_the_golden_vectors(case: Mapping[str, str], tmp_path: Path) -> None:
    """Each vector gets its verdict, and the good one its files."""
    assert verdict(base64.b64decode(case["bundle"]), tmp_path / "w") == case["verdict"]
    if case["verdict"] == "ok":
        assert contents(tmp_path / "w/into") == {
            name: base64.b64decode(text) for name, text in VECTORS["files"].items()
        }


@pytest.mark.parametrize("name", bundles.UNSAFE)
def test_what_the_reference_plane_calls_unsafe(name: str, tmp_path: Path) -> None:
    """Every broken archive of the reference control plane, those too large for a vector among
    them.
    """
    assert verdict(bundles.UNSAFE[name](FILES), tmp_path / "w") == "unsafe_archive"


@pytest.mark.parametrize("name", bundles.MALFORMED)
def test_what_the_reference_plane_calls_malformed(name: str, tmp_path: Path) -> None:
    """Likewise for what is no bundle at all."""
    assert verdict(bundles.MALFORMED[name](FILES), tmp_path / "w") == "malformed_bundle"


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_archive_is_refused(name: str, tmp_path: Path) -> None:
    """Each rule by an archive that breaks it alone."""
    assert verdict(UNSAFE[name](), tmp_path / "w") == "unsafe_archive"


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_bundle_is_refused(name: str, tmp_path: Path) -> None:
    """Each way of being no gzip'd tar with one spec.kv."""
    assert verdict(MALFORMED[name](), tmp_path / "w") == "malformed_bundle"


ACCEPTED: dict[str, tuple[Callable[[], bytes], dict[str, bytes]]] = {
    "plain": (lambda: bundles.build(FILES), {}),
    "dotted": (
        lambda: pack(
            archive(
                [
                    member("./", kind=tarfile.DIRTYPE),
                    *(member(f"./{n}", data) for n, data in FILES.items()),
                ]
            )
        ),
        {},
    ),
    "parents_implied": (
        lambda: pack(archive(member(name, data) for name, data in FILES.items())),
        {},
    ),
    "parent_after_its_file": (
        lambda: having(member("d/n", b"1"), member("d", kind=tarfile.DIRTYPE)),
        {"d/n": b"1"},
    ),
    "another_spec_below": (lambda: having(member("sub/spec.kv", b"1")), {"sub/spec.kv": b"1"}),
    "component_of_255": (lambda: having(member("n" * 255, b"1")), {"n" * 255: b"1"}),
    "depth_of_32": (lambda: having(member("/".join("n" * 32), b"1")), {"/".join("n" * 32): b"1"}),
    "entries_4096": (
        lambda: pack(archive([member("spec.kv", b"x"), *(member(f"n{i}") for i in range(4095))])),
        {},
    ),
    "unicode": (lambda: having(member("Übersicht/配置.conf", b"1")), {"Übersicht/配置.conf": b"1"}),
    "gnu_long_name": (lambda: raw(header(LONG, data=b"1")), {LONG: b"1"}),
    "gnu_base_256": (
        lambda: raw(patched(header("n", data=b"1"), 124, b"\x80" + bytes(10) + b"\1")),
        {"n": b"1"},
    ),
    "ustar_prefix": (
        lambda: raw(patched(patched(header("n"), 257, b"ustar\x0000"), 345, b"p/q\0")),
        {"p/q/n": b""},
    ),
    "gnu_times_no_prefix": (lambda: raw(patched(header("n"), 345, b"14721363255\0")), {"n": b""}),
    "pax_size": (
        lambda: raw(pax(b"size=1", entry=patched(header("n", data=b"1"), 124, b"0" * 11))),
        {"n": b"1"},
    ),
    "pax_others": (
        lambda: raw(
            pax(
                b"mtime=1.5",
                b"SCHILY.xattr.user.x=a=b\n\0c",
                b"comment=\xff",
                b"uid=0",
                entry=header("n"),
            )
        ),
        {"n": b""},
    ),
    "pax_large_attribute": (
        lambda: raw(pax(b"SCHILY.xattr.user.x=" + b"v" * 65536, entry=header("n"))),
        {"n": b""},
    ),
    "global_comment": (lambda: raw(pax(b"comment=c0ffee", kind=b"g"), header("n")), {"n": b""}),
    "old_regular": (lambda: raw(header("n", kind=b"\0", data=b"1")), {"n": b"1"}),
    "one_zero_block": (lambda: pack(archive([member("spec.kv", FILES["spec.kv"])])[: 3 * 512]), {}),
    "mode_with_file_type": (lambda: raw(patched(header("n"), 100, b"0100644\0")), {"n": b""}),
    "many_gzip_members": (lambda: b"".join(pack(TAR[at : at + 1]) for at in range(len(TAR))), {}),
    "gzip_member_after_a_piece": (lambda: filled(pack(TAR[:512])) + pack(TAR[512:]), {}),
    "gzip_with_name_and_comment": (
        lambda: b"\x1f\x8b\x08\x18" + bytes(6) + b"name\0comment\0" + bundles.build(FILES)[10:],
        {},
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_harmless_archive_is_unpacked(name: str, tmp_path: Path) -> None:
    """What the writers of tars do differently, each for itself, changes no byte of what comes
    out.
    """
    build, more = ACCEPTED[name]
    assert verdict(build(), tmp_path / "w") == "ok"
    found = contents(tmp_path / "w/into")
    assert found.items() >= more.items()
    assert "spec.kv" in found
    assert set(more) or found.keys() >= set(FILES) or name in ("entries_4096", "one_zero_block")


@pytest.mark.parametrize("kind", ["gnu", "oldgnu", "posix", "ustar"])
def test_what_gnu_tar_makes_of_a_directory(kind: str, tmp_path: Path) -> None:
    """`tar -C DIR -czf BUNDLE .` is a bundle, in each of its formats, with names that need an
    extension.
    """
    source = tmp_path / "source"
    files = {**FILES, "bin/run": b"#!/bin/sh\n", f"{'d' * 90}/{'n' * 90}": b"1", "empty": b""}
    for name, data in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    (source / "bin/run").chmod(0o700)
    (source / "nothing").mkdir()
    made = subprocess.run(
        ["tar", f"--format={kind}", "-C", source, "-cz", "."], capture_output=True, check=True
    ).stdout
    assert verdict(made, tmp_path / "w") == "ok"
    into = tmp_path / "w/into"
    assert contents(into) == files
    assert (into / "nothing").is_dir()


def test_what_git_archive_makes(tmp_path: Path) -> None:
    """Its global header, which holds the commit, is no reason to refuse."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(tmp_path / "r")]
    (tmp_path / "r").mkdir()
    (tmp_path / "r/spec.kv").write_bytes(b"a = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    made = subprocess.run(
        [*git, "archive", "--format=tar.gz", "HEAD"], capture_output=True, check=True
    ).stdout
    assert verdict(made, tmp_path / "w") == "ok"
    assert contents(tmp_path / "w/into") == {"spec.kv": b"a = 1\n"}


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_modes_owner_and_times_are_ours(mask: int, tmp_path: Path) -> None:
    """0755 and 0644 whatever the umask and the archive say; nothing else of its metadata is
    taken.
    """
    info, data = member("tool", b"#!/bin/sh\n", mode=0o711)
    info.uid = info.gid = 12345
    info.mtime = 1
    secret = member("secret", b"s", mode=0o000)
    old = os.umask(mask)
    try:
        data_ = having(
            (info, data),
            member("closed", kind=tarfile.DIRTYPE, mode=0o000),
            member("closed/x/y", b"1"),
            secret,
        )
        bundle = tmp_path / "bundle"
        fd = os.open(bundle, os.O_WRONLY | os.O_CREAT, 0o600)
        os.fchmod(fd, 0o600)
        os.write(fd, data_)
        os.close(fd)
        unpack.unpack(bundle, tmp_path / "into", packed_size=len(data_))
    finally:
        os.umask(old)
    into = tmp_path / "into"
    for path in [into, *into.rglob("*")]:
        facts = path.lstat()
        assert stat.S_IMODE(facts.st_mode) == (
            0o755 if path.is_dir() or path.name == "tool" else 0o644
        ), path
        assert (facts.st_uid, facts.st_gid) == (os.geteuid(), os.getegid())
        assert facts.st_mtime > 1e9


def test_a_directory_that_is_there_is_not_unpacked_into(tmp_path: Path) -> None:
    """Nothing is merged: an old file must not live on in a new deployment."""
    (tmp_path / "into").mkdir()
    (tmp_path / "bundle").write_bytes(bundles.build(FILES))
    with pytest.raises(LocalFault):
        unpack.unpack(tmp_path / "bundle", tmp_path / "into", packed_size=1000)
    assert os.listdir(tmp_path / "into") == []


def test_what_was_refused_half_way_is_nobody_elses_to_read(tmp_path: Path) -> None:
    """The directory is 0700 until all of it is there."""
    assert verdict(UNSAFE["parent_directory"](), tmp_path / "w") == "unsafe_archive"
    assert stat.S_IMODE((tmp_path / "w/into").stat().st_mode) == 0o700


@pytest.mark.parametrize("plant", ["absent", "link", "directory", "fifo"])
def test_a_bundle_that_is_no_file_is_a_fault_of_this_host(plant: str, tmp_path: Path) -> None:
    """It is our own copy: the plane is not blamed, and nothing waits."""
    (tmp_path / "real").write_bytes(bundles.build(FILES))
    bundle = tmp_path / "bundle"
    {"absent": lambda: None, "link": lambda: bundle.symlink_to("real"), "directory": bundle.mkdir,
     "fifo": lambda: os.mkfifo(bundle)}[plant]()  # fmt: skip
    with pytest.raises((LocalFault, Untrusted)):
        unpack.unpack(bundle, tmp_path / "into", packed_size=100)


NOISE = bytes(range(256)) * 4096


def test_the_hash_of_the_spec_is_that_of_its_bytes(tmp_path: Path) -> None:
    """In pieces, and never through a link."""
    assert verdict(bundles.build({"spec.kv": NOISE}), tmp_path / "w", packed_size=1 << 20) == "ok"
    into = tmp_path / "w/into"
    assert unpack.spec_hash(into) == "sha256:" + hashlib.sha256(NOISE).hexdigest()
    (into / "spec.kv").rename(into / "other")
    (into / "spec.kv").symlink_to("other")
    with pytest.raises(LocalFault):
        unpack.spec_hash(into)


def test_a_member_is_read_up_to_its_limit(tmp_path: Path) -> None:
    """Absent or a directory: none; larger than allowed: the bundle's fault."""
    data = having(member("approval.cred", b"12345"), member("directory", kind=tarfile.DIRTYPE))
    assert verdict(data, tmp_path / "w") == "ok"
    into = tmp_path / "w/into"
    assert unpack.read_member(into, "approval.cred", limit=5) == b"12345"
    assert unpack.read_member(into, "absent", limit=5) is None
    assert unpack.read_member(into, "directory", limit=5) is None
    with pytest.raises(Untrusted, match="larger than 4 bytes"):
        unpack.read_member(into, "approval.cred", limit=4)
