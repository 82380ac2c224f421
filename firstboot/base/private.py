"""Tighten modes of what only its owner may read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from firstboot.base import files
from firstboot.base.errors import LocalFault


def tighten(path: Path, *, owner: int, if_unwritten: bool) -> bool:
    """Make a regular file of `owner` private; return True when others could read it until now.

    With `if_unwritten` one that others could write as well, or that has a second name, stays as it
    is: it may hold what somebody else put there. Not checked: the directory, which must be private.
    """
    try:
        facts = os.lstat(path)
    except OSError:
        return False  # who reads it says why
    mode = stat.S_IMODE(facts.st_mode)
    written = if_unwritten and (mode & 0o022 or facts.st_nlink != 1)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != owner or written or not mode & 0o077:
        return False
    _chmod(path, mode & 0o700)
    return True


def check_directory(path: Path, *, owner: int, tighten: bool = True) -> bool:
    """Return True for a directory of `owner` that nobody else can write, False for none.

    One that others may *read* is tightened to 0700 (cloud-init makes it 0755), unless the caller
    only looks. LocalFault otherwise.
    """
    try:
        facts = os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        files.fail("look at", path, error)
    if not stat.S_ISDIR(facts.st_mode):
        raise LocalFault(f"{path} is not a directory", hint=f"move {path} away")
    if facts.st_uid != owner:
        raise LocalFault(
            f"{path} is owned by user id {facts.st_uid}, not {owner}", hint=f"chown {owner} {path}"
        )
    mode = stat.S_IMODE(facts.st_mode)
    if mode & 0o022:
        raise LocalFault(f"{path} can be written by others", hint=f"chmod 0700 {path}")
    if mode & 0o077 and tighten:
        _chmod(path, 0o700)
    return True


def _chmod(path: Path, mode: int) -> None:
    try:
        os.chmod(path, mode)
    except OSError as error:
        files.fail("tighten", path, error)
