"""``activation/journal.json`` and ``retry.json``: what is in progress, and what is asked for again.

The journal is there when an activation was begun, and gone when it is settled; whatever interrupts
it, the next start finishes or undoes it. It names the ids of its reports before one is written, so
that a repeated step repeats a report and makes no second one.

``retry.json`` is an operator's word, in a file of root's that the agent cannot write.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from typing import Annotated, Optional

from firstboot.activate.directories import Marker, Name
from firstboot.base import documents, files
from firstboot.base.documents import Digest, Line, Malformed, Rule, sentence
from firstboot.base.layout import Layout
from firstboot.exchange.verdicts import ACTIVE, FAILED, ROLLED_BACK

VERSION = 1
RESERVED_BYTES = 256 * 1024
# In order: the new one is switched to and judged; the old one is put back and judged; what is left
# is to report and to record.
ACTIVATING, RESTORING, SETTLED = "activating", "restoring", "settled"
_Verdict = Annotated[str, Rule(lambda v: v in (ACTIVE, FAILED, ROLLED_BACK), "a verdict")]
_Phase = Annotated[str, Rule(lambda p: p in (ACTIVATING, RESTORING, SETTLED), "a phase")]


@dataclass(frozen=True)
class Target(Marker):
    """The deployment that is being activated."""

    envelope_sha256: Digest
    keys_version: int
    directory: Name


@dataclass(frozen=True)
class Journal:
    """`tries` counts beginnings of this phase; `verdict`, `code`, `reason` are set once known.

    `previous`: the directory that was active before, None for the first deployment of all.
    `success_id` and `failure_id` are report ids: of `active`, `rolled_back` or `rollback_failed`,
    and of `failed`. `note`: why the way back failed too.
    """

    target: Target
    previous: Optional[Name]
    phase: _Phase
    tries: int
    success_id: Line
    failure_id: Line
    verdict: Optional[_Verdict] = None
    code: Optional[Line] = None
    reason: Optional[str] = None
    note: Optional[str] = None

    def __post_init__(self) -> None:
        if self.phase == SETTLED and self.verdict is None:
            raise Malformed("settled without a verdict")


@dataclass(frozen=True)
class _Retry:
    payload_sha256: Optional[Digest]


def begun(target: Target, previous: str | None) -> Journal:
    """Return a new activation; nothing is written yet."""
    return Journal(target, previous, ACTIVATING, 0, str(uuid.uuid4()), str(uuid.uuid4()))


def load(layout: Layout) -> Journal | None:
    """Read the journal, None when nothing is in progress.

    A damaged one is set aside, and `current` stays what it is.
    """
    return documents.read_or_set_aside(layout.journal, Journal)


def reserve(layout: Layout) -> None:
    """Keep some room: a disk that the new deployment fills must not prevent the way back."""
    files.write(layout.reserve, bytes(RESERVED_BYTES))


def use_reserve(layout: Layout) -> None:
    """Give the room back: what is written next may need it."""
    files.remove(layout.reserve)


def save(layout: Layout, journal: Journal) -> Journal:
    """Make it durable and return it."""
    said = {"reason": sentence(journal.reason), "note": sentence(journal.note)}
    files.write_json(layout.journal, {"v": VERSION, **asdict(journal), **said})
    return journal


def remove(layout: Layout) -> None:
    """Note that nothing is in progress any more."""
    use_reserve(layout)
    files.remove(layout.journal)


def ask_again(layout: Layout, payload_sha256: str) -> None:
    """Ask for one more try of this payload."""
    files.write_json(layout.retry, {"v": VERSION, "payload_sha256": payload_sha256})


def asked_again(layout: Layout) -> str | None:
    """Return the payload that is to be tried again, None when nobody asked."""
    found = documents.read_or_set_aside(layout.retry, _Retry)
    return found.payload_sha256 if found is not None else None


def forget_asking(layout: Layout, payload_sha256: str | None) -> None:
    """Remove the wish for this payload, which was followed; one that came meanwhile stays."""
    if payload_sha256 is not None and asked_again(layout) == payload_sha256:
        files.remove(layout.retry)
