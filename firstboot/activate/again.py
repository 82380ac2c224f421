"""``byteor-agent retry ID`` for a deployment: an operator's word, in a file of root's that the agent cannot write."""

from __future__ import annotations

from firstboot.activate import directories, replay
from firstboot.base import files, log
from firstboot.base.errors import Corrupt, Invalid
from firstboot.base.layout import Layout
from firstboot.exchange import verdicts

VERSION = 1


def retry_deployment(layout: Layout, named: str) -> str | None:
    """Ask for one more try of the deployment `named` (its id, or id-sequence); return what is tried, None if unknown.

    Invalid (4) when it is in force, when it is not the newest one that was verified here (an older one may only come back by
    the plane's word, under a higher sequence), or when the plane has withdrawn it.
    """
    history = verdicts.load(layout).history
    found = [
        row
        for row in history
        if named in (row.deployment_id, f"{row.deployment_id}-{row.sequence}")
    ]
    if not found:
        return None
    row = ([row for row in found if row.payload_sha256 is not None] or found)[-1]
    shown = f"{row.deployment_id}-{row.sequence}"
    current = directories.named(layout)
    made = directories.read(layout, current) if current is not None else None
    if (
        row.verdict == verdicts.ACTIVE
        and made is not None
        and made.payload_sha256 == row.payload_sha256
    ):
        raise Invalid(
            f"deployment {shown} did not fail", hint="byteor-agent deployments shows what did"
        )
    if not replay.is_highest(layout, row.payload_sha256):
        raise Invalid(
            f"deployment {shown} is not the newest that was verified here",
            hint="roll back at the plane: it signs an older deployment again, under a higher sequence",
        )
    if not (layout.inbox / "envelope.json").exists():
        raise Invalid(
            f"the plane assigns deployment {shown} no more", hint="assign it again at the plane"
        )
    files.write_json(layout.retry, {"v": VERSION, "payload_sha256": row.payload_sha256})
    return shown


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
