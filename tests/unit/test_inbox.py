"""An inbox of which nothing is trusted: whatever stands in it, nothing is followed, waited for, or
read without end.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.activate.intake import Inbox
from firstboot.base import files, trees
from firstboot.base.errors import Corrupt, LocalFault, Untrusted
from firstboot.base.layout import Layout
from firstboot.exchange.inbox import Request, unverified_request

ID = "2f1c1f8e-5a0e-4c62-9f64-0f8f3c0a9a11"
SHA = hashlib.sha256(b"12345").hexdigest()
BUNDLE = f"{SHA}.bundle"
GOOD = {"v": 1, "request": ID, "clock_offset_s": -1.5}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A tree with an empty inbox, and a file of root's that the agent would like to see read."""
    (tmp_path / "var/lib/byteor/agent/inbox").mkdir(parents=True)
    (tmp_path / "shadow").write_bytes(b"root:secret:")
    return Layout(tmp_path)


def test_what_the_agent_wrote_is_read(layout: Layout) -> None:
    """The four files as they are; a bundle as an open descriptor."""
    for name, data in (
        ("envelope.json", b"{e}"),
        ("keysets.json", b"{k}"),
        ("request.json", json.dumps(GOOD).encode()),
    ):
        (layout.inbox / name).write_bytes(data)
    (layout.inbox / BUNDLE).write_bytes(b"12345")
    with Inbox(layout) as inbox:
        assert (inbox.envelope(), inbox.keysets()) == (b"{e}", b"{k}")
        assert inbox.request() == Request(ID, -1.5, (layout.inbox / "request.json").stat().st_mtime)
        with inbox.bundle(SHA, 5) as fd:
            assert fd is not None
            assert os.read(fd, 10) == b"12345"
        with pytest.raises(OSError):
            os.fstat(fd)


def test_an_empty_or_absent_inbox_asks_nothing(layout: Layout) -> None:
    """Neither is an error: the agent may never have run."""
    for _ in range(2):
        with Inbox(layout) as inbox:
            assert (inbox.envelope(), inbox.keysets(), inbox.request()) == (None, None, Request())
            with inbox.bundle(SHA, 5) as fd:
                assert fd is None
        if layout.inbox.exists():
            layout.inbox.rmdir()
    layout.agent.rmdir()
    with Inbox(layout) as inbox:
        assert inbox.envelope() is None


def _socket(path: Path) -> None:
    # Bound by a short relative name: a socket's path has 108 bytes at the most.
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda path, root: path.symlink_to(root / "shadow"),
    "link_to_nowhere": lambda path, root: path.symlink_to("nowhere"),
    "link_to_itself": lambda path, root: path.symlink_to(path.name),
    "link_to_a_device": lambda path, root: path.symlink_to("/dev/zero"),
    "link_to_proc": lambda path, root: path.symlink_to("/proc/self/environ"),
    "hard_link": lambda path, root: os.link(root / "shadow", path),
    "fifo": lambda path, root: os.mkfifo(path),
    "socket": lambda path, root: _socket(path),
    "directory": lambda path, root: path.mkdir(),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_no_file_of_the_agents_is_not_read(plant: str, layout: Layout) -> None:
    """Not followed, not waited for; a bundle is refused, so that its deployment has an answer."""
    for name in ("envelope.json", "keysets.json", "request.json", BUNDLE):
        PLANTED[plant](layout.inbox / name, layout.root)
    with Inbox(layout) as inbox:
        for read in (inbox.envelope, inbox.keysets):
            with pytest.raises(Corrupt) as caught:
                read()
            assert "secret" not in str(caught.value)
        with pytest.raises(Untrusted) as refused, inbox.bundle(SHA, 12):
            pass
        assert refused.value.code == "malformed_bundle"
        assert inbox.request() == Request()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_is_not_read(layout: Layout) -> None:
    """However it came there."""
    try:
        os.mknod(layout.inbox / BUNDLE, 0o666 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no device nodes in this container")
    with Inbox(layout) as inbox, pytest.raises(Untrusted), inbox.bundle(SHA, 12):
        pass


@pytest.mark.parametrize(
    "plant", ["link", "link_to_nowhere", "link_to_itself", "fifo", "socket", "file"]
)
def test_an_inbox_that_is_no_directory_is_not_entered(plant: str, layout: Layout) -> None:
    """The agent owns the directory above it, and may have put anything in its place."""
    layout.inbox.rmdir()
    plants = {
        **PLANTED,
        "link": lambda path, root: path.symlink_to(root),
        "file": lambda path, root: path.write_bytes(b""),
    }
    plants[plant](layout.inbox, layout.root)
    with pytest.raises(Corrupt), Inbox(layout):
        pass


def test_a_link_of_roots_above_the_agents_directory_is_followed(layout: Layout) -> None:
    """A host that keeps the state on another disk is no attack; inside the root, as everywhere."""
    (layout.inbox / "envelope.json").write_bytes(b"{e}")
    layout.agent.rename(layout.root / "elsewhere")
    (layout.root / "var/lib/byteor/agent").symlink_to("/elsewhere")
    with Inbox(layout) as inbox:
        assert inbox.envelope() == b"{e}"


def test_the_directory_is_the_one_that_was_opened(layout: Layout) -> None:
    """Exchanged after it was opened, it is still the first one that is read."""
    (layout.inbox / "envelope.json").write_bytes(b"{e}")
    with Inbox(layout) as inbox:
        layout.inbox.rename(layout.agent / "moved")
        layout.inbox.symlink_to(layout.root)
        (layout.root / "envelope.json").write_bytes(b"planted")
        assert inbox.envelope() == b"{e}"


@pytest.mark.parametrize("size", [0, 4, 6, 1 << 40])
def test_a_bundle_of_another_size_is_refused_before_it_is_read(size: int, layout: Layout) -> None:
    """Also one of a tebibyte without a byte on the disk."""
    (layout.inbox / BUNDLE).write_bytes(b"")
    os.truncate(layout.inbox / BUNDLE, size)
    with Inbox(layout) as inbox, pytest.raises(Untrusted) as caught, inbox.bundle(SHA, 5):
        pass
    assert caught.value.code == "bundle_size"


def test_a_bundle_exchanged_or_grown_after_the_check_is_copied_as_checked(layout: Layout) -> None:
    """The descriptor stays that of the file that was looked at, and no byte beyond the signed size
    is taken.
    """
    bundle = layout.inbox / BUNDLE
    bundle.write_bytes(b"12345")
    with Inbox(layout) as inbox, inbox.bundle(SHA, 5) as fd:
        assert fd is not None
        with bundle.open("ab") as stream:
            stream.write(b"6" * 100_000)
        bundle.unlink()
        bundle.symlink_to(layout.root / "shadow")
        assert trees.copy(fd, layout.root / "copy", limit=5) == (
            5,
            hashlib.sha256(b"12345").hexdigest(),
        )


@pytest.mark.parametrize("size", [files.JSON_LIMIT, files.JSON_LIMIT + 1, 1 << 40])
def test_replies_are_bounded(size: int, layout: Layout) -> None:
    """1 MiB, the ceiling of the reply itself; a tebibyte costs no memory."""
    for name in ("envelope.json", "request.json"):
        (layout.inbox / name).write_bytes(b"")
        os.truncate(layout.inbox / name, size)
    with Inbox(layout) as inbox:
        assert inbox.request() == Request()
        if size == files.JSON_LIMIT:
            assert len(inbox.envelope() or b"") == size
            return
        with pytest.raises(Corrupt, match="larger than"):
            inbox.envelope()


def test_other_names_are_of_no_interest(layout: Layout) -> None:
    """Thousands of files, and names that nobody can print, cost nothing and are not touched."""
    for number in range(1000):
        (layout.inbox / f"n{number}").touch()
    for name in (b"\xff\xfe", b"\n", b"\x1b[2J", b"n" * 255):
        os.close(os.open(os.fsencode(layout.inbox) + b"/" + name, os.O_CREAT))
    with Inbox(layout) as inbox:
        assert inbox.envelope() is None
    assert len(os.listdir(layout.inbox)) == 1004


def test_a_lease_held_by_the_agent_stops_nothing(layout: Layout) -> None:
    """A file lease makes others wait for its holder (45 s); here the open returns at once."""
    (layout.inbox / "envelope.json").write_bytes(b"{e}")
    code = (
        "import fcntl, os, signal, sys; signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "fd = os.open(sys.argv[1], os.O_RDWR); fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", code, str(layout.inbox / "envelope.json")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "held\n":
            pytest.skip("this file system has no leases")
        with Inbox(layout) as inbox, pytest.raises(LocalFault):
            inbox.envelope()
        holder.communicate()


ASKED: dict[str, Any] = {
    json.dumps(GOOD): Request(ID, -1.5),
    json.dumps({**GOOD, "unknown": [1]}): Request(ID, -1.5),
    '{"request": "abc"}': Request("abc", None),
    '{"clock_offset_s": 3}': Request(None, 3.0),
    '{"clock_offset_s": null, "request": null}': Request(),
    '{"request": "", "clock_offset_s": true}': Request(),
    '{"request": "../../etc", "clock_offset_s": "1"}': Request(),
    '{"request": "abc\\n", "clock_offset_s": 1}': Request(None, 1.0),
    json.dumps({"request": "a" * 65, "clock_offset_s": [1]}): Request(),
    '{"request": 7, "clock_offset_s": {}}': Request(),
    '{"clock_offset_s": 1e999}': Request(),
    '{"clock_offset_s": NaN}': Request(),
    '{"clock_offset_s": -Infinity}': Request(),
    '{"request": "abc", "clock_offset_s": 1' + "0" * 400 + "}": Request("abc", None),
    '{"request": "abc", "request": "abd"}': Request(),
    "[]": Request(),
    "null": Request(),
    "": Request(),
    "[" * 4000: Request(),
    '{"request": "\\ud800"}': Request(),
}


@pytest.mark.parametrize("text", ASKED, ids=range(len(ASKED)))
def test_a_request_is_what_can_be_used_of_it(text: str) -> None:
    """Each member by itself; garbage asks nothing and breaks nothing."""
    assert unverified_request(text.encode()) == ASKED[text]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["request", "clock_offset_s", "v"]) | st.text(), inner)
    ),
)


@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_at_all_make_a_request_fail(data: bytes) -> None:
    """What comes out is of its shape, or nothing."""
    asked = unverified_request(data)
    offset: float | None = asked.clock_offset_s
    assert asked.request is None or 1 <= len(asked.request) <= 64
    assert offset is None or abs(offset) < float("inf")
