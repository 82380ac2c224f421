"""Hit one system call of a program, by strace: SIGKILL, a full disk or a broken one."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional, TypeVar

import pytest

STRACE = shutil.which("strace") or "strace"
MARKS = [
    pytest.mark.minutes,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        shutil.which("strace") is None,
        reason="strace is not on this machine (Debian: apt-get install strace)",
    ),
]
# Whatever changes what a later run finds, or makes it durable. `openat`: files are made by it.
CHANGING = (
    "openat", "write", "pwrite64", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat",
    "symlink", "symlinkat", "link", "linkat", "chmod", "fchmod", "fchmodat", "ftruncate", "fsync", "fdatasync",
)  # fmt: skip
FAULTS = {"killed": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
AT_ONCE = 2
# Which of three calls in a row: each fault begins with another, so together they hit every call.
THIRDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]

Point = tuple[str, int]  # a system call's name, and which one of that name
T = TypeVar("T")


def run(command: Sequence[str], *options: str, cwd: Optional[Path] = None) -> int:
    """Run a command under strace, writing no bytecode: only what we change is counted."""
    done = subprocess.run(
        [STRACE, *options, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert "Traceback" not in done.stderr and "this is a bug" not in done.stderr, done.stderr
    return done.returncode


def points(
    command: Sequence[str],
    trace: Path,
    *,
    below: Path,
    opened: str = "O_CREAT",
    cwd: Optional[Path] = None,
    code: int = 0,
) -> list[Point]:
    """Return every call of a whole run, which must end with `code`; otherwise as `found`."""
    options = ("-y", "-o", str(trace), "-e", f"trace={','.join(CHANGING)}")
    assert run(command, *options, cwd=cwd) == code
    return found(trace, below=below, opened=opened)


def found(
    trace: Path, *, below: Path, names: Sequence[str] = CHANGING, opened: str = "O_CREAT"
) -> list[Point]:
    """Return the calls in a trace that change what is `below`, and those of other `names`.

    Of `openat` those that are `opened` so.
    """
    calls, counts = [], Counter[str]()
    for line in trace.read_text(errors="replace").splitlines():
        name = line.split("(", 1)[0]
        if name not in names:
            continue
        counts[name] += 1
        ours = name not in CHANGING or str(below) in line
        if ours and (name != "openat" or re.search(opened, line)):
            calls.append((name, counts[name]))
    return calls


def hit(
    command: Sequence[str], point: Point, fault: str = "killed", *, cwd: Optional[Path] = None
) -> int:
    """Run a command and hit it at one point; return its exit code."""
    return run(command, *injection(point, fault), cwd=cwd)


def injection(point: Point, fault: str) -> tuple[str, ...]:
    """Return strace's options for one fault at one point."""
    name, which = point
    inject = f"inject={name}:{FAULTS[fault]}:when={which}"
    return ("-o", "/dev/null", "-e", f"trace={name}", "-e", inject)


def chosen(points: Sequence[Point], fault: str, third: int) -> Sequence[Point]:
    """Return every third point, which one depends on the fault."""
    return points[(third + list(FAULTS).index(fault)) % 3 :: 3]


def everywhere(points: Iterable[Point], one: Callable[[Point], T]) -> list[T]:
    """Call `one` for each point, a few at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, points))
