"""The agent's ``status.json`` as a reader takes it: each member of its type, or null.

The agent wrote it, perhaps another version of it, and nobody may rely on its form. A member that
is not known here is left out, so that the document of ``byteor-agent status`` has one shape, which
its published schema says.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Optional

from firstboot.base import documents
from firstboot.base.documents import lenient

MOST_LOOPS = 100  # more were never ours
DOWNLOAD = "download"


@dataclass(frozen=True)
class _Identity:
    agent_id: Optional[str] = lenient()
    name: Optional[str] = lenient()
    api_base_url: Optional[str] = lenient()
    org_id: Optional[str] = lenient()
    project_id: Optional[str] = lenient()
    environment_id: Optional[str] = lenient()
    enrolled_at: Optional[str] = lenient()
    expires_at: Optional[str] = lenient()
    source: Optional[str] = lenient()
    scopes: tuple[str, ...] = lenient(())


@dataclass(frozen=True)
class _Download:
    deployment_id: str
    bytes: int
    size: int


@dataclass(frozen=True)
class _Loop:
    period_s: Optional[float] = lenient()
    last_attempt_at: Optional[str] = lenient()
    last_success_at: Optional[str] = lenient()
    next_attempt_at: Optional[str] = lenient()
    outcome: Optional[str] = lenient()
    failures: Optional[int] = lenient()
    problem: Optional[str] = lenient()
    hint: Optional[str] = lenient()
    download: Optional[_Download] = lenient()


@dataclass(frozen=True)
class _Quarantined:
    id: str
    kind: Optional[str] = lenient()
    size: Optional[int] = lenient()
    name: Optional[str] = lenient()
    status: Optional[int] = lenient()
    code: Optional[str] = lenient()
    detail: Optional[str] = lenient()
    at: Optional[str] = lenient()


@dataclass(frozen=True)
class _Spool:
    pending: Optional[int] = lenient()
    quarantined: Optional[int] = lenient()
    bytes: Optional[int] = lenient()
    quarantine: tuple[_Quarantined, ...] = lenient(())


@dataclass(frozen=True)
class Stored:
    """The members that are shown as they stand; `running` is judged anew."""

    pid: Optional[int] = lenient()
    agent_version: Optional[str] = lenient()
    started_at: Optional[str] = lenient()
    written_at: Optional[str] = lenient()
    crashes: Optional[int] = lenient()
    running: Optional[bool] = lenient()
    identity: Optional[_Identity] = lenient()
    spool: Optional[_Spool] = lenient()
    clock_skew_s: Optional[float] = lenient()


def loops(stored: object) -> dict[str, Any]:
    """Return the loops that are objects; only that of deployments downloads."""
    found = {}
    for name, loop in list(stored.items())[:MOST_LOOPS] if isinstance(stored, dict) else ():
        if isinstance(loop, dict):
            found[name] = asdict(documents.parse(_Loop, loop))
            if DOWNLOAD not in loop:
                del found[name][DOWNLOAD]
    return found
