"""``activation/sequence.json``: the highest deployment ever verified, so that no older one returns.

One row an environment. A host that is enrolled into another environment begins anew there and
remembers the one it left: back in it, what was old is still old. When the file is lost or damaged,
the record and the active directory tell what it must have held, and that is written down before
anything else is judged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from firstboot.activate import directories
from firstboot.activate.admission import Deployment, Highest
from firstboot.activate.chain import Place
from firstboot.base import documents, files
from firstboot.base.layout import Layout
from firstboot.exchange import verdicts

VERSION = 1
MOST_PLACES = 64  # the newest stay


@dataclass(frozen=True)
class _Sequences:
    """The place that was used last is at the end."""

    places: tuple[Highest, ...]


def load(layout: Layout, place: Place) -> Highest | None:
    """Return the highest that was verified in `place`, None when nothing was."""
    stored = documents.read_or_set_aside(layout.sequence, _Sequences)
    if stored is not None:
        return next((row for row in stored.places if row.place == place), None)
    floor = _remembered(layout, place)
    if floor is not None:
        _save(layout, (floor,))
    return floor


def raise_to(layout: Layout, deployment: Deployment) -> None:
    """Remember `deployment`, which was just admitted, durably."""
    stored = documents.read(layout.sequence, _Sequences) or _Sequences(())
    row = Highest(deployment.place, deployment.sequence, deployment.payload_sha256)
    if row not in stored.places:
        _save(layout, (*(one for one in stored.places if one.place != row.place), row))


def is_highest(layout: Layout, payload_sha256: str | None) -> bool:
    """Return True when this payload is the newest that was verified in the place used last."""
    known = (documents.read(layout.sequence, _Sequences) or _Sequences(())).places
    return bool(known) and known[-1].payload_sha256 == payload_sha256


def _remembered(layout: Layout, place: Place) -> Highest | None:
    """Return the highest that the record and the active directory know of, whatever its place was.

    Rather too careful than too trusting.
    """
    found = [
        Highest(place, row.sequence or 0, row.payload_sha256)
        for row in verdicts.load(layout).history
        if row.payload_sha256 is not None
    ]
    made = directories.read(layout, directories.named(layout))
    if made is not None:
        found.append(Highest(place, made.sequence, made.payload_sha256))
    return max(found, key=lambda one: one.sequence, default=None)


def _save(layout: Layout, places: tuple[Highest, ...]) -> None:
    document = {"v": VERSION, **asdict(_Sequences(places[-MOST_PLACES:]))}
    files.write_json(layout.sequence, document, mode=0o644)
