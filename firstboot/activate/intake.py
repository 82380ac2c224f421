"""What the agent laid down for us, read without trusting it: its directory, its names and its bytes may all be planted.

The directory is opened once, and every file by that descriptor; no link is followed in either place, and nothing is
opened that could block. Owners are not looked at: the agent may be any user. A file with a second hard link is not
read, since it may be another file of this host under a name of the agent's. What is not to be read is `Corrupt`; a
bundle is then refused, so that its deployment has an answer.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from firstboot.base import documents, files
from firstboot.base.errors import Corrupt, LocalFault, Untrusted
from firstboot.base.layout import Layout

ENVELOPE = "envelope.json"
KEY_SETS = "keysets.json"
BUNDLE = (
    ".bundle"  # after the digest that was wanted: a stale one is never taken for the next one's
)
REQUEST = "request.json"

REPLY_LIMIT = 1 << 20  # bytes; as every JSON reply (contract 2)
REQUEST_LIMIT = 4 << 10  # bytes

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True)
class Request:
    """What is asked: an id to answer to, and by how many seconds the plane's clock was ahead of this host's at `written_at`."""

    request: str | None = None
    clock_offset_s: float | None = None
    written_at: float | None = None  # the file's time, by this host's clock


class Inbox:
    """A context manager that holds the directory open; an absent one is an empty one."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.inbox
        self._fd: int | None = None

    def __enter__(self) -> Inbox:
        try:
            # The agent's directory is named by root and may be a link of root's; what is in it is the agent's.
            above = os.open(self._path.parent, _DIRECTORY)
            try:
                self._fd = os.open(self._path.name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
            finally:
                os.close(above)
        except FileNotFoundError:
            self._fd = None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Corrupt(
                    f"{self._path} is not a directory, or a symbolic link that is not followed"
                ) from error
            files.fail("open", self._path, error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def envelope(self) -> bytes | None:
        """The newest reply to request 4; None when there is none, Corrupt when it is not to be read."""
        return self._read(ENVELOPE, REPLY_LIMIT)

    def keysets(self) -> bytes | None:
        """The newest reply to request 7; None when there is none, Corrupt when it is not to be read."""
        return self._read(KEY_SETS, REPLY_LIMIT)

    def request(self) -> Request:
        """What the agent asks; without members where it says nothing that can be used."""
        try:
            said = unverified_request(self._read(REQUEST, REQUEST_LIMIT) or b"")
            if self._fd is None:
                return said
            return replace(
                said, written_at=os.stat(REQUEST, dir_fd=self._fd, follow_symlinks=False).st_mtime
            )
        except (LocalFault, OSError):
            return Request()

    @contextmanager
    def bundle(self, sha256: str, expected_size: int) -> Iterator[int | None]:
        """An open descriptor of the bundle that is said to have this digest, None when it has not arrived.

        Untrusted bundle_size when it is larger or smaller, malformed_bundle when it is no regular file. The size is that
        of the moment: whoever copies takes no more than `expected_size` and hashes what it took.
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
                raise Untrusted(
                    "bundle_size", f"the bundle has {size} bytes, and {expected_size} are signed"
                )
            yield fd
        finally:
            os.close(fd)

    def _open(self, name: str) -> int | None:
        """An open regular file of the inbox; never waits, whatever stands there."""
        path = self._path / name
        if self._fd is None:
            return None
        try:
            fd = os.open(name, _FILE, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (
                errno.ELOOP,
                errno.ENXIO,
            ):  # ENXIO: a socket, or a device that is not there
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
            with open(fd, "rb") as stream:
                data = stream.read(limit + 1)
        except OSError as error:
            files.fail("read", path, error)
        if len(data) > limit:
            raise Corrupt(f"{path} is larger than {limit} bytes")
        return data


def unverified_request(data: bytes) -> Request:
    """Parse ``request.json``: each member by itself, None where it is not of its shape."""
    try:
        value = documents.load(data)
    except ValueError:
        return Request()
    if not isinstance(value, dict):
        return Request()
    return Request(
        request=_id(value.get("request")), clock_offset_s=_offset(value.get("clock_offset_s"))
    )


def _id(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F-]{1,64}", value) else None


def _offset(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)  # finite: `wire.load` reads nothing else
    except OverflowError:
        return None
