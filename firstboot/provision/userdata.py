"""User-data bytes to the settings in them: comment block, `write_files` or `byteor:` mapping; plain, MIME or gzip.

The forms are measured in leak-map, section 2.1. A part is searched for the comment block whatever its type; its YAML is
parsed only where a line that is no comment says "byteor", so that other people's user data costs nothing and cannot
stop us. Errors name a part and a line, and never quote one. Jinja is not rendered.
"""

from __future__ import annotations

import base64
import binascii
import email
import email.policy
import re
import zlib
from dataclasses import dataclass
from typing import Any, Iterator, List, Optional

import yaml

from firstboot.errors import Invalid
from firstboot.settings import compose, load_yaml, plain

DROP_PLACE = "/run/byteor-firstboot/settings.yaml"
UNPACKED_LIMIT = 32 << 20
PART_DEPTH = 8
PARTS_LIMIT = 1000
BLOCK = re.compile(rb"^#byteor-firstboot:[ \t]*\r?\n((?:#  [^\n]*(?:\n|\Z))*)", re.MULTILINE)
OURS = re.compile(rb"^(?!\s*#).*byteor", re.MULTILINE)
GZIP = b"\x1f\x8b"
# A whole document in base64, as some platforms store it.
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{32,}={0,2}\s*")


@dataclass(frozen=True)
class Found:
    """One mapping that user data carries, not yet checked against the schema."""

    form: str
    raw: Any


def read(data: bytes, *, where: str) -> Optional[Found]:
    """Return what `data` carries for us, None for nothing; Invalid when it is broken or carries two different mappings."""
    found: List[Found] = []
    for part in _parts(data, where, 0):
        found.extend(_in_part(part, where))
    if not found:
        return None
    if any(other.raw != found[0].raw for other in found[1:]):
        raise Invalid(f"{where} carries two different settings for byteor-firstboot", hint="keep one of them")
    return found[0]


def _parts(data: bytes, where: str, depth: int) -> Iterator[bytes]:
    if depth > PART_DEPTH:
        raise Invalid(f"{where} is packed more than {PART_DEPTH} times")
    if data.startswith(GZIP):
        unpacked = gunzip(data, where=where)
        if unpacked is not None:
            yield from _parts(unpacked, where, depth + 1)
        return
    encoded = b"".join(data.split()) if _BASE64.match(data) else b""
    if encoded and len(encoded) % 4 == 0 and _BASE64.fullmatch(encoded):
        yield from _parts(base64.b64decode(encoded), where, depth + 1)
        return
    head = data[:4096].lower()
    if not (b"content-type:" in head and b"multipart/" in head or head.startswith((b"mime-version:", b"content-type:"))):
        yield data
        return
    message = email.message_from_bytes(data, policy=email.policy.compat32)
    for number, part in enumerate(message.walk()):
        if number > PARTS_LIMIT:
            raise Invalid(f"{where} has more than {PARTS_LIMIT} parts")
        if part.is_multipart():
            continue
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes) and payload != data:
            yield from _parts(payload, where, depth + 1)


def gunzip(data: bytes, *, where: str) -> Optional[bytes]:
    """Unpack within a bound; None when it is not gzip after all."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        out = unpacker.decompress(data, UNPACKED_LIMIT)
    except zlib.error:
        return None
    if unpacker.unconsumed_tail:
        raise Invalid(f"{where} unpacks to more than {UNPACKED_LIMIT} bytes")
    return out


def _in_part(part: bytes, where: str) -> Iterator[Found]:
    part = part[3:] if part.startswith(b"\xef\xbb\xbf") else part
    blocks = [match.group(1) for match in BLOCK.finditer(part)]
    for block in blocks:
        lines = [line[1:].rstrip(b"\r") for line in block.split(b"\n") if line]
        yield Found("comment", load_yaml(b"\n".join(lines), where=f"the comment block in {where}"))
    if not OURS.search(part):
        return
    try:
        yield from _in_yaml(part, where)
    except Invalid:
        if not blocks:
            raise  # else the block has what we need, and cloud-init will complain about the rest


def _in_yaml(part: bytes, where: str) -> Iterator[Found]:
    if part.lstrip().startswith((b"#!", b"#cloud-boothook", b"#include", b"#part-handler")):
        return
    root = compose(part, where=where)
    if not isinstance(root, yaml.MappingNode):
        return
    for key, value in root.value:
        if key.value == "byteor":
            yield Found("mapping", plain(value, where=f"byteor in {where}"))
        elif key.value == "write_files" and isinstance(value, yaml.SequenceNode):
            for entry in value.value:
                yield from _in_entry(entry, where)


def _in_entry(entry: yaml.Node, where: str) -> Iterator[Found]:
    if not isinstance(entry, yaml.MappingNode):
        return
    scalars = {key.value: value.value for key, value in entry.value if isinstance(value, yaml.ScalarNode)}
    if scalars.get("path") != DROP_PLACE:
        return
    where = f"the content of {DROP_PLACE} in {where}"
    yield Found("write_files", load_yaml(_decoded(scalars, where), where=where))


def _decoded(entry: Any, where: str) -> bytes:
    content, steps = str(entry.get("content", "")).encode(), str(entry.get("encoding", "text/plain")).lower()
    names = [name for name in re.split(r"[+]", steps) if name not in ("text/plain", "")]
    if any(name in ("b64", "base64") for name in names):
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except binascii.Error:
            raise Invalid(f"{where} is not base64") from None
    if any(name in ("gz", "gzip") for name in names):
        unpacked = gunzip(content, where=where)
        if unpacked is None:
            raise Invalid(f"{where} is not gzip")
        content = unpacked
    return content
