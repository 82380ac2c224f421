"""Telling the agent that runs on this tree that the spool has something new; without it the agent looks at its period."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from firstboot.base import files
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout

LOCKS = Path("/proc/locks")
LOCKS_LIMIT = 1 << 20  # bytes


def wake(layout: Layout, number: int = signal.SIGUSR1) -> bool:
    """Signal the agent; False when none was found, or it belongs to another user.

    SIGUSR1: something on this host is new, all loops look. SIGUSR2: the spool has something, which is no reason to ask the
    plane for anything else.
    """
    pid = agent_pid(layout)
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


def agent_pid(layout: Layout) -> int | None:
    """The process that wrote `status.json` and holds the agent's lock now, as the kernel says.

    Both, since a number in a file may be another process's by now, and a signal that it does not expect would end it.
    """
    try:
        pid = (files.read_json(layout.agent_status) or {}).get("pid")
        # Of the agent's own: it could link to another's lock, and name another's process.
        inode, owner = (
            os.stat(layout.agent_lock, follow_symlinks=False).st_ino,
            os.stat(layout.agent).st_uid,
        )
        table = files.read(LOCKS, limit=LOCKS_LIMIT) or b""
    except (LocalFault, OSError):
        return None
    # 1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF (the device differs from stat's on some file systems)
    for line in table.decode("ascii", "replace").splitlines():
        words = line.split()
        if (
            len(words) == 8
            and words[1] == "FLOCK"
            and words[4] == str(pid)
            and words[5].split(":")[-1] == str(inode)
        ):
            found = int(words[4])
            return found if _owner(found) == owner else None
    return None


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
