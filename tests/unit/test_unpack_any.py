"""Whatever bytes, damage, members or trees: unpacking gives a code and stays inside."""

from __future__ import annotations

import io
import stat
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstboot.activate import unpack
from tests.controlplane.bundles import archive, member, members_of, pack
from tests.unit.tars import (
    FILES,
    LONG,
    contents,
    header,
    patched,
    raw,
    verdict,
)

many = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@many
@given(data=st.binary(max_size=2000))
def test_arbitrary_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a file, as what is inside gzip, and as the whole of a tar: a code, never another
    exception.
    """
    for bundle in (data, pack(data), raw(data + bytes(-len(data) % 512))):
        assert verdict(bundle, tmp_path_factory.mktemp("w") / "w") in (
            "malformed_bundle",
            "unsafe_archive",
            "ok",
        )


@many
@given(
    flips=st.lists(st.tuples(st.integers(0, 6143), st.integers(0, 255)), min_size=1, max_size=4),
    packed=st.booleans(),
    right=st.booleans(),
)
def test_a_damaged_archive_gives_a_code_or_stays_inside(
    flips: list[tuple[int, int]],
    packed: bool,
    right: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Bytes changed in the gzip, in the tar, or in its headers with the checksum made right
    again.
    """
    tar = bytearray(archive([*members_of(FILES), member(LONG, b"1"), member("straße", b"2")]))
    data = bytearray(pack(bytes(tar))) if packed else tar
    for at, value in flips:
        data[at % len(data)] = value
        start = at % len(data) // 512 * 512
        if right and not packed and data[start + 257 : start + 262] == b"ustar":
            data[start : start + 512] = patched(bytes(data[start : start + 512]), 0, b"")
    code = verdict(bytes(data) if packed else pack(bytes(data)), tmp_path_factory.mktemp("w") / "w")
    assert code in ("malformed_bundle", "unsafe_archive", "ok")


NAMES = st.lists(
    st.sampled_from(
        ["a", "A", "b", "..", ".", "", "spec.kv", "é", "e\u0301", "n" * 260, "\n", "\\"]
    ),
    min_size=1,
    max_size=5,
).map("/".join)


KINDS = st.sampled_from([b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"Z"])


@many
@given(
    members=st.lists(
        st.tuples(NAMES, KINDS, st.integers(0, 0o7777), NAMES, st.binary(max_size=600)), max_size=8
    )
)
def test_hostile_members_never_reach_outside(
    members: list[tuple[str, bytes, int, str, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever names, kinds, modes and targets are put together, what comes out is files and
    directories inside.
    """
    made = [
        header(name, kind=kind, data=data, mode=mode, linkname=link)
        for name, kind, mode, link, data in members
    ]
    place = tmp_path_factory.mktemp("w") / "w"
    code = verdict(pack(b"".join(made) + bytes(1024)), place)
    assert code in ("malformed_bundle", "unsafe_archive", "ok")
    for path in (place / "into").rglob("*"):
        facts = path.lstat()
        assert stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)
        assert not facts.st_mode & 0o7022


PLAIN = st.text(st.characters(categories=("Ll", "Nd")), min_size=1, max_size=60)


@many
@given(
    tree=st.dictionaries(
        st.lists(PLAIN, min_size=1, max_size=4).map("/".join), st.binary(max_size=3000), max_size=6
    ),
    kind=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_what_pythons_tarfile_writes_comes_out_the_same(
    tree: dict[str, bytes], kind: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any harmless tree survives, or is refused because two of its names collide."""
    files = {
        **{name: data for name, data in tree.items() if not name.startswith("spec.kv")},
        "spec.kv": b"x",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for info, data in members_of(files):
            tar.addfile(info, io.BytesIO(data) if data is not None else None)
    place = tmp_path_factory.mktemp("w") / "w"
    code = verdict(pack(buffer.getvalue()), place)
    folded = {
        tuple(map(unpack._fold, name.split("/")[:n]))
        for name in files
        for n in range(1, name.count("/") + 2)
    }
    plain = {tuple(name.split("/")[:n]) for name in files for n in range(1, name.count("/") + 2)}
    nested = any(f"{one}/" == other[: len(one) + 1] for one in files for other in files)
    assert code == ("ok" if len(folded) == len(plain) and not nested else "unsafe_archive")
    assert code != "ok" or contents(place / "into") == files
