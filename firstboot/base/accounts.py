"""The agent's account, and falling to another account for good."""

from __future__ import annotations

import os
import pwd

from firstboot.base.errors import LocalFault

AGENT_USER = "byteor-agent"


def agent() -> pwd.struct_passwd:
    """The account that the agent runs as on a host; LocalFault where the package has made none."""
    try:
        return pwd.getpwnam(AGENT_USER)
    except KeyError as error:
        raise LocalFault(
            f"there is no user {AGENT_USER}", hint="systemd-sysusers makes it"
        ) from error


def of(uid: int) -> pwd.struct_passwd:
    """The account of a user id; LocalFault when it has none."""
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise LocalFault(f"user id {uid} has no account", hint=f"run as user id {uid}") from error


def become(account: pwd.struct_passwd) -> None:
    """Fall to `account` with its groups, for good, and make sure of it; LocalFault when this process did not become it."""
    uid, gid = account.pw_uid, account.pw_gid
    try:
        if os.geteuid() == 0:
            os.initgroups(account.pw_name, gid)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
    except OSError as error:
        raise LocalFault(
            f"cannot become {account.pw_name}: {os.strerror(error.errno or 0).lower()}"
        ) from error
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or _returns(uid):
        raise LocalFault(f"this process did not become {account.pw_name}")


def _returns(uid: int) -> bool:
    """True when the way back to root is still open."""
    if uid == 0:
        return False
    try:
        os.setuid(0)
    except OSError:
        return False
    return True
