"""The durable intent: what makes an enrollment safe to repeat, written before the token is presented.

``identity/intent.json`` holds the Idempotency-Key with the body it belongs to, the agent name asked for, a mark of the
token (never the token), a fingerprint of the host, and whether an attempt may have been answered without our hearing
it. Every retry, across crashes and reboots, repeats key and body; another body, token or host means another key.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from typing import Any

from firstboot.base import files, log
from firstboot.base.errors import Corrupt
from firstboot.base.layout import Layout

VERSION = 1


@dataclass(frozen=True)
class Intent:
    """One enrollment that was decided on. `body` is the exact JSON text to send."""

    key: str
    body: str
    name: str
    token_mark: str
    token_length: int
    host: dict[str, Any]
    unanswered: bool = (
        False  # an attempt went out whose answer never came: it may have spent the token
    )
    ended: bool = (
        False  # refused: the key is not used again; kept only to name the agent that may exist
    )

    @classmethod
    def new(
        cls,
        *,
        body: dict[str, str],
        name: str,
        token_mark: str,
        token_length: int,
        host: dict[str, Any],
    ) -> Intent:
        """Decide on an enrollment with a key of its own."""
        text = json.dumps(body, sort_keys=True)
        key = str(uuid.uuid4())
        return cls(
            key=key,
            body=text,
            name=name,
            token_mark=token_mark,
            token_length=token_length,
            host=host,
        )

    def save(self, layout: Layout) -> None:
        """Make it durable (LocalFault if the disk does not take it: then nothing may be presented)."""
        files.write_json(layout.intent, {"v": VERSION, **asdict(self)})


def load(layout: Layout, *, repair: bool = True) -> Intent | None:
    """Return the intent on disk, None when there is none; a damaged one is said, and set aside if `repair`."""
    try:
        value = files.read_json(layout.intent)
        return None if value is None else _parse(value, layout)
    except Corrupt as error:
        aside = files.set_aside(layout.intent) if repair else None
        log.warning(str(error), kept_as=aside)
        return None


def wipe(layout: Layout) -> None:
    """The intent has done its work: overwrite and remove it."""
    files.wipe(layout.intent)


def _parse(value: dict[str, Any], layout: Layout) -> Intent:
    shapes = {
        "key": str,
        "body": str,
        "name": str,
        "token_mark": str,
        "token_length": int,
        "host": dict,
        "unanswered": bool,
        "ended": bool,
    }
    if value["v"] != VERSION or any(
        not isinstance(value.get(field), kind) for field, kind in shapes.items()
    ):
        raise Corrupt(f"{layout.intent} is damaged: not an intent of version {VERSION}")
    return Intent(**{field: value[field] for field in shapes})
