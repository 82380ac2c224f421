"""Who is woken: the process that holds the agent's lock and belongs to its user, and nobody that a
file merely names.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from firstboot.base.errors import TryAgain
from firstboot.base.layout import Layout
from firstboot.exchange.wake import agent_pid, reachable, wake


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    layout.agent.mkdir(parents=True)
    layout.agent_run.mkdir(parents=True)
    return layout


def test_the_holder_of_the_agents_lock_is_found(layout: Layout, holder: tuple[int, Path]) -> None:
    """By the lock's file itself (here by a second name), whatever a status page says."""
    pid, path = holder
    assert agent_pid(layout) is None
    os.link(path, layout.agent_lock)
    layout.agent_status.write_text(json.dumps({"v": 1, "pid": os.getpid()}))
    assert agent_pid(layout) == pid


@pytest.mark.parametrize("plant", ["nothing", "free", "flock", "fifo", "directory", "link"])
def test_without_a_holder_nobody_is_found(layout: Layout, plant: str) -> None:
    """Neither waits nor fails, whatever the agent's user put there."""
    path = layout.agent_lock
    if plant in ("free", "flock"):
        path.touch()
    elif plant == "fifo":
        os.mkfifo(path)
    elif plant == "directory":
        path.mkdir()
    elif plant == "link":
        path.symlink_to("nowhere")
    with path.open() if plant == "flock" else contextlib.nullcontext() as stream:
        if stream is not None:
            fcntl.flock(stream, fcntl.LOCK_EX)
        assert agent_pid(layout) is None and not wake(layout)


def test_an_agent_can_be_reached_while_it_runs(layout: Layout) -> None:
    """A second one is told so; the lock goes with its process, also when that is killed."""
    code = (
        "import sys; from pathlib import Path; from firstboot.base.layout import Layout\n"
        "from firstboot.exchange.wake import reachable\n"
        "with reachable(Layout(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(layout.root)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        assert agent_pid(layout) == process.pid
        with pytest.raises(TryAgain), reachable(layout):
            pass
        assert agent_pid(layout) == process.pid
        assert wake(layout, signal.SIGTERM) and process.wait(60) == -signal.SIGTERM
    assert agent_pid(layout) is None


def test_a_link_to_somebody_elses_lock_names_nobody(
    layout: Layout, holder: tuple[int, Path]
) -> None:
    """What the agent's user planted makes root signal nothing."""
    pid, path = holder
    layout.agent_lock.symlink_to(path)
    assert agent_pid(layout) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_another_users_process_is_not_the_agent(layout: Layout, holder: tuple[int, Path]) -> None:
    """It has to belong to the owner of the agent's directory."""
    pid, path = holder
    os.link(path, layout.agent_lock)
    os.chown(layout.agent, 65534, 65534)
    assert agent_pid(layout) is None
