"""The agent's inbox: the request document, and what else the agent puts there to be judged.

The agent writes it, the activator reads it through `activate.intake`, which trusts none of it.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Optional

from firstboot.base import documents, files, log
from firstboot.base.documents import Rule, lenient
from firstboot.base.errors import Corrupt
from firstboot.base.layout import KEY_SETS, REQUEST, Layout

REQUEST_LIMIT = 4 << 10  # bytes
NO_KEY_SETS = b'{"key_sets": []}'

_Id = Annotated[str, Rule(lambda t: bool(re.fullmatch(r"[0-9a-fA-F-]{1,64}", t)), "a request id")]


@dataclass(frozen=True)
class Request:
    """The question of the agent: an id, and the seconds by which the control plane's clock was
    ahead of this host's at `written_at`. Each member is None where it is not of its shape.
    """

    request: Optional[_Id] = lenient()
    clock_offset_s: Optional[float] = lenient()
    written_at: Optional[float] = lenient()  # the file's time, by this host's clock


def unverified_request(data: bytes, *, written_at: float | None = None) -> Request:
    """Parse ``request.json``, each member by itself; garbage asks nothing."""
    try:
        value = documents.load(data)
        return documents.parse(Request, {**value, "written_at": written_at})
    except (ValueError, TypeError):
        return Request()


def write_request(layout: Layout, request: Request) -> None:
    """Replace the request durably; its rename is what starts the activator."""
    document = {"v": 1, "request": request.request, "clock_offset_s": request.clock_offset_s}
    files.write_json(layout.inbox / REQUEST, document)


def newest_request(layout: Layout) -> str | None:
    """Return the id of the request that the agent wrote last, None when there is none."""
    try:
        data = files.read(layout.inbox / REQUEST, limit=REQUEST_LIMIT)
    except Corrupt:
        return None
    return unverified_request(data or b"").request


def drop_key_sets(layout: Layout) -> None:
    """Drop the answer about signing keys: it must not start another ring. For root."""
    about = "an older answer about signing keys may be used once more"
    with log.warned(about), suppress(FileNotFoundError):
        facts = os.stat(layout.inbox, follow_symlinks=False)
        owner = (facts.st_uid, facts.st_gid)
        files.write_into(layout.inbox, KEY_SETS, NO_KEY_SETS, mode=0o600, owner=owner)


def forget_answers(layout: Layout) -> None:
    """Drop what the agent was told about keys and deployments: another identity begins."""
    drop_key_sets(layout)
    for path in (layout.kept_key_sets, layout.latest):
        files.remove(path)
