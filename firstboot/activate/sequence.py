"""``activation/sequence.json``: the highest deployment that was ever verified here, so that no older one comes back.

It belongs to one environment: a host that was enrolled into another one begins anew, since every envelope is for one
environment alone. A damaged file is set aside, and the deployment in force stands in for it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Optional

from firstboot import files, keeping, log
from firstboot.activate import record, switch
from firstboot.activate.admission import Deployment, Highest
from firstboot.activate.trust import Place
from firstboot.errors import Corrupt
from firstboot.layout import Layout

VERSION = 1


def load(layout: Layout, place: Place) -> Optional[Highest]:
    """The highest verified in `place`, None when nothing was."""
    path = layout.activation / "sequence.json"
    try:
        stored = files.read_json(path)
        if stored is None or stored.get("place") != asdict(place):
            return None
        number, digest = stored.get("sequence"), stored.get("payload_sha256")
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(digest, str):
            raise Corrupt(f"{path} is damaged: no sequence")
        return Highest(number, digest)
    except Corrupt as error:
        log.warning(str(error), kept_as=keeping.set_aside(path))
        return _remembered(layout)


def _remembered(layout: Layout) -> Optional[Highest]:
    """The highest that the record and ``current`` know of; of the latter only the number, so that it may come again."""
    judged = [row for row in record.load(layout).history if row.payload_sha256 is not None and row.sequence is not None]
    found = [Highest(row.sequence or 0, row.payload_sha256 or "") for row in judged]
    directory = switch.named(layout)
    if directory is not None:
        found.append(Highest(int(directory.rpartition("-")[2]) - 1, ""))
    return max(found, key=lambda one: one.sequence, default=None)


def raise_to(layout: Layout, place: Place, deployment: Deployment) -> None:
    """Remember `deployment`, which was just admitted, durably."""
    wanted = Highest(deployment.sequence, deployment.payload_sha256)
    if load(layout, place) != wanted:
        value = {"v": VERSION, "place": asdict(place), **asdict(wanted)}
        files.write_json(layout.activation / "sequence.json", value, mode=0o644)
