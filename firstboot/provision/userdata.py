"""User-data bytes to the settings in them: comment block, `write_files` or `byteor:` mapping, in any part.

The forms are measured in CLOUD-INIT.md, section 2.1. A part is searched for the comment block whatever its type (a script may
carry it). Its YAML is composed only where a line that is no comment has our key or our path, and of the tree only our own
nodes become values: other people's user data costs nothing and cannot stop us. Jinja is not rendered, `#include` not
fetched (cloud-init's ``user-data.txt.i`` has what it fetched). Errors name a part and a line, and never quote one.

The marker stands alone on its line. `#byteor-firstboot: {…}` on one line, and a line of the block that names a key of
ours but does not begin with `#` and two spaces, are errors, since whoever wrote them meant something by them.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from firstboot.base.errors import Invalid
from firstboot.provision.parts import Unpacking, gunzip
from firstboot.provision.schema import CHECKS, compose, load_yaml, plain

DROP_PLACE = "/run/byteor-firstboot/settings.yaml"
MAPPING_LIMIT = 256 << 10  # bytes of one mapping of ours
COPIES_LIMIT = 8  # the same mapping may stand in several places
ARCHIVE_LIMIT = 100  # parts of one cloud-config-archive
UTF8_MARK = b"\xef\xbb\xbf"

_BLOCK = re.compile(
    rb"^#byteor-firstboot:[ \t]*(?:\r?\n|\Z)((?:#  [^\n]*(?:\n|\Z))*)", re.MULTILINE
)
_ONE_LINE = re.compile(rb"^#byteor-firstboot:[ \t]*\{", re.MULTILINE)
_ESCAPED = re.compile(rb"#[ \t]*(?:" + "|".join(CHECKS).encode() + rb")[ \t]*:")
# Our key or our path on a line that is no comment. Within one line: `\s` would run on and cost quadratic time.
_OURS = re.compile(
    rb"^(?![ \t]*#)[^\n]*?(?:byteor[\"']?[ \t]*:|\?[ \t]*[\"']?byteor|byteor-firstboot/+settings\.yaml)",
    re.MULTILINE,
)
_NO_YAML = (b"#!", b"#cloud-boothook", b"#include", b"#part-handler")
_JINJA = re.compile(rb"##[ \t]*template:[^\n]*\n")


@dataclass(frozen=True)
class Found:
    """One mapping that user data carries, not yet checked against the schema."""

    form: str
    raw: Any


def read(data: bytes, *, where: str) -> Found | None:
    """Return what `data` carries for us, None for nothing; Invalid when it is broken or carries two different mappings."""
    unpacking = Unpacking(where)
    found: list[Found] = []
    for part in unpacking.parts(data):
        for one in _in_part(part, unpacking):
            if one.raw is not None:
                found.append(one)
            if len(found) > COPIES_LIMIT:
                raise Invalid(
                    f"{where} carries more than {COPIES_LIMIT} settings for byteor-firstboot",
                    hint="keep one",
                )
    if not found:
        return None
    if any(other.raw != found[0].raw for other in found[1:]):
        raise Invalid(
            f"{where} carries two different settings for byteor-firstboot", hint="keep one of them"
        )
    return found[0]


def _in_part(part: bytes, unpacking: Unpacking) -> Iterator[Found]:
    if b"byteor" not in part:
        return
    where = unpacking.where
    part = part[len(UTF8_MARK) :] if part.startswith(UTF8_MARK) else part
    blocks = False
    for match in _BLOCK.finditer(part):
        if _ESCAPED.match(part, match.end()):
            raise Invalid(
                f"a line of the comment block in {where} is not part of it",
                hint="begin each line with # and two spaces",
            )
        lines = [line[1:].rstrip(b"\r") for line in match.group(1).split(b"\n") if line]
        if lines:
            blocks = True
            yield Found("comment", _mapping(b"\n".join(lines), f"the comment block in {where}"))
    if _ONE_LINE.search(part):
        raise Invalid(
            f"the comment block in {where} must begin on the line after its marker",
            hint="#byteor-firstboot: alone on a line, then lines that begin with # and two spaces",
        )
    body = (
        _JINJA.sub(b"", part.lstrip(), count=1)
        if part.lstrip().startswith(b"##")
        else part.lstrip()
    )
    if body.startswith(b"#cloud-config-archive"):
        yield from _in_archive(part, unpacking)
    elif not body.startswith(_NO_YAML) and _OURS.search(part):
        try:
            yield from _in_cloud_config(part, where)
        except Invalid:
            if not blocks:
                raise  # else the block has what we need, and cloud-init will complain about the rest


def _mapping(data: bytes, where: str) -> Any:
    if len(data) > MAPPING_LIMIT:
        raise Invalid(f"{where} is larger than {MAPPING_LIMIT} bytes")
    return load_yaml(data, where=where)


def _in_archive(part: bytes, unpacking: Unpacking) -> Iterator[Found]:
    """Search the parts of a ``#cloud-config-archive``: a list of texts, or of mappings with the text in `content`."""
    root = compose(part, where=unpacking.where)
    items = root.value if isinstance(root, yaml.SequenceNode) else []
    if len(items) > ARCHIVE_LIMIT:
        raise Invalid(f"{unpacking.where} has more than {ARCHIVE_LIMIT} parts")
    for item in items:
        content = _fields(item).get("content") if isinstance(item, yaml.MappingNode) else item
        if isinstance(content, yaml.ScalarNode):
            text = _bytes(content, unpacking.where)
            unpacking.charge(len(text))
            if not text.lstrip().startswith(
                b"#cloud-config-archive"
            ):  # nested ones are not unpacked
                yield from _in_part(text, unpacking)


def _in_cloud_config(part: bytes, where: str) -> Iterator[Found]:
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
    fields = _fields(entry)
    path, content = fields.get("path"), fields.get("content")
    if (
        not isinstance(path, yaml.ScalarNode)
        or posixpath.normpath(path.value) != DROP_PLACE
        or content is None
    ):
        return
    where = f"the content of {DROP_PLACE} in {where}"
    if not isinstance(content, yaml.ScalarNode):
        raise Invalid(f"{where} is not a text")
    encoding = fields.get("encoding")
    named = encoding.value if isinstance(encoding, yaml.ScalarNode) else ""
    yield Found("write_files", _mapping(_decoded(_bytes(content, where), named, where), where))


def _fields(node: yaml.Node) -> dict[str, yaml.Node]:
    """The entries of a mapping by their text keys; keys of other shapes are none of ours."""
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: value for key, value in entries if isinstance(key, yaml.ScalarNode)}


def _bytes(node: yaml.ScalarNode, where: str) -> bytes:
    """The bytes that cloud-init would see: those of a ``!!binary`` are decoded by YAML itself."""
    data: bytes = node.value.encode()
    return _unbase64(data, where) if node.tag == "tag:yaml.org,2002:binary" else data


def _unbase64(data: bytes, where: str) -> bytes:
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        raise Invalid(f"{where} is not base64") from None


def _decoded(content: bytes, encoding: str, where: str) -> bytes:
    """Undo an `encoding` of write_files (cc_write_files.canonicalize_extraction; what it does not know is plain text)."""
    steps = set(encoding.strip().lower().split("+"))
    if steps & {"b64", "base64"}:
        content = _unbase64(content, where)
    if steps & {"gz", "gzip"}:
        unpacked = gunzip(content, limit=MAPPING_LIMIT)
        if unpacked is None:
            raise Invalid(f"{where} is not gzip")
        content = unpacked
    return content
