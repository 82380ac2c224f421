"""Read the agent's inbox without trusting it: directory, names and bytes may all be planted.

The directory is opened once, and every file by that descriptor; no link is followed in either
place, and nothing is opened that could block. Owners are not looked at: the agent may be any user.
A file with a second hard link is not read, since it may be another file of this host under a name
of the agent's. What is not to be read is `Corrupt`; a bundle is then refused, so that its
deployment has an answer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from firstboot.base import files
from firstboot.base.errors import Corrupt, LocalFault, Untrusted
from firstboot.base.layout import BUNDLE, ENVELOPE, KEY_SETS, REQUEST, Layout
from firstboot.exchange.inbox import REQUEST_LIMIT, Request, unverified_request


class Inbox:
    """A context manager that holds the directory open; an absent one is an empty one."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.inbox
        self._fd: int | None = None

    def __enter__(self) -> Inbox:
        try:
            # The agent's directory is named by root and may be a link of root's; what is in it is
            # the agent's.
            with files.opened(self._path.parent, os.O_DIRECTORY | os.O_CLOEXEC) as above:
                self._fd = os.open(self._path.name, files.DIRECTORY, dir_fd=above)
        except FileNotFoundError:
            self._fd = None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Corrupt(
                    f"{self._path} is no directory, or a link, and is not used"
                ) from error
            files.fail("open", self._path, error)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def envelope(self) -> bytes | None:
        """Return the newest reply to request 4, None when there is none."""
        return self._read(ENVELOPE, files.JSON_LIMIT)

    def keysets(self) -> bytes | None:
        """Return the newest reply to request 7, None when there is none."""
        return self._read(KEY_SETS, files.JSON_LIMIT)

    def keysets_stamp(self) -> str | None:
        """Return the time (ns) of that reply's file, None when there is none."""
        if self._fd is None:
            return None
        try:
            return str(os.stat(KEY_SETS, dir_fd=self._fd, follow_symlinks=False).st_mtime_ns)
        except OSError:
            return None

    def request(self) -> Request:
        """Return what the agent asks; without members where it says nothing that can be used."""
        try:
            data = self._read(REQUEST, REQUEST_LIMIT)
            if data is None:
                return Request()
            facts = os.stat(REQUEST, dir_fd=self._fd, follow_symlinks=False)
            return unverified_request(data, written_at=facts.st_mtime)
        except (LocalFault, OSError):
            return Request()

    @contextmanager
    def bundle(self, sha256: str, expected_size: int) -> Iterator[int | None]:
        """Open the bundle that is said to have this digest; None when it has not arrived.

        Untrusted bundle_size when it is larger or smaller, malformed_bundle when it is no regular
        file. The size is that of the moment: a copier takes no more than `expected_size` and hashes
        what it took.
        """
        try:
            fd = self._open(sha256 + BUNDLE)
        except Corrupt as error:
            raise Untrusted("malformed_bundle", str(error)) from error
        if fd is None:
            yield None
            return
        try:
            size = os.fstat(fd).st_size
            if size != expected_size:
                why = f"the bundle has {size} bytes, and {expected_size} are signed"
                raise Untrusted("bundle_size", why)
            yield fd
        finally:
            os.close(fd)

    def _open(self, name: str) -> int | None:
        """Open a regular file of the inbox; never wait, whatever stands there."""
        path = self._path / name
        if self._fd is None:
            return None
        try:
            fd = os.open(name, files.READ, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            # ENXIO: a socket, or a device that is not there.
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise Corrupt(f"{path} is not a regular file") from error
            files.fail("read", path, error)
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            os.close(fd)
            raise Corrupt(f"{path} is not a regular file, or has another name elsewhere")
        return fd

    def _read(self, name: str, limit: int) -> bytes | None:
        fd = self._open(name)
        if fd is None:
            return None
        path = self._path / name
        try:
            with files.attempt("read", path):
                return files.read_open(fd, path, limit=limit)
        finally:
            os.close(fd)
