"""Say what keeps first boot from getting on: in the journal, to systemd, and for `status`.

``identity/progress.json`` (0600) is there while something is wrong, and goes when it is over.
`status` shows it, nothing is decided by it. Only a refusal is written durably: what else a power
cut loses, the next attempt writes again.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional

from firstboot.api.client import Answer
from firstboot.base import documents, files, log, systemd
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.documents import Line, Time
from firstboot.base.errors import ByteorError, LocalFault, Refused
from firstboot.base.layout import Layout
from firstboot.base.secret import redacted
from firstboot.provision.tokens import Mark

SAY_AGAIN_S = 180.0
LONGEST_PROBLEM, LONGEST_STATUS = 2000, 160  # characters; of the file, of systemd's line


@dataclass(frozen=True)
class Refusal:
    """The control plane's refusal of a token, kept until that token is gone or accepted."""

    token_mark: Mark
    at: Time
    status: int
    hint: str
    code: Optional[str] = None
    detail: Optional[str] = None

    def said(self) -> str:
        """Return the answer in one line."""
        words = ": ".join(word for word in (self.code, self.detail) if word)
        return f"{self.status} ({words})" if words else str(self.status)


@dataclass(frozen=True)
class Progress:
    """One trouble: since when, how often, when next; `next_attempt_at` None when `run` ended."""

    doing: Line  # the step of the table
    problem: str
    hint: Optional[str]
    since: Time
    attempts: int
    last_attempt_at: Time
    next_attempt_at: Optional[Time] = None
    refusal: Optional[Refusal] = None
    v: int = 1

    @property
    def was_refused(self) -> bool:
        """Return True when the refusal is what the last attempt met."""
        return self.refusal is not None and self.next_attempt_at is None

    def shown(self) -> dict[str, Any]:
        """Return the part of the JSON of `status`: all but the token's mark."""
        members = {name: value for name, value in asdict(self).items() if name != "v"}
        if self.refusal is not None:
            del members["refusal"]["token_mark"]
        return members


def load(layout: Layout) -> Progress | None:
    """Return what the last run wrote; None when there is nothing, or nothing that can be read."""
    try:
        return documents.read(layout.progress, Progress)
    except LocalFault:
        return None  # for display only: the next attempt writes it anew


def clear(layout: Layout) -> None:
    """Remove it: first boot gets on."""
    with suppress(LocalFault):
        files.remove(layout.progress)


def at_work(layout: Layout) -> bool:
    """Return True while a `run` holds its lock. Writes nothing."""
    try:
        fd = os.open(layout.run_lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Trouble:
    """The failures of one run, as it tells them."""

    def __init__(self, layout: Layout, clock: Clock) -> None:
        self._layout, self._clock = layout, clock
        self._problem, self._attempts, self._say_at = "", 0, 0.0
        self.doing = "look"  # the step of the table

    @property
    def is_new(self) -> bool:
        """Return True until an attempt has failed."""
        return not self._attempts

    def waits(self, error: ByteorError, delay: float) -> None:
        """Tell a failure that is retried after `delay` seconds.

        The journal has it at once when it is new, then as the pauses grow, then every few minutes:
        a night of outage is not a night of log lines.
        """
        kept = self._write(error, next_s=delay)
        if str(error) != self._problem:
            self._problem, self._attempts, self._say_at = str(error), 0, 0.0
        self._attempts += 1
        now, grew = self._clock.monotonic(), self._attempts & (self._attempts - 1) == 0
        if grew or now >= self._say_at:
            facts = {"attempt": kept.attempts, "next_attempt_in_s": delay, "hint": error.hint}
            log.warning(str(error), **facts)
            self._say_at = now + SAY_AGAIN_S
        _status(f"attempt {kept.attempts}, next in {delay:.0f} s: {error}")

    def ends(self, error: ByteorError) -> None:
        """Keep a failure that ends this run; who catches it says it."""
        self._write(error)
        show_end(error)

    def refused(self, error: ByteorError, answer: Answer, *, mark: str) -> None:
        """Keep what the control plane said to the token of that mark, in the words of `error`."""
        problem, at = answer.problem, rfc3339(self._clock.wall())
        kept = Refusal(mark, at, answer.status, error.hint)
        if problem is not None:
            kept = replace(kept, code=problem.code, detail=problem.detail or problem.title)
        self._write(error, refusal=kept)

    def over(self, *, done: bool) -> None:
        """Tell that it goes on; a refusal is kept until it is `done`."""
        if self._attempts:
            log.notice("first boot goes on", after_attempts=self._attempts, problem=self._problem)
        self._problem, self._attempts = "", 0
        before = load(self._layout)
        if done or before is not None and before.refusal is None:
            clear(self._layout)
        _status("enrolled" if done else "under way")

    def _write(
        self,
        error: ByteorError,
        *,
        next_s: float | None = None,
        refusal: Refusal | None = None,
    ) -> Progress:
        before, now = load(self._layout), self._clock.wall()
        since, attempts = rfc3339(now), 0
        if (
            before is not None
            and before.doing == self.doing
            and not (refusal or before.was_refused)
        ):
            since, attempts = before.since, before.attempts
        found = Progress(
            doing=self.doing,
            problem=redacted(str(error))[:LONGEST_PROBLEM],
            hint=error.hint,
            since=since,
            attempts=attempts + 1,
            last_attempt_at=rfc3339(now),
            next_attempt_at=rfc3339(now + next_s) if next_s is not None else None,
            refusal=refusal or (before.refusal if before is not None else None),
        )
        with suppress(LocalFault):  # the disk may be the trouble
            files.write_json(self._layout.progress, asdict(found), durable=refusal is not None)
        return found


def show_end(error: ByteorError) -> None:
    """Say in the unit's line of ``systemctl status`` what ended the run."""
    _status(f"{'refused' if isinstance(error, Refused) else 'stopped'}: {error}")


def _status(text: str) -> None:
    systemd.notify(f"STATUS={log.one_line(redacted(text))[:LONGEST_STATUS]}")
