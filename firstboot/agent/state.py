"""Heartbeat sequence numbers that never go back: reserved on disk in blocks, so that a beat costs no fsync."""

from __future__ import annotations

from firstboot.base import files, log
from firstboot.base.clock import Clock
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout

BLOCK = 4096  # contract 2.2
LARGEST = 2**52  # JSON numbers are exact up to 2^53: what is above was never ours


class Sequence:
    """Strictly increasing across restarts and crashes; gaps are allowed, repeats are not."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.agent_state
        self._next = 0
        self._reserved = 0

    def next(self) -> int:
        """Return the next number, reserving another block durably when the last is used up."""
        if self._next >= self._reserved:
            start = max(self._reserved, self._stored())
            try:
                files.write_json(self._path, {"v": 1, "sequence_reserved": start + BLOCK})
            except LocalFault as error:
                # A full disk is what a beat is to tell of: on by the clock, which is far above, until there is room.
                log.warning(str(error), hint=error.hint)
                self._next = self._reserved = max(self._next, start, int(Clock().wall())) + 1
                return self._next
            self._next, self._reserved = start, start + BLOCK
        self._next += 1
        return self._next

    def _stored(self) -> int:
        try:
            value = files.read_json(self._path)
            stored = value.get("sequence_reserved") if value is not None else 0
            if (
                not isinstance(stored, int)
                or isinstance(stored, bool)
                or not 0 <= stored <= LARGEST
            ):
                raise Corrupt(f"{self._path} is damaged: no sequence number")
            return stored
        except Corrupt as error:
            # A number far above any that was used: the plane only asks that it grows.
            aside = files.set_aside(self._path)
            log.warning(str(error), kept_as=aside)
            # One beat per 5 s, the shortest period, since 1970 is fewer than the seconds since then.
            return int(Clock().wall())
