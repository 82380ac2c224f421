"""``byteor-agent exec``: become a program that has this host's identity in its environment.

The three variables are handed over by execve, after dropping privileges: they stand in no file, no
argument and no process but the command's own. That process, its user and root can read them there
(/proc/PID/environ). Core dumps are off, here and in the command, since one would hold the key.
PR_SET_DUMPABLE is not touched: the kernel clears it when the user changes, and execve sets it again
whatever we say.

Our own failures exit as those of env and docker do: 125, 126 not executable, 127 not found.
"""

from __future__ import annotations

import argparse
import errno
import os
import pwd
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from firstboot.base import accounts
from firstboot.base.errors import ByteorError, NotLaunched
from firstboot.base.layout import Layout
from firstboot.identity import store
from firstboot.identity.store import Identity

PREFIX = "BYTEOR_"
FIRST_INHERITED = 3  # after stdin, stdout and stderr
HELP = """\
Run COMMAND in place of this process, with BYTEOR_API_BASE_URL, BYTEOR_AGENT_ID and
BYTEOR_AGENT_API_KEY set in its environment and written nowhere. With --user it gets that user's
groups, HOME, USER, LOGNAME and SHELL. Core dumps are off in it. Signals and exit code are COMMAND's
own. For root alone.

example: byteor-agent exec --user byteor -- /usr/bin/byteor-runtime --verbose
exit codes of our own: 125 not started (no root, no identity, no such user) · 126 not executable
  127 not found"""


class NotExecutable(NotLaunched):
    """The command exists and cannot be run."""

    exit_code = 126


class NotFound(NotLaunched):
    """There is no such command."""

    exit_code = 127


def exec_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``exec`` takes; COMMAND, after ``--``, is no business of argparse."""
    parser.usage = "%(prog)s [-h] [--root DIR] [-v] [--user USER] -- COMMAND [ARGUMENT ...]"
    parser.description, parser.epilog = HELP, None
    parser.add_argument(
        "--user", metavar="USER", help="run COMMAND as this user, by name or id, not as the caller"
    )


def exec_command(arguments: argparse.Namespace) -> NoReturn:
    """Become the command after ``--``; NotLaunched if that fails.

    Without ``--user`` the command runs as the caller. PATH is searched as that user.
    """
    layout: Layout = arguments.layout
    command: list[str] = arguments.words
    if not command:
        raise NotLaunched("exec needs a command", hint="byteor-agent exec --user USER -- COMMAND")
    if layout.is_host and os.geteuid() != 0:
        raise NotLaunched(
            "only root may open this host's identity",
            hint="run as root, with --user for the command's user",
        )
    account = None if arguments.user is None else _account(arguments.user)
    # Both before privileges are dropped: only root reads the identity.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        variables = environment(store.required(layout), account)
        if account is not None:
            accounts.become(account)
    except ByteorError as error:
        raise NotLaunched(str(error), hint=error.hint) from error
    _close_inherited()
    # Python ignores these two, and what is ignored stays so over an execve.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, variables)  # noqa: S606 - becoming another program
    except OSError as error:
        # A directory of PATH that the user may not search answers "permission denied" for any name.
        is_there = "/" in command[0] or any(
            os.path.lexists(Path(part, command[0])) for part in os.get_exec_path(variables)
        )
        absent = error.errno in (errno.ENOENT, errno.ENOTDIR) or not is_there
        reason = "no such file or directory" if absent else os.strerror(error.errno or 0).lower()
        named = command[0] if is_there else "the command"
        # `from None`: the call that failed had the key among its arguments.
        kind = NotFound if absent else NotExecutable
        raise kind(f"cannot run {named}: {reason}", hint="give its whole path") from None
    except ValueError:
        raise NotLaunched(
            "the command has an empty name or a null byte", hint="byteor-agent exec --help"
        ) from None


def _close_inherited() -> None:
    """Let no descriptor of root's but the standard three reach the command."""
    try:
        fds = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        fds = list(range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    for fd in fds:
        with suppress(OSError):  # the listing's own is closed by now
            os.set_inheritable(fd, fd < FIRST_INHERITED)


def environment(here: Identity, account: pwd.struct_passwd | None) -> dict[str, str]:
    """Return ours with the three variables, and with HOME and the like of a new user."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    if account is not None:
        found.update(
            HOME=account.pw_dir,
            USER=account.pw_name,
            LOGNAME=account.pw_name,
            SHELL=account.pw_shell or "/bin/sh",
        )
    return {
        **found,
        "BYTEOR_API_BASE_URL": here.api_base_url,
        "BYTEOR_AGENT_ID": here.agent_id,
        "BYTEOR_AGENT_API_KEY": here.api_key.reveal(),
    }


def _account(user: str) -> pwd.struct_passwd:
    """Return the account of a name or a user id; NotLaunched if we may not become it."""
    try:
        account = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except (KeyError, ValueError, OverflowError):
        raise NotLaunched("there is no such user", hint="getent passwd lists them") from None
    if os.geteuid() not in (0, account.pw_uid):
        raise NotLaunched(f"only root may become {account.pw_name}", hint="run as root")
    return account
