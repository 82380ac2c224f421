"""User-data bytes to their innermost parts: gzip, base64 and MIME undone as cloud-init does it, within bounds.

cloud-init takes bytes for MIME when "mime-version:" stands in the first 4,096 (`user_data.convert_string`, 20.4 to
25.1), so that a cloud-config that merely mentions it goes through the parser and comes out whole: here too. Every limit
is far above what platforms pass on (16 KiB to some MiB) and keeps hostile bytes to seconds. No YAML is looked at.
"""

from __future__ import annotations

import base64
import email
import email.policy
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from email.message import Message

from firstboot.base.errors import Invalid

GZIP = b"\x1f\x8b"
UNPACKED_LIMIT = 64 << 20  # bytes in all that unpacking may make of one user data
DEPTH_LIMIT = 8
PARTS_LIMIT = 1000
LINES_LIMIT = 300_000  # the standard library's parser costs microseconds a line
BOUNDARIES_LIMIT = 5000  # lines that begin with two dashes: each may be a part
NESTED_LIMIT = 32  # every open multipart is asked about every line
HEADER_LIMIT = (
    2000  # bytes of one Content-Type, folded lines included: its parameters cost quadratic time
)

_HEAD = 4096  # bytes, as cloud-init looks
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{32,}={0,2}\s*")
_CONTENT_TYPE = re.compile(
    rb"(?:^|[\r\n])content-type:([^\r\n]*(?:\r?\n?[ \t][^\r\n]*)*)", re.IGNORECASE
)


class Unpacking:
    """One user data being taken apart: the name it has in messages, and what is left of its budget."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._left = UNPACKED_LIMIT

    def charge(self, amount: int) -> None:
        """Take `amount` bytes of work from the budget; Invalid when it is used up."""
        self._left -= amount
        if self._left < 0:
            raise Invalid(f"{self.where} unpacks to more than {UNPACKED_LIMIT} bytes")

    def parts(self, data: bytes, depth: int = 0) -> Iterator[bytes]:
        """Yield every part that is not packed any more; Invalid when packing is damaged or beyond the bounds."""
        if depth > DEPTH_LIMIT:
            raise Invalid(f"{self.where} is packed more than {DEPTH_LIMIT} times")
        inner = self._unpacked(data)
        if inner is None:
            yield data
            return
        for part in inner:
            self.charge(len(part))
            yield from self.parts(part, depth + 1)

    def _unpacked(self, data: bytes) -> list[bytes] | None:
        """What is inside `data`, or None when it is not packed."""
        if data.startswith(GZIP):
            plain = gunzip(data, limit=self._left)
            if plain is None:
                raise Invalid(
                    f"{self.where} begins like gzip and does not unpack", hint="compress it again"
                )
            return [plain]
        encoded = b"".join(data.split()) if _BASE64.match(data) else b""
        if encoded and len(encoded) % 4 == 0 and _BASE64.fullmatch(encoded):
            return [base64.b64decode(encoded)]
        return self._mime(data) if _looks_like_mime(data) else None

    def _mime(self, data: bytes) -> list[bytes] | None:
        self._bound(data)
        try:
            message = email.message_from_bytes(data, policy=email.policy.compat32)
            if not message.is_multipart() and message["Content-Type"] is None:
                return None  # a text that only mentions MIME
            found = [_payload(part) for _, part in zip(range(PARTS_LIMIT + 1), message.walk())]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            # Hostile parameters (an RFC 2231 number of 5,000 digits, a charset with a null byte) get through the parser.
            raise Invalid(f"{self.where} is MIME that cannot be read") from None
        if len(found) > PARTS_LIMIT:
            raise Invalid(f"{self.where} has more than {PARTS_LIMIT} parts")
        return [payload for payload in found if payload and payload != data]

    def _bound(self, data: bytes) -> None:
        """Refuse, before it is parsed, what the standard library's parser would take minutes for."""
        if (
            data.count(b"\n") + data.count(b"\r") > 2 * LINES_LIMIT
            or data.count(b"\n") > LINES_LIMIT
        ):
            raise Invalid(f"{self.where} is MIME of more than {LINES_LIMIT} lines")
        if data.count(b"\n--") + data.count(b"\r--") > BOUNDARIES_LIMIT:
            raise Invalid(f"{self.where} has more than {PARTS_LIMIT} parts")
        nested = 0
        for found in _CONTENT_TYPE.finditer(data):
            value = found.group(1)
            nested += value.strip().lower().startswith((b"multipart/", b"message/"))
            if len(value) > HEADER_LIMIT:
                raise Invalid(f"{self.where} has a MIME header of more than {HEADER_LIMIT} bytes")
        if nested > NESTED_LIMIT:
            raise Invalid(f"{self.where} has more than {NESTED_LIMIT} nested MIME parts")


def _looks_like_mime(data: bytes) -> bool:
    head = data[:_HEAD].lower()
    return (
        b"mime-version:" in head
        or head.startswith(b"content-type:")
        or (b"content-type:" in head and b"multipart/" in head)
    )


def _payload(part: Message) -> bytes:
    """The bytes of one part, its transfer encoding undone; empty for a container."""
    if part.is_multipart():
        return b""
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def gunzip(data: bytes, *, limit: int) -> bytes | None:
    """Unpack every member, up to one byte more than `limit`; None when it is damaged, cut or no gzip at all."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            return packed.read(limit + 1)
    except (OSError, EOFError, zlib.error):
        return None
