"""Read a file again with the reader's own decoders: what it can still read is not erased.

The reader is the oracle (contract 7): whatever `userdata` makes of a file, or of a text in a
pickle, a JSON document or XML, must hold no spent token. Nothing of a pickle is executed: its
strings are taken from its opcodes.
"""

from __future__ import annotations

import json
import pickletools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from firstboot.base.errors import Invalid
from firstboot.provision import userdata
from firstboot.provision.schema import SHORTEST_TOKEN, load_yaml

_XML_TEXT = re.compile(rb">([^<>]{%d,})<" % SHORTEST_TOKEN)


class Damaged(Exception):
    """A pickle is damaged: more may stand in it than could be read."""


class Reader:
    """The tokens that no file may give, and the texts that were seen to give none."""

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self._tokens = tuple(tokens)
        self._clean: set[int] = set()

    def reads(self, data: bytes) -> bool:
        """Return True when reading `data`, or a text in it, gives one of the tokens; or Damaged."""
        for text in texts(data):
            key = hash(text)
            if key not in self._clean:
                for spoken in userdata.spoken(text):
                    if any(token in spoken for token in self._tokens):
                        return True
                self._clean.add(key)
        return False

    def gives(self, data: bytes) -> bool:
        """Return True when `data`, read as the drop place is, gives one of the tokens."""
        try:
            value = load_yaml(data, where="it")
        except Invalid:
            return False
        return any(token in text for text in _strings(value) for token in self._tokens)


def texts(data: bytes) -> Iterator[bytes]:
    """Yield `data`, and each text in it where it is a pickle, a JSON document or XML."""
    yield data
    if data.startswith(b"\x80"):
        yield from _pickled(data)
        return
    start = data.lstrip()[:1]
    if start in (b"{", b"["):
        try:
            yield from _strings(json.loads(data))
        except (ValueError, RecursionError):
            pass
    elif start == b"<":
        for match in _XML_TEXT.finditer(data):
            yield match.group(1)


def _pickled(data: bytes) -> Iterator[bytes]:
    try:
        for _, argument, _ in pickletools.genops(data):
            if isinstance(argument, str):
                yield argument.encode("utf-8", "surrogatepass")
            elif isinstance(argument, bytes):
                yield argument
    except Exception as error:  # noqa: BLE001 - whatever damaged bytes lead pickletools to
        raise Damaged("cannot be looked at: its pickle is damaged") from error


def _strings(value: Any) -> Iterator[bytes]:
    if isinstance(value, str):
        yield value.encode("utf-8", "surrogatepass")
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _strings(inner)
