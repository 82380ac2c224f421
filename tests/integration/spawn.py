"""Start our two commands as processes of their own, without importing everything each time.

A test process has one server (this file, run as a program) that has imported the package and forks
for each command: same arguments, environment, directory, descriptors, signals and exit code as the
installed script, a quarter of its CPU. What only a new interpreter can do (another locale or Python
variable, `preexec_fn`, imports that are counted, a trace) starts the script itself; so do all tests
with ``NEW_INTERPRETERS=1``, as ``tests/run --all`` has it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
MAINS = {"byteor-firstboot": "firstboot_main", "byteor-agent": "agent_main"}
LARGEST = 1 << 20  # of a message: arguments and environment


def start(command: Sequence[str], *, new: bool = False, **keywords: Any) -> subprocess.Popen[str]:
    """Start ``[byteor-agent or byteor-firstboot, argument…]`` as subprocess.Popen does.

    `new`: in an interpreter of its own, for what is seen in /proc (environment, memory).
    """
    program, *arguments = command
    argv = [str(BIN / program), *arguments]
    env = {**os.environ, **(keywords.pop("env", None) or {})}
    if not new and set(keywords) <= {"stdin", "stdout", "stderr", "text", "cwd"} and _forkable(env):
        return _Forked(argv, env=env, **keywords)
    return subprocess.Popen(argv, env=env, **keywords)


def run(
    command: Sequence[str], *, timeout: float, text: str = "", **keywords: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, as subprocess.run does with text and captured output."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with start(command, text=True, **pipes, **keywords) as process:
        try:
            out, err = process.communicate(text, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _forkable(env: dict[str, str]) -> bool:
    def of_interpreter(name: str) -> bool:
        return name.startswith(("PYTHON", "LC_", "LANG", "LD_", "MALLOC_"))

    if os.environ.get("NEW_INTERPRETERS"):
        return False
    ours, theirs = ({k: v for k, v in e.items() if of_interpreter(k)} for e in (os.environ, env))
    return ours == theirs


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """A child of the server's; its exit code comes over a socket."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        # The same order in every Python from 3.9 to 3.14.
        _, _, cwd, env, _, _, _, *pipes = rest[:13]
        child_ends, our_ends = (pipes[0], pipes[3], pipes[5]), (pipes[1], pipes[2], pipes[4])
        files = [end if end != -1 else own for own, end in enumerate(child_ends)]
        request = json.dumps({"argv": args, "env": dict(env), "cwd": str(cwd or os.getcwd())})
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(_server(), [request.encode()], [*files, theirs.fileno()])
        self.pid = json.loads(self._status.recv(LARGEST))
        self._child_created = True
        null = getattr(self, "_devnull", None)
        for end, our_end in zip(child_ends, our_ends):
            if -1 not in (end, our_end) and end != null:
                os.close(end)
        if null is not None:
            os.close(null)
        self._closed_child_pipe_fds = True

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._ended()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._ended()
        return int(self.returncode)

    def _ended(self) -> None:
        status = json.loads(self._status.recv(LARGEST) or "9")
        self._status.close()
        self.returncode = os.waitstatus_to_exitcode(status)


@functools.lru_cache(None)
def _server() -> socket.socket:
    """Start this test process's server; it ends when its socket closes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
    atexit.register(process.wait, 10)
    atexit.register(ours.close)
    return ours


# -- the server


def _serve(control: socket.socket) -> int:
    """Fork for each message; returns in each child, with its command's exit code."""
    import firstboot

    for module in pkgutil.walk_packages(firstboot.__path__, "firstboot."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([control, reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            _reap(children)
        if control not in ready:
            continue
        message, files, _, _ = socket.recv_fds(control, LARGEST, 4)
        if not message:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _become(json.loads(message), files)
        *standard, status = files
        for number in standard:
            os.close(number)
        children[pid] = socket.socket(fileno=status)
        children[pid].send(json.dumps(pid).encode())


def _reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with children.pop(pid) as told:
            try:
                told.send(json.dumps(status).encode())
            except OSError:
                pass  # nobody waits for it any more


def _become(asked: dict[str, Any], files: list[int]) -> int:
    """Be the command: its descriptors, environment, directory and arguments."""
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv[:] = asked["argv"]
    name = Path(sys.argv[0]).name
    from firstboot import cli

    return int(getattr(cli, MAINS[name])())


if __name__ == "__main__":
    del sys.path[0]
    sys.exit(_serve(socket.socket(fileno=int(sys.argv[1]))))
