"""``activation/journal.json``: one activation in progress; whatever interrupts it, the next start finishes or undoes it.

There when something was begun, gone when it is settled. It names the ids of its reports before one is written, so that a
repeated step repeats a report and makes no second one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from firstboot.activate.admission import Deployment
from firstboot.activate.directories import is_name
from firstboot.base import files, log
from firstboot.base.errors import Corrupt
from firstboot.base.layout import Layout

VERSION = 1
RESERVED_BYTES = 256 * 1024
# In order: the new one is switched to and judged; the old one is put back and judged; only the books are left to do.
ACTIVATING, RESTORING, SETTLED = "activating", "restoring", "settled"
PHASES = (ACTIVATING, RESTORING, SETTLED)


@dataclass(frozen=True)
class Target:
    """What is being activated."""

    deployment_id: str
    sequence: int
    spec_hash: str
    payload_sha256: str
    envelope_sha256: str
    keys_version: int
    directory: str


@dataclass(frozen=True)
class Journal:
    """`tries` counts beginnings of this phase; `verdict`, `code` and `reason` are set once they are known."""

    target: Target
    previous: (
        str | None
    )  # the directory that was in force before, None for the first deployment of all
    phase: str
    tries: int
    success_id: str  # report ids: of `active`, or of `rolled_back` (or `rollback_failed`)
    failure_id: str  # of `failed`
    verdict: str | None = None
    code: str | None = None
    reason: str | None = None
    note: str | None = None  # why the way back failed too


def begin(
    deployment: Deployment,
    *,
    envelope_sha256: str,
    keys_version: int,
    directory: str,
    previous: str | None,
) -> Journal:
    """A new activation; nothing is written yet."""
    target = Target(
        deployment.deployment_id, deployment.sequence, deployment.spec_hash, deployment.payload_sha256,
        envelope_sha256, keys_version, directory,
    )  # fmt: skip
    return Journal(target, previous, ACTIVATING, 0, str(uuid.uuid4()), str(uuid.uuid4()))


def load(layout: Layout) -> Journal | None:
    """Read the journal, None when nothing is in progress; a damaged one is set aside, and `current` stays what it is."""
    path = layout.journal
    try:
        stored = files.read_json(path)
        return None if stored is None else _parse(stored)
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(path))
        return None


def reserve(layout: Layout) -> None:
    """Keep some room, so that a disk which the new deployment fills cannot stand in the way back."""
    files.write(layout.reserve, bytes(RESERVED_BYTES))


def use_reserve(layout: Layout) -> None:
    """Give the room back: what is written next may need it."""
    files.remove(layout.reserve)


def save(layout: Layout, journal: Journal) -> Journal:
    """Make it durable and return it."""
    files.write_json(layout.journal, {"v": VERSION, **asdict(journal)})
    return journal


def remove(layout: Layout) -> None:
    """Nothing is in progress any more."""
    use_reserve(layout)
    files.remove(layout.journal)


def _parse(stored: Mapping[str, Any]) -> Journal:
    try:
        target, values = (
            stored["target"],
            {name: stored[name] for name in Journal.__dataclass_fields__ if name != "target"},
        )
        journal = Journal(target=Target(**target), **values)
    except (KeyError, TypeError) as error:
        raise Corrupt("journal.json is damaged: a member is missing") from error
    named = journal.target
    names = [named.directory, *([journal.previous] if journal.previous is not None else [])]
    if (
        journal.phase not in PHASES
        or not isinstance(journal.tries, int)
        or not isinstance(named.sequence, int)
    ):
        raise Corrupt("journal.json is damaged: no such phase")
    if not all(map(is_name, names)):  # they are made into paths
        raise Corrupt("journal.json is damaged: a name")
    return journal
