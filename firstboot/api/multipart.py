"""An artifact as it travels (contract 2.4).

Metadata and file are two parts of one body, which reads the file once, in blocks, and hashes what
it hands out. The last bytes are handed out only when the whole file was what its metadata says, so
that a request with wrong content is never completed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Callable, Optional

from firstboot.base import documents
from firstboot.base.documents import Digest, Identifier, Rule, Time, lenient
from firstboot.base.errors import Corrupt

KINDS = ("incident-bundle", "snapshot", "diagnostic")
LARGEST = 64 << 20  # bytes of one artifact
SPEC_HASH = re.compile(r"sha256:[0-9a-f]{64}\Z")
_Kind = Annotated[str, Rule(lambda kind: kind in KINDS, "a kind of artifact")]
_Size = Annotated[int, Rule(lambda size: 0 < size <= LARGEST, "a size of 1 byte to 64 MiB")]
_SpecHash = Annotated[str, Rule(lambda t: bool(SPEC_HASH.match(t)), "sha256: and a digest")]


class WrongContent(Corrupt):
    """The file is not, or is no longer, what its metadata says."""


@dataclass(frozen=True)
class ArtifactMetadata:
    """The part `metadata`; `deployment_id` and `spec_hash` are of what was active then."""

    kind: _Kind
    sha256: Digest
    size: _Size
    captured_at: Time
    deployment_id: Optional[Identifier] = None
    spec_hash: Optional[_SpecHash] = None

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> ArtifactMetadata:
        """Read what `vars` made of one; ValueError for another shape."""
        return documents.parse(cls, value)


@dataclass(frozen=True)
class ArtifactReply:
    """The reply to an upload: the content is stored, under this id."""

    artifact_id: Identifier
    duplicate: bool = lenient(False)

    @classmethod
    def parse(cls, value: Any) -> ArtifactReply:
        """Return the reply; ValueError when there is no id in it."""
        if isinstance(value, dict) and "artifact_id" not in value:
            value = {**value, "artifact_id": value.get("id")}
        return documents.parse(cls, value)


class Multipart:
    """The body of request 8: ``read`` and ``len``, as `transport` wants them.

    `file` is an open descriptor, read from its start; `each` is called with the bytes of it that
    were handed out so far.
    """

    def __init__(
        self, metadata: ArtifactMetadata, file: int, *, each: Callable[[int], None] | None = None
    ) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="metadata"\r\n'
            f"Content-Type: application/json\r\n\r\n{json.dumps(vars(metadata))}\r\n"
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
        """Return at most `size` of the next bytes; WrongContent for another file."""
        limit = size if size >= 0 else len(self)
        if self._head:
            piece, self._head = self._head[:limit], self._head[limit:]
        elif self._sent < self._metadata.size:
            piece = self._piece(min(limit, self._metadata.size - self._sent))
        else:
            piece, self._tail = self._tail[:limit], self._tail[limit:]
        return piece

    def _piece(self, limit: int) -> bytes:
        try:
            piece = os.pread(self._file, limit, self._sent)
        except OSError as error:
            # Not an OSError: the transport would take it for the network's.
            reason = os.strerror(error.errno or 0).lower()
            raise WrongContent(f"the artifact cannot be read: {reason}") from error
        self._sent += len(piece)
        self._digest.update(piece)
        last = self._sent == self._metadata.size
        if not piece or (last and self._digest.hexdigest() != self._metadata.sha256):
            raise WrongContent("the artifact in the spool is not what was put there")
        if self._each is not None:
            self._each(self._sent)
        return piece
