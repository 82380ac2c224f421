"""An artifact as it travels (contract 2.4): its metadata, the two parts as one body of known length, and the reply.

The body reads the file once, in blocks, and hashes what it hands out. The last bytes are handed out only when the whole
file was what its metadata says: a request with wrong content is never completed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Callable

from firstboot.base.clock import from_rfc3339
from firstboot.base.documents import IDENTIFIER
from firstboot.base.errors import Corrupt

KINDS = ("incident-bundle", "snapshot", "diagnostic")
LARGEST = 64 << 20  # bytes of one artifact
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
SPEC_HASH = re.compile(r"sha256:[0-9a-f]{64}\Z")


class WrongContent(Corrupt):
    """The file is not, or is no longer, what its metadata says."""


@dataclass(frozen=True)
class ArtifactMetadata:
    """The part `metadata`; `captured_at` is RFC 3339, `deployment_id` and `spec_hash` what was in force."""

    kind: str
    sha256: str
    size: int
    captured_at: str
    deployment_id: str | None = None
    spec_hash: str | None = None

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> ArtifactMetadata:
        """Read what `asdict` made of one; ValueError when a member is not of its shape."""
        found: dict[str, Any] = {name: value.get(name) for name in cls.__dataclass_fields__}
        optional = (("deployment_id", IDENTIFIER), ("spec_hash", SPEC_HASH))
        size = found["size"]
        if found["kind"] not in KINDS or not _matches(_SHA256, found["sha256"]):
            raise ValueError("no kind or sha256")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= LARGEST:
            raise ValueError("no size")
        if any(
            found[name] is not None and not _matches(shape, found[name]) for name, shape in optional
        ):
            raise ValueError("no deployment_id or spec_hash")
        from_rfc3339(str(found["captured_at"]))
        return cls(**found)


def _matches(shape: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and shape.match(value) is not None


@dataclass(frozen=True)
class ArtifactReply:
    """What a 201 or 200 says: the plane has the content, under this id."""

    artifact_id: str
    duplicate: bool

    @classmethod
    def parse(cls, value: Any) -> ArtifactReply:
        """ValueError when there is no id: something said yes that does not know what it was asked."""
        said = value if isinstance(value, dict) else {}
        found: Any = said.get("artifact_id", said.get("id"))
        if not _matches(IDENTIFIER, found):
            raise ValueError("the answer has no well-formed artifact_id")
        return cls(found, said.get("duplicate") is True)


class Multipart:
    """The body of request 8, for `transport`: ``read`` and ``len``. `file` is an open file, read from its start.

    `each` is called with the bytes of the file that were handed out so far.
    """

    def __init__(
        self, metadata: ArtifactMetadata, file: int, *, each: Callable[[int], None] | None = None
    ) -> None:
        boundary = uuid.uuid4().hex
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="metadata"\r\nContent-Type: application/json\r\n\r\n'
            f"{json.dumps(asdict(metadata))}\r\n"
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="artifact"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._length = len(self._head) + metadata.size + len(self._tail)
        self._metadata, self._file, self._each = metadata, file, each
        self._digest, self._sent = hashlib.sha256(), 0

    def __len__(self) -> int:
        return self._length

    def read(self, size: int = -1) -> bytes:
        """At most `size` of the next bytes; WrongContent, in place of the last, when the file was another one."""
        limit = size if size >= 0 else len(self)
        if self._head:
            piece, self._head = self._head[:limit], self._head[limit:]
            return piece
        left = self._metadata.size - self._sent
        if left:
            return self._piece(min(limit, left))
        piece, self._tail = self._tail[:limit], self._tail[limit:]
        return piece

    def _piece(self, limit: int) -> bytes:
        try:
            piece = os.pread(self._file, limit, self._sent)
        except OSError as error:
            # Not an OSError: the transport would take it for the network's.
            raise WrongContent(
                f"the artifact cannot be read: {os.strerror(error.errno or 0).lower()}"
            ) from error
        self._sent += len(piece)
        self._digest.update(piece)
        last = self._sent == self._metadata.size
        if not piece or (last and self._digest.hexdigest() != self._metadata.sha256):
            raise WrongContent("the artifact in the spool is not what was put there")
        if self._each is not None:
            self._each(self._sent)
        return piece
