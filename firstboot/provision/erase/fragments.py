"""Erase what cloud-init printed of a broken line of user data.

Where the YAML of user data is broken, PyYAML quotes up to 75 columns of the line, and cloud-init
writes that into its logs and, from 24 on, into ``data/status.json``, which everybody can read
(CLOUD-INIT.md, section 2.2). The host is not enrolled, so the token stays valid: the error says to
mint a new one. Only what the broken document shows is x-ed out, on the lines that name the key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from firstboot.base import files
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision import userdata
from firstboot.provision.erase import places

SHORTEST = 16  # visible characters: fewer may be anything
_LINE = re.compile(rb"[^\n]*enrollment_token[^\n]*")
_WORD = re.compile(rb"[!-~]{%d,}" % SHORTEST)


def broken(layout: Layout) -> tuple[bytes, ...]:
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


def where(layout: Layout) -> list[places.Place]:
    """Return the files into which cloud-init prints such a line."""
    status = layout.path(places.STATUS)
    return [places.Place(path) for path in (*places.logs(layout), status)]


def x_out(data: bytes, values: Sequence[bytes]) -> tuple[bytes, int]:
    """X out what begins as one of `values` does, on the lines that name the key; count them."""
    count = 0

    def clean(word: re.Match[bytes]) -> bytes:
        nonlocal count
        text = word.group()
        for value in values:
            at = text.find(value[:SHORTEST])
            if at < 0:
                continue
            end = at
            while end < len(text) and end - at < len(value) and text[end] == value[end - at]:
                end += 1
            count += 1
            text = text[:at] + b"x" * (end - at) + text[end:]
        return text

    return _LINE.sub(lambda line: _WORD.sub(clean, line.group()), data), count
