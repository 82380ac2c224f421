"""Look everywhere for the tokens in hand, overwrite them, look again, write the receipt."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable

from firstboot.base import files
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision.erase import fragments, places, receipt, systemjournal
from firstboot.provision.erase.places import Kind
from firstboot.provision.erase.receipt import Copy, Receipt
from firstboot.provision.erase.search import IN_MEMORY, Holding, Search
from firstboot.provision.erase.shield import COPIED, MEMORY, OFF
from firstboot.provision.erase.unfinished import Unfinished

TOKEN_FILE_LIMIT = 8192
LATE = "scripts that a later stage of this boot runs: byteor-erase looks at them"
PENDING = "it was about to be erased when this was written"


def cloud_init_finished(layout: Layout) -> bool:
    """Return True when no later stage of this boot can still need a copy.

    cloud-init has written its result, or does not run at all.
    """
    if not layout.is_host or layout.cloud_result.exists():
        return True
    return not layout.cloud_run.is_dir() or (layout.cloud_run / "disabled").exists()


def erase(
    layout: Layout,
    tokens: Iterable[bytes],
    *,
    now: float,
    known: Callable[[bytes], bool] = lambda candidate: False,
    lengths: Collection[int] = (),
    late: bool = True,
    served: Sequence[str] = (),
    kept: Sequence[Copy] = (),
    named: Sequence[str] = (),
    shield: str = OFF,
    unspent: bool = False,
    again: Callable[[], Iterable[Path]] = tuple,
) -> Receipt:
    """Erase the `tokens` in hand from every place, look again, and write the receipt.

    `known` tells a spent token by its mark, of one of `lengths`: asked only about what an earlier
    look left or named.
    `late` is False while cloud-init is at work: what it still runs is left alone, and said. `kept`
    are copies that are not ours to erase; those that were erased all the same are left out. `named`
    are the files of `erase.paths`. `shield` is the shield's state; `unspent`: a source
    holds a token that is not erased now. `again` reads the sources once more, and returns the
    files that still give a token: these remain.

    With the files that sources read goes the token in hand. So a receipt of what was found is on
    the disk before; LocalFault where it cannot be written, and these files are left as they are.
    """
    look = _Look(layout, tokens, named, known, lengths, late=late, shielded=shield == MEMORY)

    def save(rows: Iterable[Copy]) -> Receipt:
        rows = look.whole(rows)
        said = _shielded(shield, look.before, look.boot_id, rows, unspent=unspent)
        rest = tuple(one for one in look.unsaid if said != MEMORY or one != receipt.FREED)
        rows, seen = _one_a_path([*rows, *kept]), look.search.looked_at
        return receipt.save(
            layout, Receipt(now, look.boot_id, seen, rows, tuple(served), rest, shield=said)
        )

    rows = look.elsewhere()
    sources = look.sources()
    if sources:
        try:
            save([*rows, *(look.search.row(one, "remains", PENDING) for one in sources)])
        except LocalFault as error:
            said = f"{error}: without a receipt the files that a token is read from are not erased"
            raise LocalFault(said, hint=error.hint or "byteor-firstboot erase") from error
        rows += look.search.erase(sources)
    known_left = {row.path for row in [*rows, *kept] if row.result not in receipt.ERASED}
    for path in {layout.shown(Path(os.path.realpath(file))) for file in again()} - known_left:
        rows.append(Copy(path, {}, "remains", "its reader still finds the token in it"))
    return save(rows)


class _Look:
    """One look at every place: what it rests on, and what it finds."""

    def __init__(
        self,
        layout: Layout,
        tokens: Iterable[bytes],
        named: Sequence[str],
        known: Callable[[bytes], bool],
        lengths: Collection[int],
        *,
        late: bool,
        shielded: bool,
    ) -> None:
        self._layout = layout
        self.before = receipt.earlier(layout)
        self.boot_id = (files.read(layout.boot_id, limit=64) or b"").decode().strip()
        self.unsaid = [*receipt.NOT_LOOKED_AT, *([] if late else [LATE])]
        self._found = places.find(layout, named)
        self._late = late
        remains = self.before.of("remains")
        self._left = Unfinished(layout, remains, self._found.places, known, lengths)
        self._given = dict(_given_before(layout, self.before, known))
        self._wanted = sorted({*tokens, *self._given.values(), *self._left.tokens})
        self.search = Search(layout, self._wanted, shielded=shielded)

    def elsewhere(self) -> list[Copy]:
        """Erase every place that no source reads; return the rows, and those of the journal."""
        first = (
            place
            for place in self._found.places
            if place.kind < Kind.SOURCE and (self._late or place.kind is not Kind.LATE)
        )
        rows = [*self._found.unseen, *self.search.erase(self.search.look(first))]
        rows += fragments.erase(self._layout)
        try:
            rows += filter(None, [systemjournal.search(self._layout, self._wanted)])
        except LocalFault as error:
            self.unsaid.append(str(error))
        return [*rows, *(Copy(path, {"raw": 1}, "kept", receipt.GIVEN) for path in self._given)]

    def sources(self) -> list[Holding]:
        """Return what holds a token of the files that sources read, all of them still whole."""
        last = (place for place in self._found.places if place.kind >= Kind.SOURCE)
        return list(self.search.look(last))

    def whole(self, rows: Iterable[Copy]) -> tuple[Copy, ...]:
        """Return the rows with what could not be looked at, and what an earlier look left."""
        rows = [*rows, *self.search.unseen]
        return (*rows, *self._left.after(rows))


def _one_a_path(rows: Sequence[Copy]) -> tuple[Copy, ...]:
    """Return one row a path: what remains before all else, then the first."""
    ranked = sorted(rows, key=lambda row: row.result != "remains")
    return tuple(reversed({row.path: row for row in reversed(ranked)}.values()))


def _shielded(
    state: str, before: receipt.Stored, boot_id: str, rows: Sequence[Copy], *, unspent: bool
) -> str:
    """Return what the receipt says of the shield, whose state is `state` at this look.

    ``in memory`` only where all copies were in memory, and none is left when they are copied down.
    """
    if state == COPIED:
        if before.shield == MEMORY and before.boot_id == boot_id and not rows:
            return MEMORY
        return "not shielded: the files were on the disk before the token was erased"
    if state != MEMORY:
        return state
    if unspent:
        return "not shielded: a token that is not spent goes to the disk with the files"
    for row in rows:
        if row.result not in receipt.ERASED or not IN_MEMORY.match(row.path):
            return f"not shielded: {row.path} is on the disk, or still holds the token"
    return MEMORY


def _given_before(
    layout: Layout, before: receipt.Stored, known: Callable[[bytes], bool]
) -> Iterator[tuple[str, bytes]]:
    """Yield the files that were given with --token-file and still hold a spent token, and it."""
    for row in before.of("kept"):
        for path in receipt.paths(layout, row) if os.path.isabs(row.path) else ():
            try:
                token = (files.read(path, limit=TOKEN_FILE_LIMIT) or b"").strip()
            except LocalFault:
                continue  # it cannot be looked at, so nothing is claimed of it
            if token and known(token):
                yield row.path, token
                break
