"""Pause between two attempts, until other settings or another token are written.

An operator who corrects what a run waits for need not start it again. A file that was merely
touched, or says the same in other words, ends no pause; and what the control plane asked for with
``Retry-After`` is kept, whatever is written, by all that still goes to the same address.
"""

from __future__ import annotations

import os
from threading import Event

from firstboot.api.connection import ProxyRefused
from firstboot.base import log
from firstboot.base.clock import Backoff, monotonic, rng
from firstboot.base.errors import ByteorError, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.settings import Settings
from firstboot.provision.enrollment import Unbelieved
from firstboot.provision.facts import View, look
from firstboot.provision.sources import Inputs

BACKOFF_S = (1.0, 60.0)  # base and cap of the pauses after a transient failure
PROXY_S = (10.0, 600.0)  # the same after a 407: each further attempt may lock an account
LOOK_S = 1.0  # between looks at what somebody may write


class Pause:
    """The pause after an attempt, and what that attempt was made with."""

    def __init__(self, layout: Layout, inputs: Inputs) -> None:
        self._layout, self._inputs = layout, inputs
        self._stamp = self._written()
        self._asked: tuple[Settings, Secret | None] | None = None
        self.chance = rng()
        self._backoff, self._proxy_backoff = Backoff(*BACKOFF_S), Backoff(*PROXY_S)

    def length(self, error: TryAgain) -> tuple[float, float]:
        """Return how many seconds the pause after a failure is to take at least, and takes."""
        if isinstance(error, Unbelieved):
            return error.pause_s, error.pause_s
        backoff = self._proxy_backoff if isinstance(error, ProxyRefused) else self._backoff
        return error.retry_after or 0.0, backoff.next_delay(self.chance, error.retry_after)

    def looks(self) -> None:
        """Note the files' state; to be called before they are read for an attempt."""
        self._stamp = self._written()

    def seen(self, view: View) -> None:
        """Note what the attempt is made with."""
        self._asked = (view.settings, view.found.token)

    def wait(self, limit_s: float, *, least_s: float, reenrolling: bool) -> None:
        """Wait for `limit_s`, at most until there are other settings or another token.

        `least_s`: seconds that the same address is left alone. Where what was written is invalid
        the pause ends too: the next look says why.
        """
        pause, began, before = Event(), monotonic(), self._stamp
        is_other = is_elsewhere = False
        while (gone := monotonic() - began) < limit_s:
            now = self._written()
            if now != self._stamp and now == before:  # written, and no longer being written
                self._stamp = now
                try:
                    view = look(self._layout, self._inputs, reenrolling=reenrolling, read_only=True)
                except ByteorError:
                    return
                is_other = (view.settings, view.found.token) != self._asked
                is_elsewhere = self._asked is None or (
                    view.settings.api_base_url != self._asked[0].api_base_url
                )
            before = now
            if is_other and (is_elsewhere or gone >= least_s):
                log.notice("other settings or another token were written: trying at once")
                return
            pause.wait(min(LOOK_S, limit_s - gone))

    def _written(self) -> list[tuple[int, int, int] | None]:
        """Return what is another value once somebody writes a token or settings on this host."""
        found: list[tuple[int, int, int] | None] = []
        defaults = self._inputs.config or self._layout.image_defaults
        for path in (self._layout.drop_place, self._layout.token_file, defaults):
            try:
                facts = os.stat(path)
                found.append((facts.st_ino, facts.st_mtime_ns, facts.st_size))
            except OSError:
                found.append(None)
        return found
