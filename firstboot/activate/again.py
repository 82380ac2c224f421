"""``byteor-agent retry ID`` for a deployment: an operator's word, in a file of root's that the agent cannot write."""

from __future__ import annotations

from firstboot.base import files, log
from firstboot.base.errors import Corrupt
from firstboot.base.layout import Layout


def asked(layout: Layout) -> str | None:
    """The payload that is to be tried again, None when nobody asked."""
    path = layout.retry
    try:
        payload = (files.read_json(path) or {}).get("payload_sha256")
        if not isinstance(payload, (str, type(None))):
            raise Corrupt(f"{path} is damaged: no payload")
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(path))
        return None
    return payload


def forget(layout: Layout) -> None:
    """The word was followed, or cannot be."""
    files.remove(layout.retry)
