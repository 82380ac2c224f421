"""Erase what cloud-init printed of a broken line of user data.

Where the YAML of user data is broken, PyYAML quotes up to 75 columns of the line, and cloud-init
writes that into its logs and, from 24 on, into ``data/status.json``, which everybody can read
(CLOUD-INIT.md, section 2.2). The host is not enrolled, so the token stays valid: the error says to
mint a new one. Only what the broken document shows is x-ed out, on the lines that name the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from firstboot.base import files, inplace
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision import userdata
from firstboot.provision.erase import places
from firstboot.provision.erase.receipt import Copy, unseen
from firstboot.provision.erase.unfinished import FILE_LIMIT
from firstboot.provision.schema import SHORTEST_TOKEN

_LINE = re.compile(rb"[^\n]*enrollment_token[^\n]*")
_WORD = re.compile(rb"[!-~]{%d,}" % SHORTEST_TOKEN)  # fewer may be anything


def _broken(layout: Layout) -> tuple[bytes, ...]:
    """Return the values of `enrollment_token` in stored user data whose YAML is broken."""
    found: set[bytes] = set()
    for name in places.READ:
        try:
            data = files.read(layout.cloud_instance / name, limit=32 << 20)
        except LocalFault:
            continue
        if data and b"enrollment_token" in data:
            found |= set(userdata.broken_values(data))
    return tuple(sorted(found))


def erase(layout: Layout) -> Iterator[Copy]:
    """Erase them from the files into which cloud-init prints such a line; yield a row for each."""
    values = _broken(layout)
    for path in (*places.logs(layout), layout.path(places.STATUS)) if values else ():
        try:
            held = inplace.read(path, limit=FILE_LIMIT)
            if held is None:
                continue
            data, count = _x_out(held.data, values)
            if count:
                inplace.overwrite(held, data)
                yield Copy(layout.shown(path), {"fragment": count}, "overwritten")
        except LocalFault as error:
            yield unseen(layout, path, str(error))


def _x_out(data: bytes, values: Sequence[bytes]) -> tuple[bytes, int]:
    """X out what begins as one of `values` does, on the lines that name the key; count them."""
    count = 0

    def clean(word: re.Match[bytes]) -> bytes:
        nonlocal count
        text = word.group()
        for value in values:
            at = text.find(value[:SHORTEST_TOKEN])
            if at < 0:
                continue
            end = at
            while end < len(text) and end - at < len(value) and text[end] == value[end - at]:
                end += 1
            count += 1
            text = text[:at] + b"x" * (end - at) + text[end:]
        return text

    return _LINE.sub(lambda line: _WORD.sub(clean, line.group()), data), count
