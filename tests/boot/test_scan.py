"""The scanner finds a planted secret in every form that a host writes one in, and nothing where
there is none.
"""

from __future__ import annotations

import base64
import bz2
import codecs
import gzip
import json
import lzma
import os
import pickle
import quopri
import socket
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import pytest
import zstandard

from .scan import PIECE_BYTES, canary, scan_bytes, scan_file, scan_processes, scan_tree

TOKEN = "b3tQw8ZkR2mYx7VnLp4TsJd9HcGf6AeU5iOo1"
TEXT = f"#cloud-config\n#byteor-firstboot:\n#  enrollment_token: bet_{TOKEN}\nhostname: edge\n".encode()


def mime(text: bytes, charset: str = "utf-8") -> bytes:
    """User data as `cloud-init devel make-mime` writes it: base64, broken every 76 characters."""
    message = MIMEMultipart()
    message.attach(MIMEText(text.decode(), "cloud-config", charset))
    return message.as_bytes()


FORMS = {
    "raw": TEXT,
    "hex": TEXT.hex().encode(),
    "HEX": TEXT.hex().upper().encode(),
    "reversed": TEXT[::-1],
    "utf-16le": TEXT.decode().encode("utf-16-le"),
    "utf-16be": TEXT.decode().encode("utf-16-be"),
    "base64 at alignment 0": base64.b64encode(TEXT),
    "base64 at alignment 1": base64.b64encode(b"x" + TEXT),
    "base64 at alignment 2": base64.b64encode(b"xx" + TEXT),
    "base64url": base64.urlsafe_b64encode(TEXT),
    "base64 in lines": base64.encodebytes(b"-" * 30 + TEXT),
    "base64 in lines in JSON": json.dumps(
        {"user-data": base64.encodebytes(b"-" * 30 + TEXT).decode()}
    ).encode(),
    "base64 of UTF-16": base64.b64encode(base64.b64encode(TEXT.decode().encode("utf-16-le"))),
    "base64 twice": base64.encodebytes(base64.encodebytes(TEXT)),
    "quoted-printable, broken inside": quopri.encodestring(b"=" * 20 + TEXT.replace(b"\n", b"")),
    "MIME": mime(TEXT),
    "gzip": gzip.compress(TEXT),
    "gzip in the middle": b"\0\1\2" * 500 + gzip.compress(TEXT) + b"trailing",
    "gzip that is cut": gzip.compress(TEXT + os.urandom(4096))[:-2000],
    "gzip of MIME": gzip.compress(mime(TEXT)),
    "base64 of gzip": base64.b64encode(gzip.compress(TEXT)),
    "base64 of gzip after a word": b"content:" + base64.b64encode(gzip.compress(TEXT)),
    "base64 of gzip directly after letters": b"content" + base64.b64encode(gzip.compress(TEXT)),
    "base64 of gzip in lines": base64.encodebytes(gzip.compress(TEXT)),
    "gzip of gzip": gzip.compress(gzip.compress(TEXT)),
    "zstd": zstandard.compress(TEXT * 3),
    "zstd in the middle, as in a journal": b"\7" * 99 + zstandard.compress(TEXT * 3) + b"\7" * 99,
    "xz": lzma.compress(TEXT),
    "bzip2": bz2.compress(TEXT),
    **{
        f"pickle {protocol}": pickle.dumps({"userdata_raw": TEXT}, protocol=protocol)
        for protocol in range(6)
    },
    **{
        f"pickle {p} of gzip": pickle.dumps({"userdata_raw": gzip.compress(TEXT)}, protocol=p)
        for p in range(6)
    },
    **{f"pickle {p} of MIME": pickle.dumps({"userdata": mime(TEXT)}, protocol=p) for p in range(6)},
}


@pytest.mark.parametrize("form", FORMS)
def test_planted_copy_is_found(form: str) -> None:
    """Every form in which a copy was planted is found."""
    assert scan_bytes(FORMS[form], TOKEN)


@pytest.mark.parametrize("form", FORMS)
def test_other_secret_is_not_found(form: str) -> None:
    """The same bytes hold no copy of another secret: a hit means this secret."""
    assert scan_bytes(FORMS[form], canary()) == set()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_base64_needle_holds_in_any_surroundings(position: int) -> None:
    """Whatever stands before and after, base64 of the secret is found at each alignment without
    unpacking.
    """
    for after in (b"", b"\xff", b"\xff\xfe"):
        assert f"base64+{position}" in scan_bytes(
            base64.b64encode(b"\xff" * position + TOKEN.encode() + after), TOKEN
        )


def test_form_names_the_way_in() -> None:
    """The form tells through what the secret was reached."""
    assert "base64 > gzip > raw" in scan_bytes(base64.b64encode(gzip.compress(TEXT)), TOKEN)
    assert scan_bytes(codecs.encode(TEXT, "hex"), TOKEN) == {"hex"}


def test_longest_stretch_without_punctuation_is_searched() -> None:
    """A writer that escapes or quotes the secret's punctuation does not hide it."""
    assert scan_bytes(json.dumps(f'bet"{TOKEN}/+').encode(), f'bet"{TOKEN}/+') == {"raw"}


def test_short_core_is_refused() -> None:
    """What could be anywhere by chance is not searched for."""
    for secret in ("short", "with-punctuation-in-the-middle", ""):
        with pytest.raises(ValueError, match="20 letters and digits"):
            scan_bytes(b"", secret)


def test_tree_is_searched_in_names_links_and_files(tmp_path: Path) -> None:
    """A copy in a file, in a file's name, in a directory's name and in a link's target is a hit at
    that place.
    """
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(gzip.compress(TEXT))
    (tmp_path / f"name-{TOKEN}").write_bytes(b"")
    (tmp_path / f"{TOKEN}.d").mkdir()
    (tmp_path / "link").symlink_to(f"/nowhere/{TOKEN}")
    (tmp_path / "clean").write_bytes(b"nothing here")
    found = scan_tree(tmp_path, TOKEN, prefix="root:")
    assert found.places == {"root:/a/file", f"root:/name-{TOKEN}", f"root:/{TOKEN}.d", "root:/link"}
    assert found.files == 3
    assert found.unread == []


def test_tree_skips_only_what_was_named_and_opens_no_pipe(tmp_path: Path) -> None:
    """A skipped directory is not entered, one of that name deeper is; no pipe or socket blocks the
    scan.
    """
    for directory in ("proc", "deeper/proc"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "copy").write_bytes(TEXT)
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert scan_tree(tmp_path, TOKEN, skip={"proc"}).places == {"/deeper/proc/copy"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link out of the tree is read as a link: the guest's absolute links would lead into this
    machine's files.
    """
    (tmp_path / "outside").write_bytes(TEXT)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(tmp_path / "outside")
    assert scan_tree(tmp_path / "tree", TOKEN).hits == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file_is_reported(tmp_path: Path) -> None:
    """A file that cannot be read is in `unread`: the scan does not pass it over."""
    (tmp_path / "closed").write_bytes(TEXT)
    (tmp_path / "closed").chmod(0)
    found = scan_tree(tmp_path, TOKEN)
    assert found.hits == []
    assert found.unread == ["/closed: Permission denied"]


def test_copy_across_two_pieces_of_a_large_file_is_found(tmp_path: Path) -> None:
    """A file larger than one piece is searched across the cut."""
    with open(tmp_path / "large", "wb") as file:
        file.seek(PIECE_BYTES - len(TOKEN) // 2)
        file.write(TOKEN.encode())
        file.truncate(PIECE_BYTES + 4096)
    assert scan_file(tmp_path / "large", TOKEN).hits


def test_process_environment_and_command_line_are_searched(tmp_path: Path) -> None:
    """A copy in a process's environment and one in its command line are two hits; an ended process
    is none.
    """
    (tmp_path / "17").mkdir()
    (tmp_path / "17/environ").write_bytes(b"A=1\0BYTEOR=" + TOKEN.encode() + b"\0")
    (tmp_path / "17/cmdline").write_bytes(
        b"curl\0-H\0Authorization: Bearer " + TOKEN.encode() + b"\0"
    )
    (tmp_path / "18").mkdir()
    (tmp_path / "version").write_bytes(TEXT)
    found = scan_processes(tmp_path, TOKEN)
    assert found.places == {"/proc/17/environ", "/proc/17/cmdline"}
    assert found.unread == []
