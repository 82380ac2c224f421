"""What the activator is to judge, and the request that makes it look (contract 5): written for a reader that trusts nothing.

The request is renamed into place last. Its answer is its id in ``deployments.json``; one that stays unanswered is asked
again, at most once a minute, and is a problem after some minutes.
"""

from __future__ import annotations

import threading
import uuid
from typing import Callable

from firstboot.agent.problems import Problem
from firstboot.agent.submit import Activator
from firstboot.base import files
from firstboot.base.clock import Clock
from firstboot.base.layout import Layout
from firstboot.exchange.inbox import Request, newest_request, write_request
from firstboot.exchange.verdicts import Record

AGAIN_S = 60.0
SILENT_S = 300.0
# An activation with a health gate answers its own request at its beginning; what comes meanwhile waits for its end.
SILENT_IN_ACTIVATION_S = 3 * 3600.0
ALWAYS = float("-inf")


class Inbox:
    """For several loops; each request is answered when the newest one is."""

    def __init__(
        self, layout: Layout, activator: Activator, *, clock: Clock, over_tls: bool = True
    ) -> None:
        self._layout = layout
        self._activator = activator
        self._clock = clock
        self._over_tls = over_tls
        self._writing = threading.Lock()
        self._plane_ahead_of_monotonic: float | None = None
        self._newest: str | None = None
        self._looked = False
        self._unanswered_since: float | None = None
        self.asked_at = ALWAYS  # monotonic
        self.asked_with: float | None = None  # the offset of the clock then

    def heard(self, date: float | None) -> None:
        """The plane said what time it is, over TLS that was verified; else its word is no evidence."""
        if date is not None and self._over_tls:
            self._plane_ahead_of_monotonic = date - self._clock.monotonic()

    @property
    def clock_offset_s(self) -> float | None:
        """Seconds by which the plane's clock is ahead of this host's now, also when that was set since."""
        if self._plane_ahead_of_monotonic is None:
            return None
        return round(
            self._plane_ahead_of_monotonic + self._clock.monotonic() - self._clock.wall(), 1
        )

    def put(self, name: str, data: bytes) -> None:
        """Lay something into the inbox, durably."""
        files.make_directory(self._layout.inbox, 0o700)
        with self._writing:
            files.write(self._layout.inbox / name, data)

    def request(self, alive: Callable[[float], None]) -> None:
        """Ask the activator to look; returns when it has, or at once where it calls us later."""
        files.make_directory(self._layout.inbox, 0o700)
        with self._writing:
            self.asked_at, self.asked_with = self._clock.monotonic(), self.clock_offset_s
            newest = str(uuid.uuid4())
            write_request(self._layout, Request(newest, self.asked_with))
            self._newest, self._looked = newest, True
            if self._unanswered_since is None:
                self._unanswered_since = self.asked_at
        self._activator.start(alive)

    def pending(self, decided: Record) -> bool:
        """Whether the newest request, also one before this agent's start, is still to be answered."""
        with self._writing:
            if not self._looked:
                self._newest, self._looked = newest_request(self._layout), True
            if self._newest in (None, decided.request):
                self._unanswered_since = None
                return False
            if self._unanswered_since is None:
                self._unanswered_since = self._clock.monotonic()
            return True

    def may_repeat(self) -> bool:
        """Whether asking once more is not too often."""
        return self._clock.monotonic() - self.asked_at >= AGAIN_S

    def finish(self, alive: Callable[[float], None]) -> None:
        """Have an interrupted activation finished, where that is ours to see to."""
        if not self._activator.finishes and self.interrupted() and self.may_repeat():
            self.asked_at = self._clock.monotonic()
            self._activator.start(alive)

    def problems(self) -> list[Problem]:
        """An activator that does not answer."""
        since = self._unanswered_since
        limit = SILENT_IN_ACTIVATION_S if self.interrupted() else SILENT_S
        if since is None or self._clock.monotonic() - since < limit:
            return []
        hint = "systemctl status byteor-activate, or journalctl -u byteor-activate"
        return [
            Problem("activator_silent", "the activator does not answer what the agent asks", hint)
        ]

    def interrupted(self) -> bool:
        return self._layout.journal.exists()
