"""The ground: secrets that do not print, durable files, locks, pauses, paths inside a root."""

from __future__ import annotations

import json
import os
import pickle
import random
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.base import files, inplace, log, systemd
from firstboot.base.clock import Backoff, from_rfc3339, rfc3339
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout, Row
from firstboot.base.secret import Secret, redacted

CANARY = "bet_canary_0123456789abcdef"


def test_a_secret_never_shows_itself() -> None:
    """str, repr, format, containers and f-strings print the mask; pickle and JSON refuse."""
    secret = Secret(CANARY)
    for shown in (
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret!r}",
        str([secret]),
        str({"k": secret}),
    ):
        assert CANARY not in shown
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps({"token": secret})
    assert secret == Secret(CANARY)
    assert secret != Secret(CANARY + "x")


def test_the_second_net_takes_a_secret_out_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A library's message that quotes a secret is redacted, and cannot forge a second line."""
    Secret(CANARY)
    log.set_up("byteor-firstboot", verbose=True)
    log.warning(f"bad header {CANARY}\n<0>forged", reason=CANARY)
    shown = capsys.readouterr().err
    assert CANARY not in shown
    assert shown.count("\n") == 1
    assert redacted(CANARY) == "<secret>"


def test_a_write_is_private_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    """Mode as asked, no temporary file, the old bytes replaced."""
    path = tmp_path / "f"
    files.write(path, b"old")
    files.write(path, b"new", mode=0o400)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert os.listdir(tmp_path) == ["f"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """A disk that is full (or a size limit) leaves the old bytes and no litter, and says what is
    wrong.
    """
    import resource
    import subprocess
    import sys

    path = tmp_path / "f"
    files.write(path, b"old")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "from pathlib import Path; from firstboot.base import files\n"
        "from firstboot.base.errors import LocalFault\n"
        "try: files.write(Path(sys.argv[1]), b'x' * 100)\n"
        "except LocalFault as e: print(e)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert "cannot write" in said
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10


def test_reading_follows_no_link_and_stops_at_its_limit(tmp_path: Path) -> None:
    """A link, a FIFO, a directory and a file that is too large are refused; an absent one is
    None.
    """
    target = tmp_path / "target"
    target.write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    assert files.read(tmp_path / "absent", limit=10) is None
    for name in ("link", "fifo", "."):
        with pytest.raises(LocalFault):
            files.read(tmp_path / name, limit=1000)
    with pytest.raises(LocalFault):
        files.read(target, limit=99)
    assert files.read(target, limit=100) == b"x" * 100


@pytest.mark.parametrize("spoil", ["mode", "link", "owner"])
def test_a_secret_is_read_from_a_private_file_only(tmp_path: Path, spoil: str) -> None:
    """Readable by others, a second name, or another owner: refused."""
    path = tmp_path / "f"
    files.write(path, b"s")
    assert files.read(path, limit=10, private_to=os.geteuid()) == b"s"
    if spoil == "mode":
        path.chmod(0o640)
    elif spoil == "link":
        os.link(path, tmp_path / "g")
    owner = os.geteuid() + 1 if spoil == "owner" else os.geteuid()
    with pytest.raises(LocalFault):
        files.read(path, limit=10, private_to=owner)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"a":1}', b'{"v":"1"}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_damaged_json_file_is_corrupt_and_not_none(tmp_path: Path, content: bytes) -> None:
    """Damage is an error of its own, so that nobody takes it for absence."""
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(Corrupt):
        files.read_json(path)


def test_set_aside_never_overwrites_an_earlier_one(tmp_path: Path) -> None:
    """The second damaged file gets the next number."""
    for content in ("one", "two"):
        (tmp_path / "f").write_text(content)
        files.set_aside(tmp_path / "f")
    assert (tmp_path / "f.corrupt-1").read_text() == "one"
    assert (tmp_path / "f.corrupt-2").read_text() == "two"


def test_overwriting_keeps_the_inode_and_refuses_another_length(tmp_path: Path) -> None:
    """The same blocks are written, never new ones."""
    path = tmp_path / "f"
    path.write_bytes(b"token here")
    inode = path.stat().st_ino
    held = inplace.read(path, limit=100)
    assert held is not None
    held = inplace.overwrite(held, b"xxxxx here")
    assert path.read_bytes() == held.data == b"xxxxx here"
    assert path.stat().st_ino == inode
    with pytest.raises(LocalFault):
        inplace.overwrite(held, b"short")
    assert path.read_bytes() == b"xxxxx here"


def test_a_lock_excludes_and_gives_up_in_time(tmp_path: Path) -> None:
    """A second holder waits its time, then raises what it was given; the file stays."""
    entered = threading.Event()
    first = files.locked(tmp_path / "lock", wait_s=1, busy=lambda: AssertionError("free"))
    second = files.locked(tmp_path / "lock", wait_s=0.1, busy=lambda: TimeoutError("busy"))
    with first, pytest.raises(TimeoutError), second:
        entered.set()
    assert not entered.is_set()
    with files.locked(tmp_path / "lock", wait_s=0, busy=lambda: AssertionError("held")):
        assert (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    "name", ["/var/lib/byteor", "/var/lib/byteor/identity", "/var/lib/cloud", "/run/byteor-agent"]
)
def test_a_root_that_links_our_directories_away_is_not_left(tmp_path: Path, name: str) -> None:
    """A hostile image with /var/lib/byteor -> /etc gets DIR/etc written, never the system's."""
    root = tmp_path / "root"
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    layout = Layout(root)
    for place in (
        layout.settings,
        layout.intent,
        layout.set_aside,
        layout.agent_state,
        layout.agent_status,
        layout.cloud,
    ):
        assert root in place.resolve().parents or not str(place).startswith(str(path)), place


def test_links_inside_a_root_stay_inside(tmp_path: Path) -> None:
    """An absolute link and a climbing one resolve under the root, as chroot would; a loop is an
    error.
    """
    (tmp_path / "var/real").mkdir(parents=True)
    (tmp_path / "var/real/f").write_text("inside")
    (tmp_path / "absolute").symlink_to("/var/real")
    (tmp_path / "climbing").symlink_to("../../../var/real")
    (tmp_path / "loop").symlink_to("loop")
    layout = Layout(tmp_path)
    for name in ("/absolute/f", "/climbing/f", "/../../var/real/f"):
        assert layout.path(name).read_text() == "inside"
    assert layout.path("/absolute") == tmp_path / "absolute"
    assert layout.path("/absolute", follow=True) == tmp_path / "var/real"
    with pytest.raises(LocalFault):
        layout.path("/loop/f")
    assert layout.shown(tmp_path / "var/real/f") == "/var/real/f"


@given(st.integers(0, 40), st.one_of(st.none(), st.floats(-10, 1e6)))
def test_a_pause_is_within_its_ceiling_and_never_sooner_than_asked(
    failures: int, retry_after: float | None
) -> None:
    """Full jitter under the cap; a believable Retry-After is a floor, an absurd one is ignored."""
    backoff = Backoff(1.0, 60.0, failures)
    delay = backoff.next_delay(random.Random(failures), retry_after)
    ceiling = min(60.0, 2.0**failures)
    if retry_after is not None and 0 <= retry_after <= 3600:
        assert retry_after <= delay <= retry_after + ceiling
    else:
        assert 0 <= delay <= ceiling


def test_dates_round_trip() -> None:
    """RFC 3339 both ways; a date without a zone is refused."""
    assert from_rfc3339(rfc3339(1_700_000_000)) == 1_700_000_000
    assert from_rfc3339("2026-01-01T00:00:00.5+01:00") == from_rfc3339("2025-12-31T23:00:00.5Z")
    with pytest.raises(ValueError):
        from_rfc3339("2026-01-01T00:00:00")


def test_systemd_is_told_through_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY=1 arrives at NOTIFY_SOCKET; the watchdog period is read for this process only."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd.notify("READY=1", "STATUS=x")
        assert manager.recv(100) == b"READY=1\nSTATUS=x"
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    assert systemd.watchdog_s() == 2.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_s() is None


def test_a_bug_is_one_line_without_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that nobody foresaw: its kind and place, never its text, and exit code 1 for the
    process.
    """
    from firstboot import cli
    from firstboot.commands import status

    monkeypatch.setattr(status, "status_command", lambda arguments: {}[CANARY])
    monkeypatch.setattr("sys.excepthook", None)
    with pytest.raises(KeyError) as caught:
        cli.firstboot_main(["status"])
    cli._unexpected(KeyError, caught.value, caught.tb)
    shown = capsys.readouterr().err
    assert "unexpected KeyError" in shown and "test_ground.py" in shown and CANARY not in shown


def test_a_writer_never_exceeds_its_readers_limit(tmp_path: Path) -> None:
    """What could not be read again is not written, and what was there before stays."""
    files.write_json(tmp_path / "f.json", {"v": 1})
    with pytest.raises(LocalFault, match="more than 1048576") as raised:
        files.write_json(tmp_path / "f.json", {"v": 1, "text": "x" * files.JSON_LIMIT})
    assert raised.value.hint
    assert files.read_json(tmp_path / "f.json") == {"v": 1}


def test_each_row_of_the_layout_stands_inside_the_root(tmp_path: Path) -> None:
    """As the target system names it, and inside DIR with --root; no path stands in two rows."""
    rows = {name: row for name, row in vars(Layout).items() if isinstance(row, Row)}
    assert len({row.absolute for row in rows.values()}) == len(rows) > 40
    for name, row in rows.items():
        assert getattr(Layout(), name) == Path(row.absolute)
        assert getattr(Layout(tmp_path), name) == tmp_path / row.absolute.lstrip("/")
