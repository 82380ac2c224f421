"""Look up accounts, and drop privileges to one permanently."""

from __future__ import annotations

import os
import pwd

from firstboot.base.errors import LocalFault

AGENT_USER = "byteor-agent"


def agent() -> pwd.struct_passwd:
    """Return the account that the agent runs as on a host; LocalFault where there is none."""
    try:
        return pwd.getpwnam(AGENT_USER)
    except KeyError as error:
        raise LocalFault(f"there is no user {AGENT_USER}", hint="run systemd-sysusers") from error


def of(uid: int) -> pwd.struct_passwd:
    """Return the account of a user id; LocalFault when it has none."""
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise LocalFault(f"user id {uid} has no account", hint=f"run as user id {uid}") from error


def become(account: pwd.struct_passwd) -> None:
    """Drop privileges to `account` permanently, and verify it; LocalFault if that fails."""
    uid, gid = account.pw_uid, account.pw_gid
    try:
        if os.geteuid() == 0:
            os.initgroups(account.pw_name, gid)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise LocalFault(
            f"cannot become {account.pw_name}: {reason}", hint="run as root"
        ) from error
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or _returns(uid):
        raise LocalFault(f"this process did not become {account.pw_name}", hint="run as root")


def _returns(uid: int) -> bool:
    """Return True when the way back to root is still open."""
    try:
        os.setuid(0)
    except OSError:
        return False
    return uid != 0
