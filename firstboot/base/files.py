"""Durable private writes, bounded reads that follow no link, overwriting in place: the only writer.

Every write is: private temporary file beside the target, write, fsync, rename, fsync of the directory. Every read has
a size limit and opens a regular file without following a link. `OSError` becomes `LocalFault` here and nowhere else.
Model: SPIRE ``pkg/common/diskutil``, borg ``SaveFile``.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from firstboot.base.errors import Corrupt, LocalFault

JSON_LIMIT = 1 << 20  # bytes; no file of ours comes near

Owner = tuple[int, int]


def fail(doing: str, path: Path, error: OSError) -> NoReturn:
    """Translate an error of the operating system into a LocalFault with a sentence and, where there is one, a hint."""
    # Root is refused by something else than a mode.
    denied = "look at its attributes and mount (lsattr, findmnt)"
    if os.geteuid() != 0:
        denied = f"run as root, or give user id {os.geteuid()} access to {path.parent}"
    hints = {
        errno.ENOSPC: "free some space on the disk",
        errno.EDQUOT: "free some space on the disk",
        errno.EROFS: "the file system is read-only: /var must be writable",
        errno.EACCES: denied,
        errno.EPERM: denied,
    }
    reason = os.strerror(error.errno).lower() if error.errno else "failed"
    raise LocalFault(
        f"cannot {doing} {path}: {reason}", hint=hints.get(error.errno or 0)
    ) from error


def read(path: Path, *, limit: int, private_to: int | None = None) -> bytes | None:
    """Return the bytes of a regular file, None when there is none; LocalFault when it is not to be read.

    A last component that is a link, a file of more than `limit` bytes, a FIFO or device: LocalFault. With
    `private_to` the file must belong to that user id, be readable by nobody else and have one link, since it holds a
    secret. Not checked: the directories above (see `check_private_directory`).
    """
    try:
        # O_NONBLOCK: a FIFO planted in place of the file must not stop a boot.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        if error.errno == errno.ELOOP:
            raise Corrupt(f"{path} is a symbolic link, and is not followed") from error
        fail("read", path, error)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise Corrupt(f"{path} is not a regular file")
        if private_to is not None:
            _require_private(path, facts, private_to)
        with open(fd, "rb", closefd=False) as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        fail("read", path, error)
    finally:
        os.close(fd)
    if len(data) > limit:
        raise Corrupt(f"{path} is larger than {limit} bytes")
    return data


def _require_private(path: Path, facts: os.stat_result, owner: int) -> None:
    if facts.st_uid != owner:
        raise LocalFault(
            f"{path} belongs to user id {facts.st_uid}, not {owner}", hint=f"chown {owner} {path}"
        )
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise LocalFault(f"{path} can be read by others", hint=f"chmod 0600 {path}")
    if facts.st_nlink != 1:
        raise LocalFault(f"{path} has {facts.st_nlink} hard links, and must have one")


def check_private_directory(path: Path, *, owner: int) -> bool:
    """Return True when the directory belongs to `owner` and nobody else may write in it; False when it is absent.

    A directory of the right owner that others may *read* is tightened to 0700 (cloud-init makes it 0755).
    """
    try:
        facts = os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        fail("look at", path, error)
    if not stat.S_ISDIR(facts.st_mode):
        raise LocalFault(f"{path} is not a directory")
    if facts.st_uid != owner:
        raise LocalFault(f"{path} belongs to user id {facts.st_uid}, not {owner}")
    mode = stat.S_IMODE(facts.st_mode)
    if mode & 0o022:
        raise LocalFault(f"{path} can be written by others", hint=f"chmod 0700 {path}")
    if mode & 0o077:
        try:
            os.chmod(path, 0o700, follow_symlinks=True)
        except OSError as error:
            fail("tighten", path, error)
    return True


def read_json(path: Path, *, private_to: int | None = None) -> dict[str, Any] | None:
    """Return the mapping in one of our JSON files, None when there is none; Corrupt when it holds something else."""
    data = read(path, limit=JSON_LIMIT, private_to=private_to)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is damaged: not JSON") from error
    if not isinstance(value, dict) or not isinstance(value.get("v"), int):
        raise Corrupt(f"{path} is damaged: not a mapping with a version")
    return value


def write_json(
    path: Path, value: dict[str, Any], *, mode: int = 0o600, durable: bool = True
) -> None:
    """Write a mapping (its ``v`` included), keys sorted, for programs and for people with a pager."""
    write(
        path,
        (json.dumps(value, sort_keys=True, indent=1) + "\n").encode(),
        mode=mode,
        durable=durable,
    )


def write(
    path: Path, data: bytes, *, mode: int = 0o600, owner: Owner | None = None, durable: bool = True
) -> None:
    """Replace `path` by a file with `data`: after a crash it holds the old bytes or the new ones, whole.

    The temporary file has a fixed name beside the target, so that a killed writer leaves at most one; callers hold
    the lock that belongs to the file. `durable=False` is for tmpfs, where fsync has nothing to do.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        # Private from creation: the mode is widened only when the bytes are complete.
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(data)
                stream.flush()
                if owner is not None:
                    os.fchown(fd, *owner)
                os.fchmod(fd, mode)
                if durable:
                    os.fsync(fd)
            os.rename(temporary, path)
        except BaseException:
            try:
                os.unlink(temporary)
            except OSError:
                pass
            raise
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        fail("write", path, error)


def write_into(
    directory: Path, name: str, data: bytes, *, mode: int, owner: Owner | None = None
) -> None:
    """Make `name` afresh in a directory that another user may own: nothing planted there is written through.

    By directory descriptor, without following a link, `O_EXCL` after unlinking a stale file. Not durable, and not
    atomic for a reader that looks meanwhile: for tmpfs, and for readers that start afterwards.
    """
    path = directory / name
    try:
        above = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            try:
                os.unlink(name, dir_fd=above)
            except FileNotFoundError:
                pass
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(name, flags, 0o600, dir_fd=above), "wb") as stream:
                stream.write(data)
                stream.flush()
                # The mode before the owner: whoever becomes the owner could change it in between.
                os.fchmod(stream.fileno(), mode)
                if owner is not None:
                    os.fchown(stream.fileno(), *owner)
        finally:
            os.close(above)
    except OSError as error:
        fail("write", path, error)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path, mode: int, *, owner: Owner | None = None) -> None:
    """Make a directory (parents 0755) with exactly this mode, or leave an existing one as it is."""
    try:
        if path.is_dir() and not path.is_symlink():
            return
        if not path.parent.is_dir():
            make_directory(path.parent, 0o755)
        os.mkdir(path, 0o700)
        if owner is not None:
            os.chown(path, *owner)
        os.chmod(path, mode)
        sync_directory(path.parent)
    except FileExistsError as error:
        if not path.is_dir() or path.is_symlink():
            fail("make the directory", path, error)
    except OSError as error:
        fail("make the directory", path, error)


def require_room(directory: Path, needed: int) -> None:
    """Raise LocalFault unless `needed` bytes can be written, fsynced, renamed and removed in `directory` now."""
    probe = directory / "room.probe"
    write(probe, b"\0" * needed)
    remove(probe)


def remove(path: Path) -> None:
    """Unlink durably; nothing when it is absent."""
    try:
        os.unlink(path)
        sync_directory(path.parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        fail("remove", path, error)


def overwrite(path: Path, data: bytes) -> None:
    """Replace the bytes of a file in place, on the same blocks, and fsync: the file must have `data`'s length.

    Not an atomic write on purpose: a new file would leave the old blocks, with the token, free on the disk. A write
    that is cut leaves a mixture of old and new bytes of the same length; the next `erase` finishes it.
    """
    try:
        fd = _open_to_overwrite(path)
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode) or facts.st_size != len(data):
                raise LocalFault(f"{path} changed while it was being erased")
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], written)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        fail("overwrite", path, error)


def _open_to_overwrite(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except PermissionError:
        # Without root (--root on a tree of one's own) a 0400 file such as obj.pkl opens only to a mode of ours.
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        if mode & 0o200 or path.is_symlink():
            raise
        os.chmod(path, mode | 0o200)
        try:
            return os.open(path, flags)
        finally:
            os.chmod(path, mode)


def wipe(path: Path) -> None:
    """Overwrite a regular file with zeros, fsync, then unlink it; nothing when it is absent. Links are not followed."""
    try:
        size = os.lstat(path).st_size
    except FileNotFoundError:
        return
    except OSError as error:
        fail("look at", path, error)
    overwrite(path, b"\0" * size)
    remove(path)
