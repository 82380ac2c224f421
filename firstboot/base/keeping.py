"""Keeping what is damaged or foreign: renamed out of the way under a new name, never replaced, never deleted."""

from __future__ import annotations

import os
from pathlib import Path

from firstboot.base import files
from firstboot.base.errors import LocalFault


def set_aside(path: Path, directory: Path | None = None, *, label: str = "corrupt") -> Path | None:
    """Rename `path` to the first free ``NAME.<label>-<n>`` (in `directory`); return the new path, None if absent."""
    if not os.path.lexists(path):
        return None
    target = _free_name(directory or path.parent, f"{path.name}.{label}-")
    try:
        os.rename(path, target)
        files.sync_directory(target.parent)
        files.sync_directory(path.parent)
    except OSError as error:
        files.fail("set aside", path, error)
    return target


def move_into(path: Path, directory: Path) -> None:
    """Move `path` under its own name into `directory`, durably; nothing when it is absent, LocalFault if taken."""
    target = directory / path.name
    if not os.path.lexists(path):
        return
    if os.path.lexists(target):
        raise LocalFault(f"cannot move {path} aside: {target} exists")
    try:
        os.rename(path, target)
        files.sync_directory(directory)
        files.sync_directory(path.parent)
    except OSError as error:
        files.fail("move aside", path, error)


def _free_name(directory: Path, stem: str) -> Path:
    number = 1
    while os.path.lexists(directory / f"{stem}{number}"):
        number += 1
    return directory / f"{stem}{number}"
