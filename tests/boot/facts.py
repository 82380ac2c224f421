"""What a boot and a unit came to, as values, and how a console is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\r")


@dataclass(frozen=True)
class Boot:
    """What one boot left to see, once systemd had nothing more to start."""

    seconds: float
    console: str
    cloud_status: str
    cloud_status_code: int
    failed_units: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """A unit's properties as ``systemctl show`` prints them."""

    properties: Mapping[str, str] = field(repr=False)

    def __getitem__(self, name: str) -> str:
        return self.properties[name]

    def seconds(self, name: str) -> float:
        """A ``…TimestampMonotonic`` in seconds since the boot, 0 for never."""
        return int(self.properties[name]) / 1e6


def ordering_cycles(console: str) -> list[str]:
    """The console's lines about ordering cycles; systemd reports those before the journal runs:
    nowhere else.
    """
    return [line for line in console.splitlines() if "ordering cycle" in line.lower()]


def without_escapes(console: str) -> str:
    """A console's text without colours, cursor movements and carriage returns."""
    return _ESCAPES.sub("", console)
