"""``--wait`` and ``--check`` of both `status` commands.

They rest on files alone. Nothing is asked of systemd, and no unit or job is waited for, so that
``status --wait`` in cloud-init's ``runcmd`` keeps nothing from happening that it waits for.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Event
from typing import Any, Callable

from firstboot.base.clock import monotonic
from firstboot.base.errors import ByteorError, CheckFailed, TryAgain
from firstboot.commands.agent_page import show
from firstboot.commands.flags import flag

WAIT_S = 600.0
POLL_S = 1.0
NO_BEAT = "no heartbeat was accepted yet"


@dataclass(frozen=True)
class Seen:
    """One look at a host.

    `online`: enrolled, and the control plane accepts the agent's heartbeats. `trouble`: a sentence
    on what needs a person, and its hint. `stop`: the error that `run` ends with, or has ended with;
    `final` when waiting would not change it.
    """

    document: dict[str, Any]
    online: bool
    trouble: tuple[str, str | None] | None
    stop: ByteorError | None
    final: bool

    @property
    def said(self) -> tuple[str, str | None]:
        """Return what to say of a host that is not online, or not well."""
        return self.trouble or (NO_BEAT, None)


class Line:
    """One line of stderr that is written anew while something is awaited; only at a terminal."""

    def __init__(self) -> None:
        self._width = 0

    def say(self, text: str) -> None:
        """Replace the line."""
        if sys.stderr.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write(f"\r{text:<{self._width}}")
            sys.stderr.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Leave nothing of it."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0


def watch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--wait`` and ``--check``."""
    parser.add_argument(
        "--wait",
        nargs="?",
        type="seconds",
        const=WAIT_S,
        metavar="SECONDS",
        help=f"wait until this host is online; exit 6 after SECONDS (default {WAIT_S:.0f})",
    )
    flag(parser, "--check", "exit 0 when all is well, 10 when not, or as `run` would")


def watch(
    arguments: argparse.Namespace, look: Callable[[], Seen], page: Callable[[Seen], Iterable[str]]
) -> Seen:
    """Look, wait if that is asked for, show, and raise what the flags ask for.

    The page or document is printed in every case, once, before the error; a terminal shows what is
    waited for. With both flags the host must be online in time and then be well; without any,
    nothing is raised here. An error that names a time is TryAgain (6); one that a longer wait would
    not change is raised at once.
    """
    seen, pause, line = look(), Event(), Line()
    limit = monotonic() + (arguments.wait or 0.0)
    while arguments.wait and not seen.online and not seen.final:
        left = limit - monotonic()
        if left <= 0:
            break
        line.say(f"waiting: {seen.said[0]}")
        pause.wait(min(POLL_S, left))
        seen = look()
    line.clear()
    show(seen.document, page(seen), as_json=arguments.json)
    said, hint = seen.said
    if arguments.wait is not None and not seen.online:
        if seen.final and seen.stop is not None:
            raise seen.stop
        raise TryAgain(f"not online after {arguments.wait:.0f} s: {said}", hint=hint)
    if arguments.check and seen.stop is not None:
        raise seen.stop
    if arguments.check and not (seen.online and seen.trouble is None):
        raise CheckFailed(f"this host is not well: {said}", hint=hint)
    return seen
