"""Fill, copy, sync, rename, link and remove whole trees, durably.

The writer beside `files`, for what is larger than one small file. Nothing here follows a link below
the path that it is given. In a directory of trees a name that begins with a dot is work that a
power cut may have left half done: the owner of that directory removes such names when it starts.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable

from firstboot.base import files
from firstboot.base.errors import LocalFault
from firstboot.base.files import CREATE, DIRECTORY

PIECE = 256 << 10  # bytes read or written at a time


class Tree:
    """A directory that is being filled. Names are bytes, so that no locale has a say in them."""

    def __init__(self, path: Path, top: int) -> None:
        self._path = path
        self._top = top

    def directory(self, parts: Sequence[bytes]) -> None:
        """Make a directory and those above it, 0755 whatever the umask, where they are missing."""
        with files.attempt("make a directory in", self._path):
            os.close(self._descend(parts))

    def file(self, parts: Sequence[bytes], pieces: Iterable[bytes], *, executable: bool) -> None:
        """Make a new file, 0644 or 0755, and the directories above it."""
        with files.attempt("write a file in", self._path):
            above = self._descend(parts[:-1])
            try:
                fd = os.open(_own(parts[-1]), CREATE, 0o600, dir_fd=above)
            finally:
                os.close(above)
            files.fill(fd, pieces, mode=0o755 if executable else 0o644, durable=False)

    def _descend(self, parts: Sequence[bytes]) -> int:
        """Return an open descriptor of a directory below the top, made where it is missing."""
        here = os.dup(self._top)
        for part in parts:
            try:
                with suppress(FileExistsError):
                    os.mkdir(_own(part), 0o700, dir_fd=here)
                below = os.open(part, DIRECTORY, dir_fd=here)
            finally:
                os.close(here)
            here = below
            os.fchmod(here, 0o755)
        return here


def _own(part: bytes) -> bytes:
    # The second net: the caller has judged the names; one that leads elsewhere is stopped here too.
    if part in (b"", b".", b"..") or b"/" in part:
        raise LocalFault(
            "a name that leads out of its directory was about to be written",
            hint="this is a bug: please report this line",
        )
    return part


@contextmanager
def filling(path: Path) -> Iterator[Tree]:
    """Make the new directory `path` to be filled: 0700, and 0755 when the block ends well."""
    with files.attempt("make the directory", path):
        os.mkdir(path, 0o700)
        top = os.open(path, DIRECTORY)
    try:
        yield Tree(path, top)
        os.fchmod(top, 0o755)
    finally:
        os.close(top)


def copy(
    source: int, target: Path, *, limit: int, each: Callable[[int], None] | None = None
) -> tuple[int, str]:
    """Copy an open file, from its start, into `target`; return (bytes, their SHA-256 in hex).

    The copy is private and durable, and has at most `limit` bytes, whatever the source grows to
    meanwhile. The hash is of what was written, so that nobody can change the bytes between the
    check and their use. `each` is called with the bytes copied so far after each piece. A stale
    `target` is replaced; one that could not be completed is removed.
    """
    digest, size = hashlib.sha256(), 0
    files.remove(target)
    try:
        with files.attempt("copy into", target):
            with os.fdopen(os.open(target, CREATE, 0o600), "wb") as stream:
                while size < limit and (piece := os.pread(source, min(PIECE, limit - size), size)):
                    stream.write(piece)
                    digest.update(piece)
                    size += len(piece)
                    if each is not None:
                        each(size)
                stream.flush()
                os.fsync(stream.fileno())
            files.sync_directory(target.parent)
    except BaseException:
        files.remove(target)
        raise
    return size, digest.hexdigest()


def free_bytes(directory: Path) -> int:
    """Return the bytes that are free for us where `directory` lies."""
    with files.attempt("look at", directory):
        facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize


def complete(staging: Path, final: Path) -> None:
    """Make all below `staging` durable, then rename it to `final`, which must not exist.

    After a power cut `final` is there whole, or not at all.
    """
    if os.path.lexists(final):
        raise LocalFault(f"cannot put {staging} in place: {final} exists", hint=f"remove {final}")
    with files.attempt("complete", final):
        for top, _, names in os.walk(staging, topdown=False, onerror=_raise):
            for name in names:
                with files.opened(Path(top) / name, files.READ) as fd:
                    os.fsync(fd)
            files.sync_directory(Path(top))
        os.rename(staging, final)
        files.sync_directory(final.parent)


def _raise(error: OSError) -> None:
    raise error


def is_no_link(path: Path) -> bool:
    """Return True when something else than a symbolic link is there: it is somebody's own."""
    return os.path.lexists(path) and not path.is_symlink()


def require_link(path: Path) -> None:
    """Raise LocalFault when what is there is no link, and is not to be replaced by one."""
    if is_no_link(path):
        raise LocalFault(
            f"{path} is not a symbolic link, and is not replaced", hint=f"move {path} away"
        )


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` name `target`, atomically: the old target or the new one.

    LocalFault when something that is no link stands there: it is somebody's file, and stays.
    """
    temporary = link.with_name(f".{link.name}.tmp")
    with files.attempt("point the link", link):
        require_link(link)
        files.remove(temporary)
        os.symlink(target, temporary)
        os.rename(temporary, link)
        files.sync_directory(link.parent)


def remove(path: Path) -> None:
    """Delete a tree, or anything else there, durably; a link itself, never its target.

    Nothing when it is absent; a mount point is emptied, and stays. Under a hidden name first: a
    power cut leaves half a tree only where nobody takes it for a whole one.
    """
    gone = path if path.name.startswith(".") else path.with_name(f".{path.name}.gone")
    with files.attempt("remove", path):
        _delete(gone)
        if gone != path and os.path.lexists(path):
            try:
                os.rename(path, gone)
                files.sync_directory(path.parent)
            except OSError as error:
                # overlayfs does not rename a directory of an image's own layer.
                if error.errno not in (errno.EXDEV, errno.EBUSY):
                    raise
                gone = path
            _delete(gone)


def _delete(path: Path) -> None:
    try:
        facts = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(facts.st_mode):
        os.unlink(path)
    else:
        try:
            shutil.rmtree(path)
        except PermissionError:
            # Root is never stopped by a mode; with --root no chmod of somebody's keeps a tree.
            _open_up(path)
            shutil.rmtree(path)
        except OSError as error:
            if error.errno != errno.EBUSY or os.listdir(path):
                raise
    files.sync_directory(path.parent)


def _open_up(directory: Path) -> None:
    os.chmod(directory, 0o700)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _open_up(Path(entry.path))
