"""Replace every copy of a token by ``x`` at the same length, in each form that it stands in.

Raw text and pickles hold a token as it is; gzip, base64, quoted-printable, comment blocks and the
escapes of JSON and YAML are undone, also inside each other, and what carries the token is written
again at the very same length, so that cloud-init can still read its files. A token of ``x`` alone
reads as "no token". A token that an interrupted overwrite tore apart is not searched for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Callable

from firstboot.provision import decode
from firstboot.provision.block import comment_marks
from firstboot.provision.decode import QUOTED, Edit, Unredactable
from firstboot.provision.parts import DEPTH_LIMIT
from firstboot.provision.schema import SHORTEST_TOKEN

# A level of the reader's may take two here: each layer is undone in the whole text, and once more
# where that leaves another. Then write_files (base64 of gzip) in escapes in a comment.
DEPTH = 2 * DEPTH_LIMIT + 4
WORK_LIMIT = 1 << 30  # bytes that may be decoded of one file
TOO_LARGE = "it unpacks to too much to be searched whole"
_TEXT = bytes(SHORTEST_TOKEN)  # the shortest token, as `_PRINTABLE` shows it
_WORD = re.compile(rb"[!-~]{%d,}" % SHORTEST_TOKEN)
_SOFT_BREAK = re.compile(rb"=\r?\n")  # of quoted-printable
_HALF_ESCAPE = re.compile(rb"(?:\\|=[0-9A-Fa-f]?)\Z")
TRIES = 2 << 20  # stretches of one file that are compared with the marks: some six seconds
VIEW_LIMIT = 64 << 20  # bytes that one file may unpack to for that
VIEW_COST = 100  # bytes that a small text counts more than it has
UNRECOGNISED = "it is too large to be searched for a token that only its mark tells"
GAP = 64  # bytes at most between the pieces of one copy: a line end with what indents the next
_PRINTABLE = bytes(0 if byte in b"\t\n\r" or 32 <= byte < 127 else 1 for byte in range(256))


class TooLarge(Exception):
    """Nothing is known of what else a file holds: to search all of it is too much work."""


@dataclass
class Redacted:
    """A file's bytes without the tokens: how many stood in which encoding, and what stayed why.

    `spans` are where they stood, one a copy; none where something stayed.
    """

    data: bytes
    found: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


def recognise(
    data: bytes, known: Callable[[bytes], bool], lengths: Collection[int]
) -> Iterator[bytes]:
    """Yield the tokens in a file that are known by their marks and `lengths` alone.

    Every stretch of visible characters that is so long is tried, in each form of the text. TooLarge
    where that is too much work: whatever else is in the file is not known.
    """
    tries = TRIES
    for view in _Views().of(data, 0):
        for word in _WORD.findall(view):
            for length in lengths:
                tries -= max(len(word) - length + 1, 0)
                if tries < 0:
                    raise TooLarge(UNRECOGNISED)
                for at in range(len(word) - length + 1):
                    if known(word[at : at + length]):
                        yield word[at : at + length]


class _Views:
    """A text and all that it unpacks to, each once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._left = VIEW_LIMIT

    def of(self, data: bytes, depth: int) -> Iterator[bytes]:
        if hash(data) in self._seen or depth > DEPTH:
            return
        self._seen.add(hash(data))
        yield data
        for stream in decode.gzips(data):
            yield from self._in(stream.text, depth)
        if _TEXT in data.translate(_PRINTABLE):
            for undo in _UNDONE:
                for escaped in undo(data):
                    yield from self._in(escaped.text, depth)
            # A piece of a file lacks the header that says it is quoted-printable.
            yield from self._in(decode.quoted_printable(data).text, depth)
            for _, alignments in decode.Gaps(data).runs():
                for layer in alignments:
                    yield from self._in(layer.text, depth)

    def _in(self, text: bytes, depth: int) -> Iterator[bytes]:
        self._left -= len(text) + VIEW_COST
        if self._left < 0:
            raise TooLarge(UNRECOGNISED)
        if _TEXT in text.translate(_PRINTABLE) or decode.GZIP in text:
            yield from self.of(text, depth + 1)


class Scrubber:
    """The tokens in hand, and what was seen to be free of them: files hold copies of each other."""

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self._tokens = sorted(set(tokens), key=len, reverse=True)  # one may be a part of another
        self._clean: dict[int, int] = {}  # texts, and how deep they were when nothing was found
        self._left = 0
        self._done = Redacted(b"")

    def redact(self, data: bytes) -> Redacted:
        """X out every copy of the tokens in `data`."""
        self._left, self._done = WORK_LIMIT, Redacted(data)
        edits = self._edits(data, ()) if self._tokens else []
        done = self._done
        done.data = decode.applied(data, edits)
        if not done.failed:
            done.spans = _spans(edits, self._tokens)
        return done

    def plain(self, data: bytes) -> Redacted:
        """X out the tokens that stand in `data` as they are, and in no other form."""
        done = Redacted(data)
        for token in self._tokens:
            found = [match.span() for match in re.finditer(re.escape(token), done.data)]
            if found:
                done.found["raw"] += len(found)
                done.spans += found
                done.data = done.data.replace(token, b"x" * len(token))
        return done

    def _edits(self, data: bytes, chain: tuple[str, ...]) -> list[Edit]:
        """Return the edits that x out the tokens in `data` and in whatever it unpacks to."""
        if self._is_clean(data, chain):
            return []
        self._left -= len(data)
        if self._left < 0:
            self._fail(TOO_LARGE)
        if self._left < 0 or len(chain) > DEPTH:
            return []  # deeper than the reader goes
        found: list[Edit] = []
        # gzip before the raw text: it stores what does not deflate as it is, under a checksum.
        # Escapes before a token that may begin or end in the middle of one.
        steps = [self._packed, self._raw]
        if _TEXT in data.translate(_PRINTABLE):  # else there is nothing that is written as text
            steps = [self._packed, self._whole, self._escaped, self._raw, self._base64]
        for step in steps:
            edits = list(step(data, chain))
            found += edits
            data = decode.applied(data, edits)
        if not found:
            self._note_clean(data, chain)
        return found

    def _is_clean(self, data: bytes, chain: tuple[str, ...]) -> bool:
        return self._clean.get(hash(data), DEPTH + 1) <= len(chain)

    def _note_clean(self, data: bytes, chain: tuple[str, ...]) -> None:
        if not self._done.failed:
            self._clean[hash(data)] = len(chain)

    def _fail(self, why: str) -> None:
        if why not in self._done.failed:
            self._done.failed.append(why)

    def _packed(self, data: bytes, chain: tuple[str, ...]) -> Iterator[Edit]:
        for stream in decode.gzips(data):
            inner = self._edits(stream.text, (*chain, "gzip"))
            try:
                if inner:
                    yield stream.rebuilt(inner)
            except Unredactable as error:
                self._fail(str(error))

    def _whole(self, data: bytes, chain: tuple[str, ...]) -> Iterator[Edit]:
        return self._raw(data, chain, whole=True)

    def _raw(self, data: bytes, chain: tuple[str, ...], *, whole: bool = False) -> Iterator[Edit]:
        closed: list[range] | None = None
        for token in self._tokens:
            at = data.find(token)
            while at >= 0:
                if closed is None:  # a stream that could not be rebuilt is left whole
                    closed = [range(one.start, one.end) for one in decode.gzips(data)]
                undone = chain[-1:] == (QUOTED,)
                cut = whole and _cuts(data, at, at + len(token), undone=undone)
                if not cut and not any(at in one for one in closed):
                    self._done.found["+".join(chain) or "raw"] += 1
                    edit = Edit(at, b"x" * len(token))
                    data = decode.applied(data, [edit])
                    yield edit
                at = data.find(token, at + len(token))

    def _escaped(self, data: bytes, chain: tuple[str, ...]) -> Iterator[Edit]:
        for undo in _UNDONE:
            made = [
                edit for layer in undo(data) for edit in self._in_layer(layer, (*chain, layer.name))
            ]
            yield from made
            data = decode.applied(data, made)

    def _base64(self, data: bytes, chain: tuple[str, ...]) -> Iterator[Edit]:
        for run, alignments in decode.Gaps(data).runs():
            if not self._is_clean(run, chain):
                made = [
                    edit for one in alignments for edit in self._in_layer(one, (*chain, "base64"))
                ]
                yield from made
                if not made:
                    self._note_clean(run, chain)

    def _in_layer(
        self, layer: decode.Escaped | decode.Base64, chain: tuple[str, ...]
    ) -> Iterator[Edit]:
        for edit in self._edits(layer.text, chain):
            try:
                yield from list(layer.back(edit))  # all of it, or nothing
            except Unredactable as error:
                self._fail(str(error))


def _spans(edits: Iterable[Edit], tokens: Iterable[bytes]) -> list[tuple[int, int]]:
    """Return where copies stood: a token that is written over lines or with escapes is one."""
    whole = {b"x" * len(token) for token in tokens}
    spans: list[tuple[int, int]] = []
    joined = False
    for edit in sorted(edits, key=lambda edit: edit.at):
        at, end, piece = edit.at, edit.at + len(edit.data), edit.data not in whole
        if joined and piece and at - spans[-1][1] <= GAP:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((at, end))
        joined = piece
    return spans


def _cuts(data: bytes, at: int, end: int, *, undone: bool) -> bool:
    """Return True where what is found may begin or end in the middle of an escape.

    A quote beside one of its own may be that one, doubled; where doubled ones were `undone`, as
    many as it has itself there, and one that ends the scalar. A yes too many costs nothing: what no
    escape explains is found as it stands.
    """
    token = data[at:end]
    if data[at - 1 : at] == b"\\" or _HALF_ESCAPE.search(token):
        return True
    own = len(token) - len(token.rstrip(b"'"))
    after = _SOFT_BREAK.sub(b"", data[end : end + len(token)])
    first = len(token) - len(token.lstrip(b"'"))
    before = data[max(at - len(token), 0) : at]
    return bool(own and len(after) - len(after.lstrip(b"'")) >= (own + 1 if undone else 1)) or bool(
        first and len(before) - len(before.rstrip(b"'")) >= (first + 1 if undone else 1)
    )


def _quoted_printable(data: bytes) -> Iterator[decode.Escaped]:
    # The reader needs the header as well.
    if b"=" in data and (b"rintable" in data or b"RINTABLE" in data):
        yield from filter(None, [decode.quoted_printable(data)])


def _escapes(data: bytes) -> Iterator[decode.Escaped]:
    if b"\\" in data:
        yield from filter(None, [decode.escapes(data)])


def _doubled_quotes(data: bytes) -> Iterator[decode.Escaped]:
    if b"''" in data:
        yield decode.doubled_quotes(data)


def _comments(data: bytes) -> Iterator[decode.Escaped]:
    """Undo comment blocks, in which a quoted scalar may go on over lines."""
    marks = comment_marks(data) if b"\\" in data else ()
    yield from filter(None, [decode.Escaped("comment", data, ((at, at + 1, b"") for at in marks))])


_UNDONE: tuple[Callable[[bytes], Iterator[decode.Escaped]], ...] = (
    _quoted_printable,  # before escapes, which a soft line break may cut
    _escapes,
    _comments,
    _doubled_quotes,
)
