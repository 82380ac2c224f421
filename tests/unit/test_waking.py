"""Who is woken: the process that holds the agent's lock and belongs to its user, and nobody that a
file merely names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstboot.base.layout import Layout
from firstboot.exchange.wake import agent_pid

HOLD = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    layout.agent.mkdir(parents=True)
    layout.agent_run.mkdir(parents=True)
    return layout


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Another process that holds a lock, and the lock's file."""
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process.pid, path
        process.kill()


def named(layout: Layout, pid: int) -> None:
    layout.agent_status.write_text(json.dumps({"v": 1, "pid": pid}))


def test_the_holder_of_the_agents_lock_is_found(layout: Layout, holder: tuple[int, Path]) -> None:
    """The lock's file itself (here by a second name) and the pid of the page have to agree."""
    pid, path = holder
    os.link(path, layout.agent_lock)
    named(layout, pid)
    assert agent_pid(layout) == pid
    named(layout, os.getpid())
    assert agent_pid(layout) is None


def test_a_link_to_somebody_elses_lock_names_nobody(
    layout: Layout, holder: tuple[int, Path]
) -> None:
    """What the agent's user planted makes root signal nothing."""
    pid, path = holder
    layout.agent_lock.symlink_to(path)
    named(layout, pid)
    assert agent_pid(layout) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_another_users_process_is_not_the_agent(layout: Layout, holder: tuple[int, Path]) -> None:
    """It has to belong to the owner of the agent's directory."""
    pid, path = holder
    os.link(path, layout.agent_lock)
    named(layout, pid)
    os.chown(layout.agent, 65534, 65534)
    assert agent_pid(layout) is None
