"""Finding and overwriting copies: every encoding, the same length, still readable for cloud-init;
the receipt's truth.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import pickle
import stat
import subprocess
import zlib
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Callable

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from firstboot.base import files
from firstboot.base.layout import Layout
from firstboot.provision.erase.copies import cloud_init_finished, erase, still_served
from firstboot.provision.erase.scrub import redact

TOKEN = b"bet_9fK2mQ7xT4vB8nL1pR6sD3wH5jC0"
X = b"x" * len(TOKEN)
TEXT = b"#cloud-config\n#byteor-firstboot:\n#  enrollment_token: " + TOKEN + b"\nhostname: edge\n"


def mime(text: bytes, encoding: str) -> bytes:
    whole = MIMEMultipart()
    part = MIMEText(text.decode(), "cloud-config", "utf-8" if encoding == "base64" else "us-ascii")
    whole.attach(part)
    return whole.as_bytes()


FORMS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "raw": (bytes, bytes),
    "gzip": (gzip.compress, gzip.decompress),
    "gzip level 1": (lambda text: gzip.compress(text, 1), gzip.decompress),
    "base64": (base64.b64encode, base64.b64decode),
    "base64 wrapped": (base64.encodebytes, base64.b64decode),
    "base64 of gzip": (
        lambda text: base64.b64encode(gzip.compress(text)),
        lambda b: gzip.decompress(base64.b64decode(b)),
    ),
    "gzip of base64": (
        lambda text: gzip.compress(base64.b64encode(text)),
        lambda b: base64.b64decode(gzip.decompress(b)),
    ),
    "pickled bytes": (
        lambda text: pickle.dumps({"raw": text, "n": [1]}),
        lambda b: pickle.loads(b)["raw"],
    ),
    "pickled text": (
        lambda text: pickle.dumps({"raw": text.decode()}, 2),
        lambda b: pickle.loads(b)["raw"].encode(),
    ),
    "pickled gzip": (
        lambda text: pickle.dumps([gzip.compress(text), text]),
        lambda b: gzip.decompress(pickle.loads(b)[0]),
    ),
    "yaml write_files gz+b64": (
        lambda text: yaml.safe_dump(
            {"write_files": [{"content": base64.b64encode(gzip.compress(text)).decode()}]}
        ).encode(),
        lambda b: gzip.decompress(base64.b64decode(yaml.safe_load(b)["write_files"][0]["content"])),
    ),
    "json escaped lines": (
        lambda text: json.dumps({"c": base64.encodebytes(text).decode()}).encode(),
        lambda b: base64.b64decode(json.loads(b)["c"]),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found_and_keeps_its_length_and_its_meaning(form: str) -> None:
    """Packed, redacted, unpacked: the same text but for x, the same length, and nothing left to
    find.
    """
    pack, unpack = FORMS[form]
    packed = pack(TEXT)
    clean, counts = redact(packed, [TOKEN])
    assert sum(counts.values()) >= 1
    assert len(clean) == len(packed)
    assert unpack(clean) == TEXT.replace(TOKEN, X)
    assert not redact(clean, [TOKEN])[1]


@settings(max_examples=150, deadline=None)
@given(
    before=st.binary(max_size=300),
    after=st.binary(max_size=300),
    form=st.sampled_from(["raw", "gzip", "base64", "base64 wrapped"]),
)
def test_the_token_is_found_at_any_offset_in_any_surroundings(
    before: bytes, after: bytes, form: str
) -> None:
    """All three alignments of base64, and whatever stands beside the token."""
    pack, unpack = FORMS[form]
    text = before + TOKEN + after
    packed = pack(text)
    clean, counts = redact(packed, [TOKEN])
    assert counts and len(clean) == len(packed)
    assert TOKEN not in unpack(clean)
    assert unpack(clean) == text.replace(TOKEN, X)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_what_holds_no_token_is_returned_as_it_is(data: bytes) -> None:
    """No byte of anybody else's data changes, whatever it looks like."""
    assert redact(data, [TOKEN]) == (data, {})
    assert redact(b"\x1f\x8b\x08" + data, [TOKEN])[0] == b"\x1f\x8b\x08" + data


def test_a_mime_part_in_base64_keeps_its_line_wraps() -> None:
    """cloud-init reads the rewritten message as before."""
    message = mime(TEXT, "base64")
    clean, _ = redact(message, [TOKEN])
    assert len(clean) == len(message)
    assert [len(line) for line in clean.split(b"\n")] == [
        len(line) for line in message.split(b"\n")
    ]


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
    assert results(layout) == {"runcmd": "overwritten"}


def test_what_sources_read_is_overwritten_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cut anywhere sees the token again, as long as any copy is there."""
    layout = host(tmp_path)
    layout.drop_place.parent.mkdir(parents=True)
    layout.drop_place.write_bytes(b"enrollment_token: " + TOKEN)
    order: list[str] = []
    real = files.overwrite
    monkeypatch.setattr(
        files, "overwrite", lambda path, data: (order.append(path.name), real(path, data))
    )
    results(layout)
    assert sorted(order[:2]) == ["obj.pkl", "runcmd"]
    assert order[2:4] == ["user-data.txt", "settings.yaml"]


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
        again = erase(layout, [], now=1.7e9, known=lambda word: word == TOKEN)
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
    files.overwrite(path, b"x" * len(TEXT))
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
    assert first["v"] == 1 and first["not_looked_at"] and first["copies"]


@pytest.mark.parametrize(
    ("line", "said"),
    [("DataSourceEc2: DataSourceEc2Local", 1), ("DataSourceNoCloud: x", 0), ("", 0)],
)
def test_a_datasource_that_fetches_again_is_said(tmp_path: Path, line: str, said: int) -> None:
    """What a metadata service serves at every boot is no failure of ours, and no secret."""
    layout = host(tmp_path)
    (layout.cloud / "instances/iid-1/datasource").write_text(line)
    assert len(still_served(layout)) == said
    assert cloud_init_finished(layout)


def test_a_gzip_that_is_cut_is_left_alone() -> None:
    """Garbage after the magic bytes neither raises nor changes."""
    packed = gzip.compress(TEXT)
    for end in range(0, len(packed), 7):
        assert redact(packed[:end], [TOKEN])[0] == packed[:end]
    with pytest.raises(zlib.error):
        zlib.decompress(packed[:20], 31)
