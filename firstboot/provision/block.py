"""The comment block in a text: where it is, what it says, and what only looks like one.

The marker stands alone on its line; every directly following line that begins with ``#`` is of the
block. A block is never read in part: a line in it that does not begin with ``#`` and two spaces (a
bare ``#`` is an empty line), or a key of it further down, is a `Misplaced`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from firstboot.provision.schema import CHECKS

# Words that other comments use as well count only where a block would have them.
_COMMON = {"name", "proxy", "seal", "activation", "erase"}
_ANY = "|".join(CHECKS).encode()
_OURS = "|".join(key for key in CHECKS if key not in _COMMON).encode()
_WORD = b"#byteor-firstboot:"
_MARKER = re.compile(_WORD + rb"[ \t]*\r?(?:\n|\Z)")
_ONE_LINE = re.compile(rb"^#byteor-firstboot:[ \t]*\{", re.MULTILINE)
# By the line end before it, which is found faster than the beginning of a line.
_STRAY = re.compile(rb"\n#(?:[ \t]*(?:%s)|  (?:%s))[ \t]*:" % (_OURS, _ANY))
_BARE = re.compile(rb"[ \t]*(?:%s)[ \t]*:|[ \t]+(?:%s)[ \t]*:" % (_OURS, _ANY))
_NEAR = re.compile(rb"^[ \t]*#[ \t]*byteor[-_ ]?firstboot\b[^\n]*\n?", re.MULTILINE | re.IGNORECASE)
_FOLLOWS = re.compile(rb"[ \t]*#+[ \t]*(?:%s)[ \t]*:|[ \t]*(?:%s)[ \t]*:" % (_ANY, _OURS))


class Misplaced(Exception):
    """A line that makes a block unreadable: where it begins, what is wrong, what to do."""

    def __init__(self, at: int, what: str, hint: str) -> None:
        super().__init__(what)
        self.at, self.hint = at, hint


@dataclass(frozen=True)
class Block:
    """One block: its lines without their ``#``, which begin at `at`; `bare` is one without it."""

    at: int
    text: bytes
    bare: int | None = None


def blocks(part: bytes) -> list[Block]:
    """Return the blocks of a text that say anything; Misplaced for one that is cut."""
    one_line = _ONE_LINE.search(part)
    if one_line:
        raise Misplaced(
            one_line.start(),
            "has the marker of the comment block and settings: the block begins on the next line",
            "#byteor-firstboot: alone on a line, then lines of # and two spaces",
        )
    found, spans = [], []
    for start, at in _markers(part):
        begin, lines = at, []
        while part.startswith(b"#", at):
            end = part.find(b"\n", at) + 1 or len(part)
            lines.append(_line(part[at:end], at))
            at = end
        if any(lines):
            bare = at if _BARE.match(part, at) else None
            found.append(Block(begin, b"\n".join(lines), bare))
        spans.append(range(start, at))
    for span, after in zip(spans, [*(one.start for one in spans[1:]), len(part)]):
        stray = _STRAY.search(part, max(span.stop - 1, 0), after)
        if stray:
            raise Misplaced(
                stray.start() + 1,
                "has a key of the comment block, which ended above it",
                "keep the block together: one run of lines of # and two spaces",
            )
    return found


def _markers(part: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each marker begins, and where the line after it does."""
    at = part.find(_WORD)
    while at >= 0:
        match = _MARKER.match(part, at)
        if match and (at == 0 or part[at - 1 : at] == b"\n"):
            yield at, match.end()
        at = part.find(_WORD, at + 1)


def _line(line: bytes, at: int) -> bytes:
    if not line[1:].strip():
        return b""
    if not line.startswith(b"#  "):
        raise Misplaced(
            at,
            "is in the comment block and is not part of it",
            "begin each line of the block with # and two spaces",
        )
    return line[1:].rstrip(b"\r\n")


def comment_marks(part: bytes) -> Iterator[int]:
    """Yield where each ``#`` stands that is removed from the lines of a block."""
    for _, at in _markers(part):
        while part.startswith(b"#  ", at):
            yield at
            at = part.find(b"\n", at) + 1 or len(part)


def near_miss(part: bytes) -> int | None:
    """Return where a marker begins that is indented or spelled otherwise, and keys follow it."""
    for marker in _NEAR.finditer(part):
        at = marker.end()
        while at < len(part):
            end = part.find(b"\n", at) + 1 or len(part)
            if not part[at:end].strip() or _NEAR.match(part, at):
                break
            if _FOLLOWS.match(part, at):
                return marker.start()
            at = end
    return None
