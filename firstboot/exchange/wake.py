"""Signal the agent that runs on this tree; without a signal it looks at its own period.

The agent holds a POSIX record lock on its lock file for as long as it lives, and the kernel names
the holder of such a lock. No pid is read from a file, which could name anybody's process.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from firstboot.base import files
from firstboot.base.errors import TryAgain
from firstboot.base.layout import Layout

LOCK_WAIT_S = 2.0  # the agent before us may be ending
_FLOCK = "hhqqi0q"  # struct flock of fcntl(2): type, whence, start, length, pid


@contextmanager
def reachable(layout: Layout) -> Iterator[None]:
    """Be the one agent of this tree, and the one whom `wake` finds; TryAgain when another is."""
    busy = TryAgain(
        "another byteor-agent run is at work on this tree",
        hint="byteor-agent status shows it; one agent a host is all",
    )
    with files.locked(layout.agent_lock, wait_s=LOCK_WAIT_S, busy=lambda: busy) as held:
        # The record lock beside flock: an agent of 0.1.0 knows the latter alone. It is lost when
        # any descriptor of this file is closed in this process: nobody else opens it here.
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def wake(layout: Layout, number: int = signal.SIGUSR1) -> bool:
    """Signal the agent; False when none was found.

    SIGUSR1: something on this host is new, everything is looked at. SIGUSR2: the spool has
    something, which is no reason to ask the control plane for anything else.
    """
    pid = agent_pid(layout)
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


def is_running(layout: Layout) -> bool | None:
    """Return True while an agent holds its lock; None when this user may not look."""
    try:
        return _holder(layout)[0] != fcntl.F_UNLCK
    except FileNotFoundError:
        return False
    except OSError:
        return None


def agent_pid(layout: Layout) -> int | None:
    """Return the process that holds the agent's lock now, None when there is none.

    It has to belong to the owner of the agent's directory: that user could link another's lock
    into its place. Signalling a process of that user's is nothing that the user could not do.
    """
    try:
        owner = os.stat(layout.agent).st_uid
        kind, pid = _holder(layout)
        # 0: a process outside of this pid namespace, whom no signal of ours reaches.
        if kind == fcntl.F_UNLCK or pid <= 0 or os.stat(f"/proc/{pid}").st_uid != owner:
            return None
    except OSError:
        return None
    return pid


def _holder(layout: Layout) -> tuple[int, int]:
    """Return kind and holder of the lock on the agent's lock file."""
    # O_NONBLOCK: a FIFO planted there must not stop us.
    with files.opened(layout.agent_lock, files.READ) as fd:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return kind, pid
