"""Fetch the newest deployment's envelope, and have it judged (contract 2.3).

Nothing is judged here, and no envelope is parsed: that is the activator's work. One attempt is

    ask      GET latest; a new envelope goes into the inbox
    settle   have the activator look where it has to; name the bundle that it wants to the transfer
             thread, or that none is wanted any more; hand over a bundle that has come

and each part goes by what is on disk, so that it does not matter where the last process stopped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Callable, Optional

from firstboot.agent.download import Download
from firstboot.agent.problems import Problem
from firstboot.agent.submit import Inbox
from firstboot.agent.worker import Context, Work
from firstboot.api.answers import NO_DEPLOYMENT, check
from firstboot.api.messages import HeartbeatReply, entity_tag
from firstboot.base import documents, files, log, trees
from firstboot.base.clock import from_rfc3339
from firstboot.base.documents import lenient
from firstboot.base.errors import ByteorError, Corrupt, TryAgain
from firstboot.base.layout import ENVELOPE
from firstboot.exchange import verdicts
from firstboot.exchange.verdicts import Record, Row, Wanted

DOING = "deployments"
PERIOD_S = 60.0
# What waits for a trusted clock is asked for again when the clock was set, else so often.
WAITING_S = 600.0
CLOCK_WAS_SET_S = 30.0
# For an unknown key the key sets are fetched once a minute at first, then ever more rarely: the
# control plane's hints tell as well.
KEYS_FIRST_S, KEYS_CAP_S = 60.0, 3600.0
LOST = (
    "the newest deployment's envelope is gone from the agent's inbox, or its file has another "
    "name: it is fetched again"
)
Hint = tuple[Optional[str], Optional[int]]


@dataclass(frozen=True)
class _Latest:
    envelope_sha256: Optional[str] = lenient()
    etag: Optional[str] = lenient()


@dataclass
class Deployments(Work):
    """Follow what is assigned.

    `keys_wanted` is called when nobody here knows the signing key.
    """

    context: Context
    inbox: Inbox
    download: Download
    keys_wanted: Callable[[], None]
    # The envelope in the inbox, and the tag that it came with.
    _looked: bool = False
    _sha256: str | None = None
    _tag: str | None = None
    # The envelope that the activator was asked about, "" before the first; it did not find it.
    _asked: str | None = ""
    _lost: bool = False
    _brought: Wanted | None = None
    # The newest hint, the hint as it was when we last looked, and what the envelope names.
    _hint: Hint | None = None
    _dealt: Hint | None = None
    _named: Hint | None = None
    _keys_at: float = float("-inf")
    _keys_pause: float = KEYS_FIRST_S
    _waiting: Row | None = None

    def run_once(self) -> None:
        """Make one attempt; raise what `answers.check` makes of the answer."""
        self._look()
        try:
            self._ask()
        except ByteorError:
            # Its word on when to come again counts, whatever is wrong on this host as well.
            try:
                self._settle()
            except ByteorError as error:
                log.warning(str(error), hint=error.hint)
            raise
        self._settle()

    def problems(self) -> list[Problem]:
        """Return what waits for this host, not for the control plane."""
        found = self.inbox.problems()
        if self._lost:
            found.append(Problem("envelope_lost", LOST, "leave the agent's inbox to the agent"))
        waiting = self._waiting
        if waiting is not None:
            why = "this host's clock cannot be trusted, so its times are not judged"
            if waiting.due is not None:
                why = f"it is issued ahead of this host's clock; judged again at {waiting.due}"
            detail = f"{waiting.deployment_id or 'the newest deployment'} waits: {why}"
            found.append(
                Problem("deployment_waiting", detail, "check time synchronisation (timedatectl)")
            )
        return found

    def shown(self) -> dict[str, Any]:
        return {"download": self.download.progress}

    def hinted(self, hints: HeartbeatReply) -> bool:
        """Return True when a deployment is named that is news."""
        hint = (hints.deployment_id, hints.deployment_sequence)
        if hint in ((None, None), self._dealt, self._named):
            return False
        self._hint = hint
        return True

    def nudged(self) -> bool:
        """Return True: the activator ran, and its answer is to be followed."""
        return True

    def _ask(self) -> None:
        """Take what is assigned."""
        tag = None if self._lost and self.inbox.may_repeat() else self._tag
        answer = self.context.api.latest(*self.context.who, tag=tag)
        self.inbox.heard(answer.date)
        code = answer.problem.code if answer.problem is not None else None
        if answer.status == 204 or (answer.status == 404 and code == NO_DEPLOYMENT):
            self._withdraw()
        else:
            check(answer, doing=DOING, conditional=tag is not None)
            if answer.status == 200 and answer.is_json:
                self._take(answer.body, answer.tag)
            elif answer.status != 304:
                raise TryAgain(
                    f"{DOING}: the control plane answered {answer.status} without a deployment"
                )
        self._dealt = self._hint

    def _look(self) -> None:
        """Once: see what an earlier process left."""
        if self._looked:
            return
        try:
            envelope = files.read(self.context.layout.inbox / ENVELOPE, limit=files.JSON_LIMIT)
            stored = documents.read(self.context.layout.latest, _Latest) or _Latest()
        except Corrupt:
            envelope, stored = None, _Latest()
        if envelope is not None:
            self._sha256 = hashlib.sha256(envelope).hexdigest()
            if stored.envelope_sha256 == self._sha256:
                self._tag = entity_tag(stored.etag)
        self._looked = True

    def _take(self, envelope: bytes, tag: str | None) -> None:
        sha256 = hashlib.sha256(envelope).hexdigest()
        if self._lost or sha256 != self._sha256:
            self.inbox.put(ENVELOPE, envelope)
            self._keys_at, self._keys_pause = float("-inf"), KEYS_FIRST_S
        elif tag == self._tag:
            return
        # After the envelope: a tag without it would let the control plane say "unchanged" for ever.
        files.write_json(
            self.context.layout.latest, {"v": 1, "envelope_sha256": sha256, "etag": tag}
        )
        self._sha256, self._tag = sha256, tag

    def _withdraw(self) -> None:
        """Nothing is assigned: what is not active yet must not become so."""
        if self._sha256 is not None:
            files.remove(self.context.layout.latest)
            files.remove(self.context.layout.inbox / ENVELOPE)
            self._sha256 = self._tag = None

    def _settle(self) -> None:
        self.inbox.finish()
        try:
            decided = verdicts.read(self.context.layout)
        except Corrupt:
            if self.inbox.may_repeat():
                self.inbox.request()  # the activator sets it aside, and begins a new one
            raise
        if self._is_to_be_asked(decided):
            self._asked = self._sha256
            self.inbox.request()
            decided = verdicts.read(self.context.layout)
        found = decided.answered.envelope_sha256 == self._sha256
        answered = found and not self.inbox.pending(decided)
        if not self.inbox.pending(decided):
            self._lost = not found and self._sha256 is not None
        verdict = decided.of_envelope(self._sha256) if answered else None
        self._waiting = verdict if verdict is not None and verdict.verdict == "waiting" else None
        known = decided.wanted if answered and decided.wanted is not None else verdict
        self._named = (known.deployment_id, known.sequence) if known is not None else None
        if not answered and self._sha256 is not None:
            return
        wanted = decided.wanted if self._sha256 is not None else None
        self.download.want(wanted)
        if wanted is None or not self.download.is_here(wanted):
            self._brought = None
        elif self._brought != wanted:
            self._brought = wanted
            self.inbox.request()

    def _is_to_be_asked(self, decided: Record) -> bool:
        inbox = self.inbox
        if inbox.pending(decided) or inbox.was_overlooked():
            return inbox.may_repeat()
        if decided.answered.envelope_sha256 != self._sha256:
            # Also when nothing is assigned any more: what was awaited is dropped. What was not
            # found is asked about once more after a pause.
            return self._asked != self._sha256 or inbox.may_repeat()
        if self._sha256 is None:
            return False
        verdict = decided.of_envelope(self._sha256)
        if verdict is not None and verdict.due is not None:
            return inbox.may_repeat() and (self._is_due(verdict) or self._clock_was_set())
        since = self.context.clock.monotonic() - inbox.asked_at
        if decided.wanted is not None:
            # It has the bundle, said nothing of it, and wants it: what held it up may be over.
            return self._brought == decided.wanted and since >= WAITING_S
        if verdict is not None and verdict.verdict == "waiting":
            return since >= WAITING_S or (inbox.may_repeat() and self._clock_was_set())
        if verdict is not None and verdict.code == "unknown_key":
            return self._key_may_be_known(verdict)
        if verdict is None and not inbox.interrupted():
            return inbox.may_repeat()  # answered, and nothing came of it: what it began was lost
        return False  # final: never asked again

    def _is_due(self, verdict: Row) -> bool:
        """Return True when its time has come, and what it needs is free."""
        if from_rfc3339(str(verdict.due)) > self.context.clock.wall():
            return False
        deployments, needed = self.context.layout.deployments, verdict.needed
        return needed is None or trees.free_bytes(deployments) >= needed

    def _clock_was_set(self) -> bool:
        before, now = self.inbox.asked_with, self.inbox.clock_offset_s
        if before is None or now is None:
            return before is not now
        return abs(now - before) >= CLOCK_WAS_SET_S

    def _key_may_be_known(self, verdict: Row) -> bool:
        if verdicts.keys_version(self.context.layout) != verdict.keys_version:
            return self.inbox.may_repeat()
        now = self.context.clock.monotonic()
        if now >= self._keys_at:
            self._keys_at = now + self._keys_pause
            self._keys_pause = min(KEYS_CAP_S, 2 * self._keys_pause)
            self.keys_wanted()
        return False
