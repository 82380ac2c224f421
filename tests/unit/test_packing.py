"""An incident bundle: the same bytes for the same content, nothing followed, nothing left of what
is a secret.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstboot.agent.artifacts import cleaning, packing, sender
from firstboot.agent.artifacts.packing import Packed, pack
from firstboot.api.multipart import WrongContent
from firstboot.base.errors import LocalFault
from firstboot.base.secret import Secret

HIDDEN = "Qz8hidden1value7Qz"
KEY = f"plain-{HIDDEN}-runtime-key"  # of a plane whose keys have no shape


def packed(directory: Path) -> tuple[bytes, Packed]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    into = io.BytesIO()
    try:
        return (lambda found: (into.getvalue(), found))(pack(fd, into))
    finally:
        os.close(fd)


def members(bundle: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def fill(directory: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, (dict, list)):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


WHOLE = {
    "spec.kv": "name = a\n",
    "spec_validation.json": {"valid": True, "warnings": []},
    "runtime.json": {"state": "running", "pid": 7, "latency_us": 4.20},
    "policy_audit.json": [{"rule": 1, "result": "pass"}],
    "environment.json": {"PATH": "/usr/bin", "LANG": "C"},
    "logs/a.log": "line\n" * 1000,
    "core": bytes(range(256)) * 9,
}


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    """Other times, modes, places and order of making: the same bundle; what holds no secret is in
    it byte for byte.
    """
    first, one = packed(fill(tmp_path / "a", WHOLE))
    fill(tmp_path / "other/b", dict(reversed(list(WHOLE.items()))))
    for path in (tmp_path / "other/b").rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    second, two = packed(tmp_path / "other/b")
    assert first == second
    assert members(first) == {
        name: (json.dumps(data) if isinstance(data, (dict, list)) else data).encode()
        if not isinstance(data, bytes)
        else data
        for name, data in WHOLE.items()
    }
    assert one.missing == [] and one.replaced == [] and one.left_out == []
    assert one.spec_hash == two.spec_hash and str(one.spec_hash).startswith("sha256:")
    assert two.newest == 1e9
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        names = tar.getnames()
        assert names == sorted(names)
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {
            (0, 0, 0, "", "", 0o644)
        }
    assert first[4:8] == bytes(4)  # no time in the gzip header either


def test_missing_parts_are_named(tmp_path: Path) -> None:
    """What v1 asks for; a part in a subdirectory is not it."""
    _, found = packed(fill(tmp_path, {"spec.kv": "a", "old/runtime.json": "{}"}))
    assert found.missing == [
        "spec_validation.json",
        "runtime.json",
        "policy_audit.json",
        "environment.json",
    ]


# Where a secret can stand -> the part that holds it. The forms themselves: test_redaction.
PLACES: list[tuple[str, Any]] = [
    ("environment.json", {"BYTEOR_AGENT_API_KEY": KEY}),
    ("environment.json", [{"name": "DB_PASSWORD", "value": HIDDEN}]),
    ("environment.json", {"env": [f"API_TOKEN={HIDDEN}", f"X=bek_{HIDDEN}"]}),
    ("environment.json", {"deep": [[{"credentials": {"token": HIDDEN, "user": "a"}}]]}),
    ("environment.json", f'{{"PASSWORD": "{HIDDEN}", "PASSWORD": "x"}}'),
    ("environment.json", {f"bek_{HIDDEN}": 1}),
    ("environment.json", f'{{"PASSWORD": "{HIDDEN}"'),
    ("runtime.json", {"clientSecret": HIDDEN, "argv": ["run", f"--token={HIDDEN}"]}),
    ("runtime.json", {"args": ["run", "--db-password", HIDDEN]}),
    ("runtime.json", {"msg": f'{{"BYTEOR_AGENT_API_KEY":"{HIDDEN}"}}'}),
    ("runtime.json", {"deep": json.dumps({"m": json.dumps({"secret": HIDDEN})})}),
    ("runtime.json", f'{{"secret": "{HIDDEN}", "x": NaN}}'),
    ("policy_audit.json", f'{{"rule": 1}}\n{{"name": "API_KEY", "value": "{HIDDEN}"}}\n'),
    ("spec_validation.json", {"error": f"line 3: password = {HIDDEN}"}),
    ("status", f"Name:\ta\nEnv:\tBYTEOR_AGENT_API_KEY={HIDDEN}\n"),
    ("environ", f"A=1\0BYTEOR_AGENT_API_KEY={HIDDEN}\0B=2\0"),
    ("logs/deep/a.log", f"GET / Authorization: Basic {HIDDEN}\n"),
    ("logs/a.log.1.gz", gzip.compress(f"x\nsecret: {HIDDEN}\n".encode())),
    ("latin1.log", b"caf\xe9 password=" + HIDDEN.encode()),
    ("keys.pem", f"-----BEGIN RSA PRIVATE KEY-----\n{HIDDEN}\n-----END RSA PRIVATE KEY-----\n"),
    ("core", b"\x7fELF\0\0\xff\xfe\0BYTEOR_AGENT_API_KEY=" + HIDDEN.encode() + b"\0\xff"),
    (f"logs/token={HIDDEN}/a.log", "harmless"),
    (f"bek_{HIDDEN}.txt", "harmless"),
    ("pod.yaml", f"env:\n- name: BYTEOR_AGENT_API_KEY\n  value: {HIDDEN}\n"),
    ("windows.log", f"a line\npassword={HIDDEN}".encode("utf-16")),
    ("windows.log", f"a line\npassword={HIDDEN}\n".encode("utf-16")[:-1]),
    ("windows.log", f"a line\npassword={HIDDEN}\n".encode("utf-16-le")),
    ("windows.log", f"a line\npassword={HIDDEN}\n".encode("utf-16-be")),
]


def everything(bundle: bytes) -> bytes:
    """All bytes of a bundle, also those inside a packed part, as they could be read by somebody."""
    found = [gzip.decompress(bundle)]
    for data in members(bundle).values():
        found += [data, data.replace(b"\0", b"")]
        if data.startswith(b"\x1f\x8b"):
            found.append(gzip.decompress(data))
    return b"\n".join(found)


@pytest.mark.parametrize(
    ("name", "content"), PLACES, ids=[f"{n}-{name[:20]}" for n, (name, _) in enumerate(PLACES)]
)
def test_no_secret_in_any_place(tmp_path: Path, name: str, content: Any) -> None:
    """Replaced, and said where and of what kind, without the value."""
    bundle, found = packed(fill(tmp_path, {name: content}))
    assert HIDDEN.encode() not in everything(bundle)
    (row,) = found.replaced
    assert row["kinds"] and HIDDEN not in json.dumps(found.replaced)
    said = json.loads(members(bundle)["redactions.json"])
    assert said["replaced"] == found.replaced
    if name.endswith(".json") and isinstance(content, (dict, list)):
        json.loads(members(bundle)[name])  # still one


def test_what_one_part_gives_away_goes_from_all(tmp_path: Path) -> None:
    """The values of the three variables, bare in a log, whatever they look like; the rest of the
    log stays.
    """
    given = {"environment.json": {"BYTEOR_AGENT_API_KEY": KEY}}
    bare = {"a.log": f"connecting as {KEY}, ok\n", "z.bin": b"\0\xff" + KEY.encode()}
    bundle, found = packed(fill(tmp_path, {**given, **bare}))
    assert HIDDEN.encode() not in everything(bundle)
    assert members(bundle)["a.log"] == b"connecting as <secret>, ok\n"
    assert len(members(bundle)["z.bin"]) == len(KEY) + 2
    assert [row["part"] for row in found.replaced] == ["a.log", "environment.json", "z.bin"]


def test_what_is_hashed_or_public_is_never_changed(tmp_path: Path) -> None:
    """The spec, whose hash is signed, and the public keys, wherever they lie and whatever they say."""
    verbatim = dict.fromkeys(["spec.kv", "old/signing_keys.json"], f"password = {HIDDEN}\n")
    bundle, found = packed(fill(tmp_path, verbatim))
    assert set(members(bundle).values()) == {f"password = {HIDDEN}\n".encode()}
    assert not found.replaced


def test_lists_of_words_stay(tmp_path: Path) -> None:
    """What only lists words, also those that name secrets, is no list of arguments."""
    content = {
        "columns": ["key", "value", "token"],
        "args": ["--token", "--verbose"],
        "run": ["-u", "root"],
    }
    bundle, found = packed(fill(tmp_path, {"a.json": content}))
    assert not found.replaced


def test_links_and_devices_are_left_out_and_said(tmp_path: Path) -> None:
    """A link is not followed, a FIFO does not block, a device is not opened; the rest is packed."""
    outside = fill(tmp_path / "outside", {"f": HIDDEN})
    inside = fill(tmp_path / "in", {"a.txt": "a"})
    (inside / "dir").symlink_to(outside)
    (inside / "file").symlink_to(outside / "f")
    os.mkfifo(inside / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inside / "sock"))
    bundle, found = packed(inside)
    assert sorted(members(bundle)) == ["a.txt", "redactions.json"]
    assert found.left_out == [
        {"part": "dir", "why": "a symbolic link"}, {"part": "fifo", "why": "a FIFO"},
        {"part": "file", "why": "a symbolic link"}, {"part": "sock", "why": "a socket"},
    ]  # fmt: skip
    assert json.loads(members(bundle)["redactions.json"])["left_out"] == found.left_out


def test_archives_are_packed_and_said(tmp_path: Path) -> None:
    """What cannot be read here goes as it is, with a word that nobody looked."""
    twice = gzip.compress(gzip.compress(b"x"))
    fill(
        tmp_path / "in", {"a.zip": b"PK\x03\x04rest", "twice.gz": twice, "cut.gz": b"\x1f\x8b\x08"}
    )
    bundle, found = packed(tmp_path / "in")
    assert found.unseen == ["a.zip", "cut.gz", "twice.gz"]
    assert members(bundle)["twice.gz"] == twice


def test_names_do_not_meet(tmp_path: Path) -> None:
    """A part of the name of our own list, names that are equal once redacted, and one that is not
    UTF-8: each is there.
    """
    fill(tmp_path, {"redactions.json": "theirs", "token=a1": "1", "token=b1": "2"})
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff"))).write_text("3")
    found = members(packed(tmp_path)[0])
    assert found["redactions.json.1"] == b"theirs"
    assert (found["token=<secret>"], found["token=<secret>.1"], found["n\\xff"]) == (
        b"1",
        b"2",
        b"3",
    )


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MOST_PARTS", 1, "more than 1 files"),
        ("LARGEST_PART", 9, "a.txt is larger"),
        ("LARGEST_WHOLE", 15, "more than"),
        ("DEEPEST", 0, "deeper than"),
        ("LARGEST", 50, "larger than .* when packed"),
    ],
)
def test_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, said: str
) -> None:
    """Each refuses the whole with what to do."""
    fill(tmp_path, {"a.txt": "0123456789", "b/c.txt": "0123456789"})
    monkeypatch.setattr(packing, limit, value)
    with pytest.raises(LocalFault, match=said):
        packed(tmp_path)


def test_an_empty_directory_is_no_incident(tmp_path: Path) -> None:
    """Nothing to send is said."""
    with pytest.raises(LocalFault, match="holds no file"):
        packed(tmp_path)


@pytest.mark.parametrize("change", ["grows", "vanishes"])
def test_a_part_that_changes_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A log that is written to meanwhile, or removed, does not make half a bundle."""
    path = fill(tmp_path, {"a.log": "a"}) / "a.log"
    real = os.fstat if change == "grows" else os.stat

    def look(target: Any, **keywords: Any) -> Any:
        facts = real(target, **keywords)
        if change == "vanishes":
            path.unlink(missing_ok=True)
        elif facts.st_size:
            with path.open("a") as stream:
                stream.write("b")
        return facts

    monkeypatch.setattr(os, "fstat" if change == "grows" else "stat", look)
    with pytest.raises(LocalFault, match=r"a\.log changed while|cannot read a\.log"):
        packed(tmp_path)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=2000) | st.text(max_size=500).map(str.encode))
def test_any_bytes_are_a_part(data: bytes) -> None:
    """No content stops the packing; what needs no change is not changed; a second time finds
    nothing in a text.
    """
    clean, kinds, _ = cleaning.clean(data)
    assert kinds or clean == data


@settings(deadline=None, max_examples=20)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.x", fullmatch=True),
        st.binary(max_size=200),
        min_size=1,
    )
)
def test_any_directory_is_packed_the_same_twice(content: dict[str, bytes]) -> None:
    """Whatever it holds."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        assert packed(fill(Path(one), content))[0] == packed(fill(Path(two), content))[0]


@pytest.mark.parametrize(
    ("content", "there"),
    [
        (b"x" * 20 + KEY.encode(), True),
        (b"x" * (sender.SCAN_BYTES - 5) + KEY.encode() + b"x" * 9, True),
        (KEY.encode()[:-1], False),
        (b"", False),
    ],
    ids=["raw", "across", "cut", "empty"],
)
def test_the_own_key_is_seen_in_a_file(tmp_path: Path, content: bytes, there: bool) -> None:
    """Wherever a piece ends; a file that cannot be read is wrong content, and no OSError."""
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as stream:
        assert sender.holds(stream.fileno(), Secret(KEY)) is there
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(WrongContent, match="cannot be read"):
            sender.holds(fd, Secret(KEY))
    finally:
        os.close(fd)


def test_upload_knows_the_key_of_its_environment(tmp_path: Path) -> None:
    """Where the key was handed in by environment, no word of the file says that it is one."""
    fill(tmp_path, {"a.log": "connecting as onlywordskey, ok\n"})
    agent = Path(sys.executable).with_name("byteor-agent")
    command = [agent, "--root", tmp_path, "upload", tmp_path / "a.log", "--kind", "diagnostic"]
    subprocess.run(
        command,
        env={**os.environ, "BYTEOR_AGENT_API_KEY": "onlywordskey"},
        check=True,
        capture_output=True,
    )
    (data,) = (tmp_path / "var/lib/byteor/agent/spool").glob("*/data")
    assert data.read_text() == "connecting as <secret>, ok\n"
