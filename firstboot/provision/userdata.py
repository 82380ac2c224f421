"""Find the settings in user data: comment block, `write_files` or `byteor:` mapping, in any part.

A part is searched for the comment block whatever its type (a script may carry it). Its YAML is
composed only where a line that is no comment has our key or one of our paths, and of the tree only
our own nodes become values: other people's user data costs nothing and cannot stop us. `#include`
is not fetched (cloud-init's ``user-data.txt.i`` has what it fetched), and jinja is not rendered:
what an expression stands in is left out. Errors name a line of the file, and never quote one.

A block is never read in part: a line in it that is not of it, or a key of it further down, is an
error. What looks like a form of ours and is none (a marker that is indented or spelled otherwise,
UTF-16, a line without its ``#``) is a `NearMiss`: it stops a host only where nothing else has a
token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from firstboot.base.errors import Invalid
from firstboot.provision import block, schema, writefiles
from firstboot.provision.block import Misplaced
from firstboot.provision.parts import UTF8_MARK, Part, Unpacking
from firstboot.provision.schema import compose, load_yaml, plain
from firstboot.provision.writefiles import DROP_PLACE, TOKEN_FILE

MAPPING_LIMIT = 256 << 10  # bytes of one mapping of ours
COPIES_LIMIT = 8  # the same mapping may stand in several places
ARCHIVE_LIMIT = 100  # parts of one cloud-config-archive
JINJA = "JINJA-EXPRESSION"  # stands for what cloud-init would render

_PATHS = rb"byteor-firstboot(?:\\?/)+settings\.yaml|byteor(?:\\?/)+enrollment-token"
_OURS = re.compile(rb"byteor[\"']?[ \t]*:|" + _PATHS)
_WRITES = re.compile(_PATHS)
# The token as a text names it, also inside of an escaped text; a log may write `=`.
_TOKEN = (
    rb"""enrollment_token\\*["']?[ \t]*[:=][ \t]*\\*["']?([!-~]{%d,})""" % schema.SHORTEST_TOKEN
)
_NAMED = re.compile(_TOKEN)
_VALUE = re.compile(rb"^[^#\n]*" + _TOKEN, re.MULTILINE)
_AFTER = b"\"'\\,}"  # what may follow a value without a gap
_NO_YAML = (b"#!", b"#cloud-boothook", b"#include", b"#part-handler")
_TEMPLATE = re.compile(rb"##[ \t]*template:[^\n]*\n")
_EXPRESSION = re.compile(rb"\{\{[^\n]*?\}\}")
_STATEMENT = re.compile(rb"\{%[^\n]*?%\}|\{#[^\n]*?#\}")


class NearMiss(Invalid):
    """User data that was meant for us and is none: an error where no source has a token."""


@dataclass(frozen=True)
class Found:
    """One mapping that user data carries, not yet checked against the schema."""

    form: str
    raw: Any
    warnings: tuple[str, ...] = ()
    refusal: str | None = None  # why the file that cloud-init writes of it is never used
    rendered: tuple[str, ...] = ()  # keys that only cloud-init's jinja knows


@dataclass
class Reading:
    """The contents of user data: mappings, near misses, and if a script writes our files."""

    where: str
    found: list[Found] = field(default_factory=list)
    misses: list[NearMiss] = field(default_factory=list)
    written_late: bool = False

    def chosen(self) -> Found | None:
        """Return the mapping, None for nothing; Invalid for two, NearMiss for what is none."""
        if not self.found:
            if self.misses:
                raise self.misses[0]
            return None
        if any(other.raw != self.found[0].raw for other in self.found[1:]):
            raise Invalid(
                f"{self.where} carries two different settings for byteor-firstboot",
                hint="keep one of them",
            )
        return self.found[0]


def read(data: bytes, *, where: str) -> Found | None:
    """Return what `data` carries for us, None for nothing; Invalid when it is broken."""
    return examine(data, where=where).chosen()


def examine(data: bytes, *, where: str) -> Reading:
    """Read every part; Invalid when one is broken, its line being named as the file has it."""
    unpacking, reading = Unpacking(where), Reading(where)
    for part in unpacking.parts(data):
        _Part(part, data, unpacking, reading).read()
        if len(reading.found) > COPIES_LIMIT:
            raise Invalid(
                f"{where} carries more than {COPIES_LIMIT} settings for byteor-firstboot",
                hint="keep one",
            )
    if unpacking.marked and reading.found:
        reading.found.clear()
        reading.misses.append(
            NearMiss(
                f"{where} is base64 after a UTF-8 mark (BOM), which cloud-init does not decode",
                hint="save it without the mark",
            )
        )
    return reading


def spoken(data: bytes) -> Iterator[bytes]:
    """Yield every text that reading makes of `data`: what erasing must leave no token in."""
    unpacking, reading = Unpacking("it"), Reading("it")
    try:
        for part in unpacking.parts(data):
            yield part.data
            try:
                _Part(part, data, unpacking, reading).read()
            except Invalid:
                continue
    except Invalid:
        pass
    for found in reading.found:
        yield json.dumps(found.raw, default=str).encode()


def named(data: bytes) -> set[bytes]:
    """Return the tokens that `data` names as ``enrollment_token``; none for what erasing left.

    For a text that no reader reads, such as a log. A placeholder is no token.
    """
    values = {value.rstrip(_AFTER) for value in _NAMED.findall(data)}
    return {value for value in values if is_token(value)}


def is_token(value: bytes) -> bool:
    """Return True for what is neither empty, nor ``x`` alone, nor begins as a placeholder does."""
    return bool(value.strip(b"x")) and value[:1] not in (b"<", b"{", b"$")


def broken_values(data: bytes) -> Iterator[bytes]:
    """Yield the values of `enrollment_token` in the parts of `data` whose YAML is broken."""
    try:
        for part in Unpacking("it").parts(data):
            if _says(part.data, _OURS) and b"enrollment_token" in part.data:
                try:
                    compose(part.data, where="it")
                except Invalid:
                    yield from _VALUE.findall(part.data)
    except Invalid:
        return


class _Part:
    """One part being read; `whole` is the file that it came in, for the numbers of lines."""

    def __init__(self, part: Part, whole: bytes, unpacking: Unpacking, reading: Reading) -> None:
        data = part.data
        self._data = data[len(UTF8_MARK) :] if data.startswith(UTF8_MARK) else data
        self._whole = whole
        self._unpacking = unpacking
        self._reading = reading
        self._where = reading.where

    def read(self) -> None:
        """Add what the part carries to the reading."""
        data = self._data
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            self._near_miss(data.decode("utf-16", "replace").encode())
        if b"yteor" not in data and b"YTEOR" not in data:
            return
        self._reading.written_late |= _says(data, _WRITES)
        blocks = self._blocks()
        body = data.lstrip()
        template = _TEMPLATE.match(body)
        if template:
            body = body[template.end() :]
        if body.startswith(b"#cloud-config-archive"):
            self._archive()
        elif not body.startswith(_NO_YAML) and _says(data, _OURS):
            try:
                self._cloud_config(template is not None)
            except Invalid:
                if not blocks:
                    raise  # else the block has what we need, and cloud-init complains of the rest
        if not blocks and not _WRITES.search(data):
            # A script that writes our file may well speak of us in a comment.
            self._near_miss(data)

    # -- the comment block

    def _blocks(self) -> bool:
        where, found = f"the comment block in {self._where}", False
        try:
            for one in block.blocks(self._data):
                found = True
                if one.bare is not None:
                    self._miss(one.bare, "is a line of the comment block without its #")
                else:
                    self._found("comment", self._mapping(one.text, where, at=one.at))
        except Misplaced as error:
            raise Invalid(
                f"{self._line(error.at)} of {self._where} {error}", hint=error.hint
            ) from None
        return found

    def _near_miss(self, text: bytes) -> None:
        at = block.near_miss(text)
        if at is not None and text is self._data:
            self._miss(at, "is no marker: #byteor-firstboot: stands at the beginning of a line")
        elif at is not None:
            self._reading.misses.append(
                NearMiss(f"{self._where} is UTF-16", hint="save it as UTF-8")
            )

    def _miss(self, at: int, what: str) -> None:
        self._reading.misses.append(
            NearMiss(
                f"{self._line(at)} of {self._where} {what}",
                hint="#byteor-firstboot: alone on a line, then lines of # and two spaces",
            )
        )

    # -- cloud-config

    def _archive(self) -> None:
        """Search the parts of a ``#cloud-config-archive``: texts, or mappings with a `content`."""
        root = compose(self._data, where=self._where)
        items = root.value if isinstance(root, yaml.SequenceNode) else []
        if len(items) > ARCHIVE_LIMIT:
            raise Invalid(
                f"{self._where} has more than {ARCHIVE_LIMIT} parts", hint="send fewer parts"
            )
        for item in items:
            content = (
                writefiles.fields(item).get("content")
                if isinstance(item, yaml.MappingNode)
                else item
            )
            if isinstance(content, yaml.ScalarNode):
                inner = writefiles.bytes_of(content, self._where)
                self._unpacking.charge(len(inner))
                if not inner.lstrip().startswith(b"#cloud-config-archive"):  # nested: not unpacked
                    _Part(Part(inner), self._whole, self._unpacking, self._reading).read()

    def _cloud_config(self, jinja: bool) -> None:
        data = self._data
        if jinja:
            data = _STATEMENT.sub(b"", _EXPRESSION.sub(JINJA.encode(), data))
        try:
            root = compose(self._shift(0) + data, where=self._where)
        except Invalid as error:
            hint = error.hint
            if jinja:
                hint = "jinja is not rendered here: byteor-firstboot check-userdata cannot judge it"
            if b"enrollment_token" in data:
                hint = (
                    "cloud-init prints the broken line into its logs, the journal and the "
                    "console: mint a new token, and check-userdata first"
                )
            raise Invalid(str(error), hint=hint) from None
        if not isinstance(root, yaml.MappingNode):
            return
        for key, value in root.value:
            if key.value == "byteor":
                self._found("mapping", plain(value, where=f"byteor in {self._where}"))
            elif key.value == "write_files":
                self._write_files(value)

    def _write_files(self, node: yaml.Node) -> None:
        if not isinstance(node, yaml.SequenceNode):
            if writefiles.is_ours(writefiles.text(writefiles.fields(node).get("path"))):
                raise Invalid(
                    f"write_files in {self._where} is a mapping, and must be a list",
                    hint="put a dash before path",
                )
            return
        entries = [writefiles.fields(entry) for entry in node.value]
        entries.sort(
            key=lambda entry: writefiles.true(entry.get("defer"))
        )  # as cloud-init writes them
        written: dict[str, tuple[bytes, dict[str, yaml.Node]]] = {}
        for entry in entries:
            path = writefiles.normal(writefiles.text(entry.get("path")))
            if path in (DROP_PLACE, TOKEN_FILE):
                content = writefiles.content_of(entry, f"the content of {path} in {self._where}")
                if writefiles.true(entry.get("append")) and path in written:
                    content = written[path][0] + content
                self._unpacking.charge(len(content))
                written[path] = content, entry
        settings, bare = written.get(DROP_PLACE), written.get(TOKEN_FILE)
        if settings is not None:
            content, entry = settings
            raw = self._mapping(content, f"the content of {DROP_PLACE} in {self._where}")
            if bare is None or (isinstance(raw, dict) and "enrollment_token" in raw):
                self._found("write_files", raw, *writefiles.permitted(DROP_PLACE, entry))
                return
        if bare is not None:
            content, entry = bare
            token = content.decode("ascii", "replace").strip()
            self._found(
                "write_files", {"enrollment_token": token}, *writefiles.permitted(TOKEN_FILE, entry)
            )

    # -- what all forms share

    def _mapping(self, data: bytes, where: str, *, at: int | None = None) -> Any:
        if len(data) > MAPPING_LIMIT:
            raise Invalid(f"{where} is larger than {MAPPING_LIMIT} bytes", hint="shorten it")
        return load_yaml((self._shift(at) if at is not None else b"") + data, where=where)

    def _found(
        self, form: str, raw: Any, warning: str | None = None, refusal: str | None = None
    ) -> None:
        warnings = [warning] if warning else []
        rendered: list[str] = []
        if isinstance(raw, dict):
            rendered = [key for key, value in raw.items() if JINJA in str(value)]
            if "enrollment_token" in rendered:
                raise Invalid(
                    f"enrollment_token in {self._where} is a jinja expression: it is not rendered",
                    hint="put the token itself there",
                )
            raw = {key: value for key, value in raw.items() if key not in rendered}
            warnings += [f"{key} is rendered by jinja: it cannot be judged" for key in rendered]
        if raw is not None:
            self._reading.found.append(Found(form, raw, tuple(warnings), refusal, tuple(rendered)))

    def _line(self, at: int) -> str:
        """Name the line of the file that a place of this part is in."""
        before = self._data.count(b"\n", 0, at) + 1
        start = self._whole.find(self._data)
        if start < 0:
            return f"line {before} of a part"
        return f"line {before + self._whole.count(bytes([10]), 0, start)}"

    def _shift(self, at: int) -> bytes:
        """Return as many line ends as stand before a place, so that errors name the file's line."""
        start = self._whole.find(self._data)
        before = self._data.count(b"\n", 0, at)
        return b"\n" * (before + (self._whole.count(b"\n", 0, start) if start > 0 else 0))


def _says(data: bytes, pattern: re.Pattern[bytes]) -> bool:
    """Return True where a line that is no comment has our key, or one of our paths."""
    at = data.find(b"byteor")
    while at >= 0:
        # `? byteor` is a key, too, and its colon is on another line.
        asked = data[max(at - 16, 0) : at].rstrip(b" \t\"'").endswith(b"?")
        if pattern.match(data, at) or (asked and pattern is _OURS):
            begin = data.rfind(b"\n", 0, at) + 1
            if data[begin:at].lstrip(b" \t")[:1] != b"#":
                return True
            at = data.find(b"\n", at)  # a line is judged once
            if at < 0:
                return False
        at = data.find(b"byteor", at + 1)
    return False
