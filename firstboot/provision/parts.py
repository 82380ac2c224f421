"""Take user data apart: gzip, base64 and MIME undone as cloud-init does it, within bounds.

cloud-init takes bytes for MIME when "mime-version:" stands in the first 4,096
(`user_data.convert_string`, 20.4 to 25.1), so that a cloud-config that merely mentions it goes
through the parser and comes out whole: here too. uuencode, which nobody sends, is not undone. Every
limit is far above what platforms pass on (16 KiB to some MiB) and keeps hostile bytes to seconds.
"""

from __future__ import annotations

import email
import email.policy
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from firstboot.base.errors import Invalid
from firstboot.provision.decode import unbase64

GZIP = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
UNPACKED_LIMIT = 64 << 20  # bytes in all that unpacking may make of one user data
DEPTH_LIMIT = 8
PARTS_LIMIT = 1000
LINES_LIMIT = 300_000  # the standard library's parser costs microseconds a line
BOUNDARIES_LIMIT = 5000  # lines that begin with two dashes: each may be a part
NESTED_LIMIT = 32  # every open multipart is asked about every line
# Bytes of one Content-Type, folded lines included: its parameters cost quadratic time.
HEADER_LIMIT = 2000

_HEAD = 4096  # bytes, as cloud-init looks
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{32,}={0,2}\s*")
_CONTENT_TYPE = re.compile(
    rb"(?:^|[\r\n])content-type:([^\r\n]*(?:\r?\n?[ \t][^\r\n]*)*)", re.IGNORECASE
)


@dataclass(frozen=True)
class Part:
    """One part that is not packed any more; `kind` and `headers` where it was a part of MIME."""

    data: bytes
    kind: str = ""
    headers: str = ""


class Unpacking:
    """One user data being taken apart: its name in messages, and what is left of its budget."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.marked = False  # it is base64 after a UTF-8 mark, which cloud-init does not read
        self._left = UNPACKED_LIMIT

    def charge(self, amount: int) -> None:
        """Take `amount` bytes of work from the budget; Invalid when it is used up."""
        self._left -= amount
        if self._left < 0:
            raise self._beyond(f"unpacks to more than {UNPACKED_LIMIT} bytes")

    def parts(self, data: bytes, depth: int = 0) -> Iterator[Part]:
        """Yield the innermost parts; Invalid when packing is damaged or beyond the bounds."""
        yield from self._parts(Part(data), depth)

    def _parts(self, part: Part, depth: int) -> Iterator[Part]:
        if depth > DEPTH_LIMIT:
            raise self._beyond(f"is packed more than {DEPTH_LIMIT} times")
        inner = self._unpacked(part)
        if inner is None:
            yield part
            return
        for one in inner:
            self.charge(len(one.data))
            yield from self._parts(one, depth + 1)

    def _beyond(self, what: str) -> Invalid:
        return Invalid(f"{self.where} {what}", hint="send less, or pack it in fewer layers")

    def _unpacked(self, part: Part) -> list[Part] | None:
        """Return what is inside `part`, or None when it is not packed."""
        data = part.data
        if data.startswith(GZIP):
            plain = gunzip(data, limit=self._left)
            if plain is None:
                raise Invalid(
                    f"{self.where} begins like gzip and does not unpack", hint="compress it again"
                )
            return [Part(plain, part.kind, part.headers)]
        marked = data.startswith(UTF8_MARK)
        if _BASE64.match(data, len(UTF8_MARK) if marked else 0):
            try:
                plain = unbase64(data[len(UTF8_MARK) :] if marked else data)
            except ValueError:
                pass
            else:
                self.marked = self.marked or marked
                return [Part(plain, part.kind, part.headers)]
        return self._mime(data) if _looks_like_mime(data) else None

    def _mime(self, data: bytes) -> list[Part] | None:
        self._bound(data)
        try:
            message = email.message_from_bytes(data, policy=email.policy.compat32)
            if not message.is_multipart() and message["Content-Type"] is None:
                return None  # a text that only mentions MIME
            found = [_part(one) for _, one in zip(range(PARTS_LIMIT + 1), message.walk())]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            # Hostile parameters (an RFC 2231 number of 5,000 digits, a charset with a null byte)
            # get through the parser.
            raise Invalid(
                f"{self.where} is MIME that cannot be read",
                hint="make it with cloud-init devel make-mime",
            ) from None
        if len(found) > PARTS_LIMIT:
            raise self._beyond(f"has more than {PARTS_LIMIT} parts")
        return [part for part in found if part.data and part.data != data]

    def _bound(self, data: bytes) -> None:
        """Refuse what the standard library's parser would take minutes for."""
        lines = data.count(b"\n")
        if lines > LINES_LIMIT or lines + data.count(b"\r") > 2 * LINES_LIMIT:
            raise self._beyond(f"is MIME of more than {LINES_LIMIT} lines")
        if data.count(b"\n--") + data.count(b"\r--") > BOUNDARIES_LIMIT:
            raise self._beyond(f"has more than {PARTS_LIMIT} parts")
        nested = 0
        for found in _CONTENT_TYPE.finditer(data):
            value = found.group(1)
            nested += value.strip().lower().startswith((b"multipart/", b"message/"))
            if len(value) > HEADER_LIMIT:
                raise self._beyond(f"has a MIME header of more than {HEADER_LIMIT} bytes")
        if nested > NESTED_LIMIT:
            raise self._beyond(f"has more than {NESTED_LIMIT} nested MIME parts")


def _looks_like_mime(data: bytes) -> bool:
    head = data[:_HEAD].lower()
    return (
        b"mime-version:" in head
        or head.startswith(b"content-type:")
        or (b"content-type:" in head and b"multipart/" in head)
    )


def _part(message: Message) -> Part:
    """Return one part with its transfer encoding undone; empty for a container."""
    if message.is_multipart():
        return Part(b"")
    encoding = str(message.get("Content-Transfer-Encoding", "")).strip().lower()
    payload = message.get_payload(decode=True) if "uu" not in encoding else None
    data = payload if isinstance(payload, bytes) else b""
    headers = "\n".join(f"{name}: {value}" for name, value in message.items())
    return Part(data, message.get_content_type(), headers)


def gunzip(data: bytes, *, limit: int) -> bytes | None:
    """Unpack every member, up to one byte beyond `limit`; None when it is damaged or no gzip."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            return packed.read(limit + 1)
    except (OSError, EOFError, zlib.error):
        return None
