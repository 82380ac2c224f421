"""Check and tighten the modes of what only its owner may read or write."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from firstboot.base import files
from firstboot.base.errors import LocalFault


def check_unwritten(
    path: Path, *, owner: int, one_link: bool = False, hint: str | None = None
) -> None:
    """Raise LocalFault for a file that others than root and `owner` may write; nothing if absent.

    Not checked: a FIFO, link or device in its place, which `files.read` refuses.
    """
    facts = _facts(path)
    if facts is None:
        return
    if facts.st_uid not in (0, owner):
        raise LocalFault(
            f"{path} is owned by user id {facts.st_uid}, not {owner}",
            hint=hint or f"chown {owner} {path}",
        )
    if one_link and facts.st_nlink != 1:
        raise LocalFault(
            f"{path} has {facts.st_nlink} hard links, and must have one", hint=hint or f"rm {path}"
        )
    if stat.S_IMODE(facts.st_mode) & 0o022:
        raise LocalFault(f"{path} can be written by others", hint=hint or f"chmod go-w {path}")


def tighten(path: Path) -> bool:
    """Make a regular file private; return True when others could read it until now."""
    facts = _facts(path)
    if facts is None or not stat.S_ISREG(facts.st_mode) or not facts.st_mode & 0o077:
        return False
    _chmod(path, stat.S_IMODE(facts.st_mode) & 0o700)
    return True


def check_directory(path: Path, *, owner: int, tighten: bool = True) -> bool:
    """Return True for a directory of `owner` that nobody else can write, False for none.

    One that others may *read* is tightened to 0700 (cloud-init makes it 0755), unless the caller
    only looks. LocalFault otherwise.
    """
    facts = _facts(path)
    if facts is None:
        return False
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


def _facts(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        files.fail("look at", path, error)


def _chmod(path: Path, mode: int) -> None:
    try:
        os.chmod(path, mode)
    except OSError as error:
        files.fail("tighten", path, error)
