"""This boot's journal: searched for a token, and emptied when an operator asks for it.

The journal keeps what cloud-init's stages print. Its files are not overwritten in place: journald
writes them, and compresses long fields. `journalctl` rotates them and removes the archived ones,
which takes the host's whole log.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from firstboot.base import systemd
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision.erase.receipt import Copy

NAME = "the journal of this boot"
PIECE = 1 << 20  # bytes
UNREAD = "the journal of this boot: journalctl does not read it"


def search(layout: Layout, tokens: Sequence[bytes]) -> Copy | None:
    """Return a row when this boot's journal holds a token; LocalFault when it cannot be read."""
    if not layout.is_host or not tokens:
        return None
    count, overlap, tail = 0, max(map(len, tokens)) - 1, b""
    try:
        with subprocess.Popen(
            ["journalctl", "-b", "--all", "--output=export", "--no-pager", "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as reading:
            assert reading.stdout is not None  # noqa: S101 - it is a pipe
            while True:
                piece = reading.stdout.read(PIECE)
                if not piece:
                    break
                text = tail + piece
                count += sum(text.count(token) for token in tokens)
                tail = text[-overlap:]
        if reading.returncode:
            raise LocalFault(UNREAD, hint="journalctl -b")
    except OSError as error:
        raise LocalFault(UNREAD, hint="journalctl -b") from error
    if not count:
        return None
    return Copy(
        NAME,
        {"raw": count},
        "kept",
        "byteor-firstboot erase --journal removes the host's whole log",
    )


def empty() -> None:
    """Rotate the journal and remove all that it archived; LocalFault when that fails."""
    for word in ("--rotate", "--vacuum-time=1s"):
        systemd.command("journalctl", word, doing="empty the journal", hint=f"journalctl {word}")
