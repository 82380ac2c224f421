"""Read, write, set aside, overwrite and lock small files, durably.

Every write is: private temporary file beside the target, write, fsync, rename, fsync of the
directory. Every read has a size limit and opens a regular file without following a link. `OSError`
becomes `LocalFault` here and in `trees`, and nowhere else. Models: SPIRE ``pkg/common/diskutil``,
borg ``SaveFile``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any, Callable, NoReturn

from firstboot.base.clock import monotonic
from firstboot.base.errors import Corrupt, LocalFault, NoRoom

JSON_LIMIT = 1 << 20  # bytes, of a reply (contract 2) and of every file of ours
LOCK_WAIT_S, LOCK_POLL_S = 30.0, 0.05  # contract 5

Owner = tuple[int, int]

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def fail(doing: str, path: Path, error: OSError) -> NoReturn:
    """Raise an error of the operating system as a LocalFault with a sentence and a hint."""
    # Root is refused by something else than a mode.
    denied = "check its attributes and mount (lsattr, findmnt)"
    if os.geteuid() != 0:
        denied = "run as root"
    hints = {
        errno.ENOSPC: "free some space on the disk",
        errno.EDQUOT: "free some space on the disk",
        errno.EROFS: "the file system is read-only: /var must be writable",
        errno.EACCES: denied,
        errno.EPERM: denied,
    }
    reason = os.strerror(error.errno).lower() if error.errno else "failed"
    hint = hints.get(error.errno or 0, f"check {path} and its file system (ls -ld, findmnt, dmesg)")
    kind = NoRoom if error.errno in (errno.ENOSPC, errno.EDQUOT) else LocalFault
    raise kind(f"cannot {doing} {path}: {reason}", hint=hint) from error


@contextmanager
def attempt(doing: str, path: Path) -> Iterator[None]:
    """Do the block; an error of the operating system in it ends as `fail` says."""
    try:
        yield
    except OSError as error:
        fail(doing, path, error)


@contextmanager
def opened(path: Path | str, flags: int, *, dir_fd: int | None = None) -> Iterator[int]:
    """Hold a descriptor of what stands at `path` until the block ends; OSError is the caller's."""
    fd = os.open(path, flags, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def read(path: Path, *, limit: int, private_to: int | None = None) -> bytes | None:
    """Return the bytes of a regular file, None when there is none.

    Corrupt: the last component is a link, or a file of more than `limit` bytes, a FIFO or device.
    LocalFault: it cannot be read. With `private_to` the file must be owned by that user id, be
    readable by nobody else and have one link, since it holds a secret. Not checked: the directories
    above (see `private.check_directory`).
    """
    found = read_with_facts(path, limit=limit, private_to=private_to)
    return found[0] if found is not None else None


def read_with_facts(
    path: Path, *, limit: int, private_to: int | None = None
) -> tuple[bytes, os.stat_result] | None:
    """Do as `read`, and return what fstat said of the file that was read."""
    try:
        # O_NONBLOCK: a FIFO planted in place of the file must not stop a boot.
        with opened(path, READ) as fd:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise Corrupt(f"{path} is not a regular file")
            if private_to is not None:
                _require_private(path, facts, private_to)
            return read_open(fd, path, limit=limit), facts
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Corrupt(
                f"{path} is a symbolic link, and is not followed",
                hint="put the file itself in its place",
            ) from error
        fail("read", path, error)


def read_open(fd: int, path: Path, *, limit: int) -> bytes:
    """Return the bytes of an open file; Corrupt when it has more than `limit`."""
    with open(fd, "rb", closefd=False) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise Corrupt(f"{path} is larger than {limit} bytes")
    return data


def require_owner(path: Path, facts: os.stat_result, *owners: int, hint: str | None = None) -> None:
    """Raise LocalFault unless the file belongs to one of `owners`, the last of whom should."""
    if facts.st_uid not in owners:
        raise LocalFault(
            f"{path} is owned by user id {facts.st_uid}, not {owners[-1]}",
            hint=hint or f"chown {owners[-1]} {path}",
        )


def _require_private(path: Path, facts: os.stat_result, owner: int) -> None:
    require_owner(path, facts, owner)
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise LocalFault(f"{path} can be read by others", hint=f"chmod 0600 {path}")
    if facts.st_nlink != 1:
        raise LocalFault(
            f"{path} has {facts.st_nlink} hard links, and must have one",
            hint=f"find the others with: find / -xdev -samefile {path}",
        )


def read_json(path: Path, *, private_to: int | None = None) -> dict[str, Any] | None:
    """Return the object in one of our JSON files, None when there is none; else Corrupt."""
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
    """Write an object (its ``v`` included), keys sorted, for programs and people with a pager.

    LocalFault, and nothing written, when `read_json` would refuse it for its size.
    """
    data = (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()
    if len(data) > JSON_LIMIT:
        raise LocalFault(
            f"{path} would have {len(data)} bytes, more than {JSON_LIMIT}",
            hint="this is a bug: please report this line",
        )
    write(path, data, mode=mode, durable=durable)


def write(
    path: Path, data: bytes, *, mode: int = 0o600, owner: Owner | None = None, durable: bool = True
) -> None:
    """Replace `path` atomically: after a crash it holds the old bytes or the new ones, whole.

    The temporary file has a fixed name beside the target, so that a killed writer leaves at most
    one; callers hold the lock that belongs to the file. `durable=False` is for tmpfs, where fsync
    has nothing to do.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with attempt("write", path):
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        fd = os.open(temporary, CREATE, 0o600)
        try:
            fill(fd, [data], mode=mode, owner=owner, durable=durable)
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        if durable:
            sync_directory(path.parent)


def fill(
    fd: int, pieces: Iterable[bytes], *, mode: int, owner: Owner | None = None, durable: bool
) -> None:
    """Write a new file that was opened with `CREATE` and 0600, and close it; raises OSError."""
    with os.fdopen(fd, "wb") as stream:
        stream.writelines(pieces)
        stream.flush()
        # The mode is widened only when the bytes are complete, and before the owner changes: the
        # new one could change it in between.
        os.fchmod(fd, mode)
        if owner is not None:
            os.fchown(fd, *owner)
        if durable:
            os.fsync(fd)


def create(path: Path, data: bytes, *, mode: int) -> None:
    """Make `path` whole and durable; LocalFault when it exists, which then stays as it is."""
    made = path.with_name(f".{path.name}.new")
    write(made, data, mode=mode)
    try:
        with attempt("make", path):
            os.link(made, path)
            sync_directory(path.parent)
    finally:
        remove(made)


def write_into(
    directory: Path, name: str, data: bytes, *, mode: int, owner: Owner | None = None
) -> None:
    """Create `name` anew in a directory that another user may own, writing through nothing there.

    By directory descriptor, without following a link, `O_EXCL` after unlinking a stale file. Not
    durable, and not atomic for a reader that looks meanwhile: for tmpfs, and for readers that start
    afterwards.
    """
    with attempt("write", directory / name), opened(directory, DIRECTORY) as above:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=above)
        fd = os.open(name, CREATE, 0o600, dir_fd=above)
        fill(fd, [data], mode=mode, owner=owner, durable=False)


def names(directory: Path) -> list[str]:
    """Return the names in a directory, in no order; none where there is no such directory."""
    with attempt("look into", directory):
        try:
            return os.listdir(directory)
        except FileNotFoundError:
            return []


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as fd:
        os.fsync(fd)


def make_directory(path: Path, mode: int, *, owner: Owner | None = None) -> None:
    """Make a directory (parents 0755) with exactly this mode, or leave an existing one as it is."""
    with attempt("make the directory", path):
        if not path.parent.is_dir():
            make_directory(path.parent, 0o755)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if path.is_dir() and not path.is_symlink():
                return
            raise
        if owner is not None:
            os.chown(path, *owner)
        os.chmod(path, mode)
        sync_directory(path.parent)


def require_room(directory: Path, needed: int) -> None:
    """Write, fsync, rename and remove `needed` bytes in `directory`; LocalFault if that fails."""
    probe = directory / "room.probe"
    write(probe, b"\0" * needed)
    remove(probe)


def remove(path: Path) -> None:
    """Unlink durably; nothing when it is absent."""
    with attempt("remove", path), suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(path.parent)


def set_aside(
    path: Path, directory: Path | None = None, *, label: str = "corrupt", stays: bool = False
) -> Path | None:
    """Rename `path` to the first free ``NAME.<label>-<n>``; return that, None if absent.

    For what is damaged or foreign: never replaced, never deleted. It goes to `directory`, else
    stays where it is. With `stays` it keeps its own name too, until a successor replaces it.
    """
    if not os.path.lexists(path):
        return None
    number = 1
    while os.path.lexists(target := (directory or path.parent) / f"{path.name}.{label}-{number}"):
        number += 1
    _rename("set aside", path, target, by=os.link if stays else os.rename)
    return target


def move_into(path: Path, directory: Path) -> None:
    """Move `path` under its own name into `directory`, durably; nothing when it is absent."""
    target = directory / path.name
    if not os.path.lexists(path):
        return
    if os.path.lexists(target):
        raise LocalFault(f"cannot move {path}: {target} exists", hint=f"move {target} away")
    _rename("move", path, target)


def _rename(
    doing: str, path: Path, target: Path, *, by: Callable[[Path, Path], None] = os.rename
) -> None:
    with attempt(doing, path):
        by(path, target)
        sync_directory(target.parent)
        sync_directory(path.parent)


@contextmanager
def locked(
    path: Path, *, wait_s: float = LOCK_WAIT_S, busy: Callable[[], Exception]
) -> Iterator[int]:
    """Hold ``flock`` on `path`, open; raise what `busy` makes after `wait_s` seconds.

    The lock goes with its holder's process. Its file is made if absent and never unlinked: a second
    process could otherwise lock a file that has no name any more.
    """
    with attempt("lock", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    pause, limit = Event(), monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() >= limit:
                    raise busy() from None
                pause.wait(LOCK_POLL_S)
        yield fd
    finally:
        os.close(fd)
