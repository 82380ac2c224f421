"""Request 8: an upload is parsed as it streams, checked against its metadata, and stored once per
content.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from tests.controlplane.contract import NotJson, complaint, parse_json, schema
from tests.controlplane.exchange import Exchange, Refusal

METADATA_LIMIT = 16 * 1024
CONTRACT_LIMIT = 64 * 1024 * 1024
OVERLAP = 128  # bytes of the last piece that are searched again, since a credential may lie across two pieces


class _Wrong(Exception):
    """The upload breaks the contract; carries the refusal."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(status, code, detail)


class _Upload:
    """The parts as they come: `metadata` first and small, `file` second and straight to disk."""

    def __init__(self, path: Path, limit: int) -> None:
        self._file: BinaryIO = path.open("wb")
        self._limit = limit
        self._header = b""
        self._value = b""
        self._headers: dict[str, str] = {}
        self._part = ""
        self._raw_metadata = b""
        self._digest = hashlib.sha256()
        self.metadata: dict[str, Any] | None = None
        self.size = 0
        self.complete = False
        self.ended = False

    def close(self) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    # The names below are python-multipart's.

    def on_part_begin(self) -> None:
        self._headers = {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", ""))
        expected = "file" if self.metadata is not None else "metadata"
        self._part = options.get(b"name", b"").decode("latin-1")
        if self._part != expected or self.complete:
            raise _Wrong(422, "invalid_request", "the parts are metadata, then file, and no other")
        if (
            self._part == "metadata"
            and self._headers.get("content-type", "application/json") != "application/json"
        ):
            raise _Wrong(422, "invalid_request", "the part metadata is application/json")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "metadata":
            self._raw_metadata += data[start:end]
            if len(self._raw_metadata) > METADATA_LIMIT:
                raise _Wrong(422, "invalid_request", "the part metadata is too large")
            return
        self.size += end - start
        if self.size > self._limit:
            raise _Wrong(413, "artifact_too_large", f"an artifact has at most {self._limit} bytes")
        piece = memoryview(data)[start:end]
        self._digest.update(piece)
        self._file.write(piece)

    def on_part_end(self) -> None:
        if self._part == "file":
            self.complete = True
            return
        try:
            value = parse_json(self._raw_metadata)
        except NotJson as error:
            raise _Wrong(422, "invalid_request", f"the part metadata: {error}") from error
        wrong = complaint(schema("ArtifactMetadata"), value)
        if wrong is not None:
            raise _Wrong(
                422, "unknown_kind" if wrong.startswith("kind:") else "invalid_request", wrong
            )
        self.metadata = value

    def on_end(self) -> None:
        self.ended = True


async def drain(exchange: Exchange) -> None:
    """Read and forget what is left of a refused upload, so that its sender gets to read the refusal."""
    try:
        async for _ in exchange.request.stream():
            pass
    except (ClientDisconnect, RuntimeError):  # gone, or read already
        pass


async def _receive(exchange: Exchange, upload: _Upload) -> None:
    kind, options = parse_options_header(exchange.request.headers.get("content-type", ""))
    if not options.get(b"boundary"):
        raise _Wrong(400, "invalid_request", "the content type has no boundary")
    names = [name for name in dir(upload) if name.startswith("on_")]
    parser = MultipartParser(options[b"boundary"], {name: getattr(upload, name) for name in names})  # type: ignore[arg-type]
    tail = b""
    try:
        async for piece in exchange.request.stream():
            parser.write(piece)
            seen = (tail + piece).decode("latin-1")
            tail = piece[-OVERLAP:]
            if exchange.plane.spotter.found(seen, encoded=False):
                exchange.violate("secret_misplaced", "a credential in an artifact")
        parser.finalize()
    except MultipartParseError as error:
        raise _Wrong(400, "invalid_request", "the body is not well-formed multipart") from error
    if not upload.ended or not upload.complete or upload.metadata is None:
        raise _Wrong(422, "invalid_request", "a part is missing, or the body ends early")
    if upload.size != upload.metadata["size"] or upload.sha256 != upload.metadata["sha256"]:
        raise _Wrong(422, "digest_mismatch", "size or sha256 of the file differ from the metadata")


async def upload(exchange: Exchange) -> Response:
    """Request 8."""
    plane, agent = exchange.plane, exchange.caller.row
    folder = plane.state / "artifacts"
    draft = folder / f"draft-{secrets.token_hex(8)}"
    limit = int(plane.setting("artifact_limit_bytes"))
    received = _Upload(draft, limit)
    try:
        await _receive(exchange, received)
        exchange.note(metadata=received.metadata, body_bytes=received.size)
        return _keep(exchange, received, draft, agent)
    except _Wrong as wrong:
        # A plane with a lower limit than the contract's refuses what is right by the contract.
        if wrong.refusal.status != 413 or limit >= CONTRACT_LIMIT:
            exchange.violate("artifact", wrong.refusal.detail)
        raise wrong.refusal from wrong
    finally:
        received.close()
        draft.unlink(missing_ok=True)


def _keep(exchange: Exchange, received: _Upload, draft: Path, agent: dict[str, Any]) -> Response:
    assert received.metadata is not None
    store, place = exchange.plane.store, (agent["org"], agent["project"], agent["environment"])
    known = store.one(
        "SELECT artifact_id FROM artifacts WHERE org=? AND project=? AND environment=? AND sha256=?",
        *place,
        received.sha256,
    )
    if known is not None:
        return exchange.reply(200, {"artifact_id": known["artifact_id"], "duplicate": True})
    received.close()
    artifact_id = f"art_{secrets.token_hex(8)}"
    os.replace(draft, draft.with_name(artifact_id))
    store.run(
        "INSERT INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        artifact_id,
        *place,
        agent["agent_id"],
        received.sha256,
        received.size,
        received.metadata["kind"],
        json.dumps(received.metadata),
        store.now(),
    )
    return exchange.reply(201, {"artifact_id": artifact_id, "duplicate": False})
