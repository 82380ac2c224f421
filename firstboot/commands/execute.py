"""``byteor-agent exec``: become another program that has this host's identity in its environment, and nowhere else.

The three variables are handed over by execve, after the fall to the other user: they stand in no file, no argument and
no process but the command's own. Who may read them there: that process, its user and root (/proc/PID/environ). Core
dumps are off, here and in the command, since one would hold the key. PR_SET_DUMPABLE is not touched: the kernel
clears it when the user changes, and execve sets it again whatever we say.

Our own failures exit as those of env and docker do: 125, 126 not executable, 127 not found.
"""

from __future__ import annotations

import errno
import os
import pwd
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from firstboot.base import accounts
from firstboot.base.errors import ByteorError, LocalFault, NotLaunched
from firstboot.base.layout import Layout
from firstboot.identity import store
from firstboot.identity.store import Identity

PREFIX = "BYTEOR_"


class NotExecutable(NotLaunched):
    """The command is there and cannot be run."""

    exit_code = 126


class NotFound(NotLaunched):
    """There is no such command."""

    exit_code = 127


def launch(
    layout: Layout, command: list[str], *, user: str | None, environ: Mapping[str, str]
) -> NoReturn:
    """Become `command` with the identity in its environment; NotLaunched (125 to 127) when that cannot be.

    Without `user` the command runs as the caller. PATH is searched as that user.
    """
    if layout.is_host and os.geteuid() != 0:
        raise NotLaunched(
            "only root may open this host's identity",
            hint="run as root, with --user for the command's user",
        )
    account = None if user is None else _account(user)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        here = store.required(layout)
    except ByteorError as error:
        raise NotLaunched(str(error), hint=error.hint) from error
    variables = environment(environ, here, account=account)
    if account is not None:
        _become(account)
    # Python ignores these two, and what is ignored stays so over an execve: the command expects them to work.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, variables)  # noqa: S606 - becoming another program is the point
    except OSError as error:
        absent = error.errno in (errno.ENOENT, errno.ENOTDIR) or not _is_anywhere(
            command[0], variables
        )
        reason = "no such file or directory" if absent else os.strerror(error.errno or 0).lower()
        kind = NotFound if absent else NotExecutable
        # `from None`: the call that failed had the key among its arguments.
        raise kind(f"cannot run {command[0]}: {reason}") from None
    except ValueError:
        raise NotLaunched("the command has an empty name or a null byte") from None


def _is_anywhere(name: str, variables: Mapping[str, str]) -> bool:
    """False when no directory of PATH has it: one that the user may not search says "permission denied" for all names."""
    return "/" in name or any(
        os.path.lexists(Path(part, name)) for part in os.get_exec_path(variables)
    )


def environment(
    environ: Mapping[str, str], here: Identity, *, account: pwd.struct_passwd | None
) -> dict[str, str]:
    """Return `environ` with exactly the three variables of ours, and the new user's HOME, USER, LOGNAME and SHELL."""
    found = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
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
    """The account of a name or a user id; NotLaunched when there is none, or when we may not become it."""
    try:
        account = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise NotLaunched(f"there is no user {user}") from None
    if os.geteuid() not in (0, account.pw_uid):
        raise NotLaunched(f"only root may become {account.pw_name}")
    return account


def _become(account: pwd.struct_passwd) -> None:
    """Fall to `account` for good, before the key is handed on."""
    try:
        accounts.become(account)
    except LocalFault as error:
        raise NotLaunched(str(error)) from error
