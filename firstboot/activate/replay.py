"""``activation/sequence.json``: the highest deployment ever verified in each environment, so that no older one comes back.

A host that is enrolled into another environment begins anew there and remembers the one it left: back in it, what was old
is still old. When the file is lost or damaged, the record and the directory in force say what it must have held, and that is
written down before anything else is judged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from firstboot.activate import directories
from firstboot.activate.admission import Deployment, Highest
from firstboot.activate.chain import Place
from firstboot.base import files, log
from firstboot.base.errors import Corrupt
from firstboot.base.layout import Layout
from firstboot.exchange import verdicts

VERSION = 1
MOST_PLACES = 64  # the newest stay
NAMES = ("org_id", "project_id", "environment_id")


@dataclass(frozen=True)
class Sequences:
    """Per place, the place used last at the end."""

    highest: tuple[tuple[Place, Highest], ...] = ()

    def of(self, place: Place) -> Highest | None:
        return dict(self.highest).get(place)

    def with_(self, place: Place, highest: Highest) -> Sequences:
        others = [pair for pair in self.highest if pair[0] != place]
        return Sequences((*others, (place, highest))[-MOST_PLACES:])


def load(layout: Layout, place: Place) -> Highest | None:
    """The highest verified in `place`, None when nothing was."""
    path = layout.sequence
    try:
        stored = files.read_json(path)
        if stored is not None:
            return _parse(stored).of(place)
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(path))
    floor = _remembered(layout)
    if floor is not None:
        _save(layout, Sequences().with_(place, floor))
    return floor


def raise_to(layout: Layout, place: Place, deployment: Deployment) -> None:
    """Remember `deployment`, which was just admitted, durably."""
    known = _parse(files.read_json(layout.sequence) or {"places": []})
    wanted = Highest(deployment.sequence, deployment.payload_sha256)
    if known.of(place) != wanted:
        _save(layout, known.with_(place, wanted))


def is_highest(layout: Layout, payload_sha256: str | None) -> bool:
    """True when this payload is the newest that was verified in the place used last."""
    known = _parse(files.read_json(layout.sequence) or {"places": []}).highest
    return (
        payload_sha256 is not None and bool(known) and known[-1][1].payload_sha256 == payload_sha256
    )


def _remembered(layout: Layout) -> Highest | None:
    """The highest that the record and the directory in force know of, whatever place it was in: too careful rather."""
    rows = verdicts.load(layout).history
    found = [
        Highest(row.sequence or 0, row.payload_sha256)
        for row in rows
        if row.payload_sha256 is not None
    ]
    name = directories.named(layout)
    made = directories.read(layout, name) if name is not None else None
    if made is not None:
        found.append(Highest(made.sequence, made.payload_sha256))
    return max(found, key=lambda one: one.sequence, default=None)


def _save(layout: Layout, known: Sequences) -> None:
    places = [{"place": asdict(place), **asdict(highest)} for place, highest in known.highest]
    files.write_json(layout.sequence, {"v": VERSION, "places": places}, mode=0o644)


def _parse(stored: dict[str, Any]) -> Sequences:
    rows = stored.get("places")
    found: list[tuple[Place, Highest]] = []
    for row in rows if isinstance(rows, list) else [None]:
        place = row.get("place") if isinstance(row, dict) else None
        ids = [place.get(name) for name in NAMES] if isinstance(place, dict) else [None]
        if not isinstance(row, dict) or not all(isinstance(one, str) for one in ids):
            raise Corrupt("sequence.json is damaged: no places")
        number, digest = row.get("sequence"), row.get("payload_sha256")
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(digest, str):
            raise Corrupt("sequence.json is damaged: no sequence")
        found.append((Place(*map(str, ids)), Highest(number, digest)))
    return Sequences(tuple(found))
