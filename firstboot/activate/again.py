"""``byteor-agent retry ID`` for a deployment: an operator's word, in a file of root's that the agent cannot write."""

from __future__ import annotations

from typing import Optional

from firstboot import files
from firstboot.activate import record
from firstboot.errors import Invalid, LocalFault
from firstboot.layout import Layout

VERSION = 1


def retry_deployment(layout: Layout, named: str) -> Optional[str]:
    """Ask for one more try of the deployment `named` (its id, or id-sequence); return what is tried, None if unknown.

    Invalid (4) when it is in force, or when it is not the newest one that the plane signed: an older one may only come back
    by the plane's word, under a higher sequence.
    """
    history = record.load(layout).history
    found = [row for row in history if named in (row.deployment_id, f"{row.deployment_id}-{row.sequence}")]
    if not found:
        return None
    row = found[-1]
    shown = f"{row.deployment_id}-{row.sequence}"
    if row.verdict == record.ACTIVE:
        raise Invalid(f"deployment {shown} did not fail", hint="byteor-agent deployments shows what did")
    highest = files.read_json(layout.activation / "sequence.json") or {}
    if row.payload_sha256 is None or row.payload_sha256 != highest.get("payload_sha256"):
        raise Invalid(
            f"deployment {shown} is not the newest that was verified here",
            hint="roll back at the plane: it signs an older deployment again, under a higher sequence",
        )
    files.write_json(layout.activation / "retry.json", {"v": VERSION, "payload_sha256": row.payload_sha256})
    return shown


def asked(layout: Layout) -> Optional[str]:
    """The payload that is to be tried again, None when nobody asked."""
    path = layout.activation / "retry.json"
    try:
        payload = (files.read_json(path) or {}).get("payload_sha256")
    except LocalFault:
        payload = None
        files.remove(path)
    return payload if isinstance(payload, str) else None


def forget(layout: Layout) -> None:
    """The word was followed, or cannot be."""
    files.remove(layout.activation / "retry.json")
