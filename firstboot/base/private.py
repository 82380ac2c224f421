"""Check and tighten the modes of what only its owner may read or write."""

from __future__ import annotations

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
    files.require_owner(path, facts, 0, owner, hint=hint)
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
    with files.attempt("tighten", path):
        os.chmod(path, stat.S_IMODE(facts.st_mode) & 0o700)
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
    files.require_owner(path, facts, owner)
    mode = stat.S_IMODE(facts.st_mode)
    if mode & 0o022:
        raise LocalFault(f"{path} can be written by others", hint=f"chmod 0700 {path}")
    if mode & 0o077 and tighten:
        with files.attempt("tighten", path):
            os.chmod(path, 0o700)
    return True


def _facts(path: Path) -> os.stat_result | None:
    with files.attempt("look at", path):
        try:
            return os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
