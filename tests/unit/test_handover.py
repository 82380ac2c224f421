"""The hand-over: one private file between root and the agent, read once."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import firstboot
from firstboot.base import files
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange import handover
from firstboot.exchange.handover import Handover

KEY_CANARY = "brk_canary_0123456789abcdef"
PROXY_CANARY = "http://user:proxy_canary_01234@proxy.example:3128"
HANDED = Handover(
    api_base_url="https://plane.example",
    agent_id="agt_1",
    api_key=Secret(KEY_CANARY),
    proxy=Secret(PROXY_CANARY),
    org_id="org_1",
    project_id="prj_1",
    environment_id="env_1",
    name="edge-node-01",
    enrolled_at="2026-01-01T00:00:00Z",
    expires_at="2027-01-01T00:00:00Z",
    scopes=("agent:heartbeat",),
)
BARE = replace(HANDED, proxy=None, name=None, expires_at=None, scopes=())
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another owner needs root")


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(firstboot.__file__).parents[1])}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.mark.parametrize("handed", [HANDED, BARE], ids=["full", "bare"])
def test_what_is_handed_over_is_taken_once(layout: Layout, handed: Handover) -> None:
    """0400 in a directory made 0755; after the first take there is nothing left, not even a
    temporary file.
    """
    assert handover.take(layout) is None
    handover.write(layout, handed)
    assert stat.S_IMODE(layout.handover.stat().st_mode) == 0o400
    assert stat.S_IMODE(layout.agent_run.stat().st_mode) == 0o755
    assert json.loads(layout.handover.read_text())["v"] == 1
    assert handover.take(layout) == handed
    assert os.listdir(layout.agent_run) == []
    assert handover.take(layout) is None


def test_what_is_shown_holds_no_secret() -> None:
    """`status.json` gets everything but key and proxy."""
    shown = json.dumps(HANDED.shown())
    assert KEY_CANARY not in shown
    assert "proxy" not in shown
    assert {
        "agent_id",
        "api_base_url",
        "name",
        "environment_id",
        "enrolled_at",
        "expires_at",
    } <= set(HANDED.shown())
    assert KEY_CANARY not in repr(HANDED)


def test_a_stale_hand_over_is_replaced(layout: Layout) -> None:
    """An agent that never came to read it: the next unseal's values count."""
    handover.write(layout, BARE)
    handover.write(layout, HANDED)
    assert handover.take(layout) == HANDED


@pytest.mark.parametrize("planted", ["symbolic link", "hard link", "open file", "fifo"])
def test_root_writes_through_nothing_that_the_agent_planted(
    layout: Layout, tmp_path: Path, planted: str
) -> None:
    """The directory is the agent's: whatever stands in the file's place is unlinked, not written
    through.
    """
    layout.agent_run.mkdir(parents=True)
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    os.chmod(target, 0o644)
    spy = None
    if planted == "symbolic link":
        layout.handover.symlink_to(target)
    elif planted == "hard link":
        os.link(target, layout.handover)
    elif planted == "fifo":
        os.mkfifo(layout.handover)
    else:
        layout.handover.write_bytes(b"")
        spy = layout.handover.open("rb")
    handover.write(layout, HANDED)
    assert target.read_bytes() == b"untouched"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    if spy is not None:
        with spy:
            assert spy.read() == b"", "a descriptor opened before saw the key"
    assert handover.take(layout) == HANDED


def test_a_directory_that_is_a_link_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    """/run/byteor-agent replaced by a link out of the root: it is resolved inside, and nothing is
    written there.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    layout.agent_run.parent.mkdir(parents=True)
    layout.agent_run.symlink_to(elsewhere)
    handover.write(layout, HANDED)
    assert os.listdir(elsewhere) == []
    assert layout.root in layout.handover.resolve().parents


def test_the_directory_is_opened_once_and_not_through_a_link(tmp_path: Path) -> None:
    """The same for a link that is laid after the directory was made."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(LocalFault):
        files.write_into(tmp_path / "link", "name", b"secret", mode=0o400)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_link_planted_between_unlinking_and_making_is_not_followed(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's user wins the race: a local fault, and the link's target is as it was."""
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    handover.write(layout, BARE)
    really_unlink = os.unlink

    def unlink_and_plant(path: str, *, dir_fd: int) -> None:
        really_unlink(path, dir_fd=dir_fd)
        os.link(target, path, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink_and_plant)
    with pytest.raises(LocalFault):
        handover.write(layout, HANDED)
    assert target.read_bytes() == b"untouched"


def test_a_directory_in_the_files_place_is_a_local_fault(layout: Layout) -> None:
    """Nothing of the agent's is removed to make room; the error names the path and no secret."""
    layout.handover.mkdir(parents=True)
    for attempt in (lambda: handover.write(layout, HANDED), lambda: handover.take(layout)):
        with pytest.raises(LocalFault) as caught:
            attempt()
        assert "handover.json" in str(caught.value)
        assert KEY_CANARY not in str(caught.value)
    assert layout.handover.is_dir()


@as_root
def test_the_agents_user_owns_directory_and_file_and_takes_it(layout: Layout) -> None:
    """Root writes, a process of the agent's user reads and unlinks; nobody else could have."""
    handover.write(layout, HANDED, owner=(NOBODY, NOBODY))
    for path in (layout.agent_run, layout.handover):
        assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)
    assert stat.S_IMODE(layout.handover.stat().st_mode) == 0o400
    os.chmod(layout.root, 0o755)
    # Relative to the working directory, as the directories above are closed to other users; and
    # root is given up after the imports, since the interpreter may lie in root's home.
    code = f"""
import os
from pathlib import Path
from firstboot.exchange.handover import take
from firstboot.base.layout import Layout
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
handed = take(Layout(Path(".")))
print(handed.agent_id, handed.api_key.reveal())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=layout.root,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["agt_1", KEY_CANARY], done.stderr
    assert not layout.handover.exists()


@as_root
@pytest.mark.parametrize("owner", [NOBODY, 12345])
def test_a_file_of_another_user_is_not_taken(layout: Layout, owner: int) -> None:
    """Whoever put it there was not unseal for us: refused, and left for a person to look at."""
    handover.write(layout, HANDED, owner=(owner, owner))
    with pytest.raises(LocalFault):
        handover.take(layout)
    assert layout.handover.exists()


@pytest.mark.parametrize("how", ["mode", "link", "hard link", "fifo", "too large"])
def test_a_file_that_is_not_unseals_is_not_taken(layout: Layout, how: str) -> None:
    """Readable by others, a link, two links, a FIFO, without end: refused soon, without following
    or hanging.
    """
    handover.write(layout, HANDED)
    other = layout.agent_run / "other"
    if how == "mode":
        os.chmod(layout.handover, 0o440)
    elif how == "link":
        layout.handover.rename(other)
        layout.handover.symlink_to(other)
    elif how == "hard link":
        os.link(layout.handover, other)
    else:
        layout.handover.unlink()
        if how == "fifo":
            os.mkfifo(layout.handover, 0o400)
        else:
            layout.handover.write_bytes(b" " * (handover.HANDOVER_LIMIT + 1))
            os.chmod(layout.handover, 0o400)
    with pytest.raises(LocalFault) as caught:
        handover.take(layout)
    assert KEY_CANARY not in str(caught.value)
    assert os.path.lexists(layout.handover)


GOOD = {**HANDED.shown(), "v": 1, "api_key": KEY_CANARY, "proxy": None}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        json.dumps(GOOD).encode()[:-3],
        json.dumps({**GOOD, "v": 2}).encode(),
        b"\xff",
        b"[" * 60000,
        *[json.dumps({**GOOD, name: 7}).encode() for name in GOOD if name != "v"],
        *[
            json.dumps({**GOOD, name: ""}).encode()
            for name in ("api_key", "agent_id", "api_base_url")
        ],
    ],
)
def test_a_damaged_hand_over_is_said_and_gone(layout: Layout, data: bytes) -> None:
    """One sentence with a hint and without the key; the next start asks for a fresh one."""
    layout.agent_run.mkdir(parents=True)
    layout.handover.write_bytes(data)
    os.chmod(layout.handover, 0o400)
    with pytest.raises(Corrupt) as caught:
        handover.take(layout)
    assert KEY_CANARY not in str(caught.value)
    assert caught.value.hint
    assert caught.value.__suppress_context__
    assert not layout.handover.exists()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(min_size=1), st.lists(st.text(min_size=1), max_size=3))
def test_any_text_travels(layout: Layout, text: str, scopes: list[str]) -> None:
    """A key or name is whatever the plane gave."""
    handed = replace(HANDED, api_key=Secret(text), name=text, scopes=tuple(scopes))
    handover.write(layout, handed)
    assert handover.take(layout) == handed


def test_unknown_fields_are_ignored(layout: Layout) -> None:
    """An older agent starts after a newer unseal."""
    layout.agent_run.mkdir(parents=True)
    layout.handover.write_text(json.dumps({**GOOD, "colour": "blue"}))
    os.chmod(layout.handover, 0o400)
    assert handover.take(layout) == replace(HANDED, proxy=None)


def test_the_hand_over_loads_no_cryptography() -> None:
    """What the resident agent imports stays free of keys and parsers that it does not need."""
    code = "import sys, firstboot.exchange.handover; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    ).stdout.split()
    assert not {
        "cryptography",
        "yaml",
        "requests",
        "firstboot.identity.store",
        "firstboot.identity.sealkey",
    } & set(modules)
