"""Every live place where cloud-init or we leave a token (leak-map, section 2), and what of a token is recognised there."""

from __future__ import annotations

import enum
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from firstboot.base.layout import Layout
from firstboot.provision.erase.scrub import texts

WALK_DEPTH = 12
FILES_LIMIT = 20_000


class Kind(enum.Enum):
    """What may be done to a place, and when."""

    LIVE = "live"  # cloud-init reads it again: overwritten, never removed
    LATE = (
        "late"  # a later stage of this boot runs it or writes it: only once cloud-init has finished
    )
    OURS = "ours"  # the drop place and the token file: overwritten, then unlinked


@dataclass(frozen=True)
class Place:
    path: Path
    kind: Kind


def places(layout: Layout) -> Iterator[Place]:
    """Every regular file to look at; links are not followed, so nothing outside these trees is reached."""
    yield Place(layout.drop_place, Kind.OURS)
    yield Place(layout.token_file, Kind.OURS)
    for top in (layout.cloud, layout.cloud_run):
        for path in _regular(top):
            late = "scripts" in path.relative_to(top).parts
            yield Place(path, Kind.LATE if late else Kind.LIVE)


def _regular(top: Path) -> Iterator[Path]:
    seen = 0
    for directory, folders, names in os.walk(top, followlinks=False):
        folders[:] = (
            [] if len(Path(directory).relative_to(top).parts) >= WALK_DEPTH else sorted(folders)
        )
        for name in sorted(names):
            path = Path(directory, name)
            try:
                regular = stat.S_ISREG(path.lstat().st_mode)
            except OSError:
                continue
            seen += 1
            if seen > FILES_LIMIT:
                return
            if regular:
                yield path


def recognise(
    data: bytes, *, lengths: frozenset[int], known: Callable[[bytes], bool]
) -> set[bytes]:
    """Return the tokens in `data` that are known only by their mark: every stretch of visible ASCII of a known length."""
    if not lengths:
        return set()
    runs = re.compile(rb"[!-~]{%d,}" % min(lengths))
    found: set[bytes] = set()
    for text in texts(data):
        for run in runs.finditer(text):
            word = run.group()
            for length in lengths:
                for at in range(len(word) - length + 1):
                    candidate = word[at : at + length]
                    if candidate not in found and known(candidate):
                        found.add(candidate)
    return found
