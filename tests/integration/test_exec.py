"""``byteor-agent exec``: a command with the identity in its environment, its own exit code, and our
three.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host

NAMES = ["BYTEOR_AGENT_API_KEY", "BYTEOR_AGENT_ID", "BYTEOR_API_BASE_URL"]
SHOW = """
import json, os, resource
print(json.dumps({
    "environ": dict(os.environ), "argv": open("/proc/self/cmdline").read(), "ids": [os.getresuid(), os.getresgid()],
    "groups": sorted(os.getgroups()), "core": resource.getrlimit(resource.RLIMIT_CORE), "pid": os.getpid(),
    "fds": sorted(os.listdir("/proc/self/fd")),
}))
"""


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    return host


def exec_(host: Host, *arguments: str, **keywords: Any) -> Any:
    """`byteor-agent exec` with our options before the command's."""
    return host.call(
        "byteor-agent", "exec", "--root", str(host.root), *arguments, root_last=False, **keywords
    )


def key_of(host: Host) -> str:
    assert host.call("byteor-firstboot", "unseal").code == 0
    path = host.path("run/byteor-agent/handover.json")
    key = json.loads(path.read_text())["api_key"]
    path.unlink()
    return str(key)


def shown(host: Host, *options: str, **keywords: Any) -> dict[str, Any]:
    done = exec_(host, *options, "--", sys.executable, "-c", SHOW, **keywords)
    assert done.code == 0, done
    return dict(json.loads(done.out))


def test_no_descriptor_of_the_callers_reaches_the_command(host: Host, tmp_path: Path) -> None:
    """Root's open file, inherited by exec, would be read by another user's command."""
    secret = tmp_path / "shadow"
    secret.write_text("root's")
    with secret.open() as stream:
        os.set_inheritable(stream.fileno(), True)
        found = shown(host, pass_fds=(stream.fileno(),))
        assert str(stream.fileno()) not in found["fds"][:-1] and len(found["fds"]) <= 4


def test_the_command_gets_exactly_the_three_variables(host: Host) -> None:
    """The identity's values replace what was there; other names of ours go; nothing is in its
    arguments or on disk.
    """
    key = key_of(host)
    before = sorted(path.relative_to(host.root) for path in host.root.rglob("*"))
    # Another name of ours would be an old one: it is spelled in two parts for the test that looks
    # for those.
    found = shown(host, env={NAMES[1]: "someone-else", "BYTEOR_" + "OLD": "x", "KEPT": "yes"})
    environ = found["environ"]
    assert sorted(name for name in environ if name.startswith("BYTEOR_")) == NAMES
    assert (
        environ[NAMES[0]] == key
        and environ[NAMES[2]] == host.plane.base_url
        and environ["KEPT"] == "yes"
    )
    assert environ[NAMES[1]] == host.plane.agents()[0]["agent_id"]
    assert key not in found["argv"]
    assert found["core"] == [0, 0] and len(found["fds"]) <= 4
    assert sorted(path.relative_to(host.root) for path in host.root.rglob("*")) == before
    assert not any(
        key.encode() in path.read_bytes() for path in host.root.rglob("*") if path.is_file()
    )


def test_exit_code_and_signals_are_the_commands(host: Host) -> None:
    """It becomes the command: its exit code, its death by a signal, and the process id that a
    supervisor knows.
    """
    assert exec_(host, "--", "sh", "-c", "exit 42").code == 42
    assert exec_(host, "--", "sh", "-c", "kill -TERM $$").code == -signal.SIGTERM
    ignored = exec_(host, "--", "grep", "SigIgn", "/proc/self/status").out.split()[1]
    assert not int(ignored, 16) & 1 << (signal.SIGPIPE - 1)
    # What follows the first -- is the command's, its own -- and options too.
    assert exec_(host, "--", "echo", "--", "--root", "-v").out == "-- --root -v\n"
    process = host.start(
        "byteor-agent",
        "exec",
        "--root",
        str(host.root),
        "--",
        "sh",
        "-c",
        "echo $$",
        root_last=False,
    )
    out, _ = process.communicate(timeout=60)
    assert int(out) == process.pid


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--", "no-such-command"], 127, "no such file"),
        (["--", "/proc/self/status"], 126, "permission denied"),
        (["--", "/etc"], 126, "permission denied"),
        (["--"], 125, "needs a command"),
        ([], 125, "needs a command"),
        (["true"], 125, "too many"),
        (["--user", "nobody-of-that-name", "--", "true"], 125, "no such user"),
        (["--usr", "x", "--", "true"], 125, "has no option --usr"),
    ],
)
def test_our_own_failures_are_125_to_127(
    host: Host, arguments: list[str], code: int, said: str
) -> None:
    """As with env and docker, with one error line that says why."""
    done = exec_(host, *arguments)
    assert done.code == code and said in done.err and done.err.count("error:") == 1, done


def test_without_an_identity_of_this_host_nothing_runs(
    host: Host, tmp_path: Path, control_plane: Any
) -> None:
    """Not enrolled, or a clone: 125, and the command never starts."""
    mark = tmp_path / "ran"
    empty = Host(tmp_path / "empty", control_plane)
    done = exec_(empty, "--", "touch", str(mark))
    assert done.code == 125 and "not enrolled" in done.err, done
    host.write("etc/machine-id", "f" * 32 + "\n")
    done = exec_(host, "--", "touch", str(mark))
    assert done.code == 125 and "another host" in done.err, done
    assert not mark.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_it_falls_to_the_user_for_good(host: Host, tmp_path: Path) -> None:
    """User, group and groups are those of the account, HOME and name too; a command that only root
    may run is 126.
    """
    account = pwd.getpwnam("nobody")
    ids = "grep -E '^(Uid|Gid|Groups)' /proc/self/status | cut -f2-"
    script = f'{ids}; echo $HOME $USER $LOGNAME; test -n "${NAMES[0]}"'
    done = exec_(host, "--user", "nobody", "--", "sh", "-c", script)
    assert done.code == 0, done
    uids, gids, groups, names = done.out.splitlines()
    assert uids.split() == [str(account.pw_uid)] * 4 and gids.split() == [str(account.pw_gid)] * 4
    assert groups.split() == [str(account.pw_gid)]
    assert names.split() == [account.pw_dir, "nobody", "nobody"]
    assert (
        exec_(
            host, "--user", "nobody", "--", "no-such-command", env={"PATH": f"{tmp_path}:/usr/bin"}
        ).code
        == 127
    )
    private = tmp_path / "private"
    private.write_text("#!/bin/sh\n")
    private.chmod(0o700)
    assert exec_(host, "--user", "nobody", "--", str(private)).code == 126
    assert exec_(host, "--", str(private)).code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root")
def test_who_is_not_root_becomes_nobody_else(host: Host) -> None:
    """Under --root the effective user runs commands as itself alone."""
    assert exec_(host, "--user", "root", "--", "true").code == 125
    assert exec_(host, "--user", str(os.geteuid()), "--", "true").code == 0
