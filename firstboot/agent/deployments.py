"""The fetching side of deployments (contract 2.3): what is assigned goes to the activator, and what it wants is brought.

Nothing here is judged, and no envelope is parsed: that is the activator's. One attempt is

    ask      GET latest; a new envelope goes into the inbox
    settle   what the activator is to look at, or to look at again; what nobody wants any more is removed
    bring    the bundle that it wants, once it has verified the envelope that names it

and each part goes by what is on the disk, so that it does not matter where the last process was stopped.
"""

from __future__ import annotations

import hashlib
from typing import Any, Callable, Optional

from firstboot.agent.download import Download, GaveWay
from firstboot.agent.inbox import Inbox
from firstboot.agent.loop import Schedule
from firstboot.agent.problems import Problem
from firstboot.api.answers import NO_DEPLOYMENT, check
from firstboot.api.client import PlaneApi
from firstboot.api.messages import HeartbeatReply, entity_tag
from firstboot.api.transport import CEILING_BYTES
from firstboot.base import files
from firstboot.base.clock import Clock
from firstboot.base.errors import Corrupt, TryAgain
from firstboot.base.layout import ENVELOPE, Layout
from firstboot.exchange import verdicts
from firstboot.exchange.handover import Handover
from firstboot.exchange.verdicts import Record, Row, Wanted

DOING = "deployments"
PERIOD_S = 60.0
# What waits for a trusted clock is asked for again when the clock was set, else so often.
WAITING_S = 600.0
CLOCK_WAS_SET_S = 30.0
# For an unknown key the key sets are fetched once a minute at first, then ever more rarely: the plane's hints tell as well.
KEYS_FIRST_S, KEYS_CAP_S = 60.0, 3600.0
# An attempt that brought so much was no failure, however it ended: the next one comes soon.
WORTH_BYTES = 1 << 20
Hint = tuple[Optional[str], Optional[int]]


class DeploymentsLoop:
    """`keys_wanted` is called when the newest envelope is signed by a key that nobody here knows."""

    def __init__(
        self,
        layout: Layout,
        handed: Handover,
        api: PlaneApi,
        *,
        schedule: Schedule,
        inbox: Inbox,
        alive: Callable[..., None],
        changed: Callable[[], None],
        keys_wanted: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._layout, self._handed, self._api = layout, handed, api
        self.schedule = schedule
        self._inbox, self._alive, self._keys_wanted, self._clock = inbox, alive, keys_wanted, clock
        self._download = Download(layout, handed, api, alive=alive, changed=changed, clock=clock)
        self._latest = layout.latest
        # The envelope in the inbox, and the tag that it came with.
        self._looked = False
        self._sha256: str | None = None
        self._tag: str | None = None
        self._brought: Wanted | None = None
        # What the plane hinted, what it had hinted when we last looked, and what the envelope in the inbox is.
        self._hint: Hint | None = None
        self._dealt: Hint | None = None
        self._named: Hint | None = None
        self._at_it = False
        self._keys_at, self._keys_pause = float("-inf"), KEYS_FIRST_S
        self._waiting: Row | None = None

    def run_once(self) -> None:
        """One attempt, as the module says; raises what `answers.check` makes of the plane's answers."""
        self._at_it = True
        try:
            self._look()
            try:
                self._ask()
            finally:
                self._settle()
            self._bring()
        finally:
            self._at_it = False

    def problems(self) -> list[Problem]:
        """What waits for this host, not for the plane."""
        found = self._inbox.problems()
        if self._waiting is not None:
            named = self._waiting.deployment_id or "the newest deployment"
            detail = (
                f"{named} waits: this host's clock cannot be trusted, so its times are not judged"
            )
            found.append(
                Problem("deployment_waiting", detail, "check time synchronisation (timedatectl)")
            )
        return found

    def shown(self) -> dict[str, Any]:
        return {"download": self._download.shown()}

    def hinted(self, hints: HeartbeatReply) -> bool:
        """Whether the plane names a deployment that is news to us; one that still is with the next beat comes again."""
        hint = (hints.deployment_id, hints.deployment_sequence)
        if hint in ((None, None), self._dealt, self._named):
            return False
        if self._at_it:
            # It may be what we have just asked about. But a download of hours is not to hold up what comes after it.
            before = self._named[1] if self._named is not None else None
            if before is None or hint[1] is None or hint[1] <= before:
                return False
            self._download.give_way()
        self._hint = hint
        return True

    def nudged(self) -> bool:
        """The activator ran: there is its answer to follow."""
        return True

    def _ask(self) -> None:
        """Take what is assigned."""
        hint = self._hint
        answer = self._api.latest(self._handed.agent_id, self._handed.api_key, tag=self._tag)
        self._inbox.heard(answer.date)
        code = answer.problem.code if answer.problem is not None else None
        if answer.status == 204 or (answer.status == 404 and code == NO_DEPLOYMENT):
            self._withdraw()
        else:
            check(answer, doing=DOING, conditional=self._tag is not None)
            if answer.status == 200 and answer.is_json:
                self._take(answer.body, answer.tag)
            elif answer.status != 304:
                raise TryAgain(f"{DOING}: the plane answered {answer.status} without a deployment")
        self._dealt = hint

    def _look(self) -> None:
        """Once: what a process before this one left."""
        if self._looked:
            return
        try:
            envelope = files.read(self._layout.inbox / ENVELOPE, limit=CEILING_BYTES)
            stored = files.read_json(self._latest) or {}
        except Corrupt:
            envelope, stored = None, {}
        if envelope is not None:
            self._sha256 = hashlib.sha256(envelope).hexdigest()
            tag = stored.get("etag")
            if stored.get("envelope_sha256") == self._sha256 and isinstance(tag, str):
                self._tag = entity_tag(tag)
        self._looked = True

    def _take(self, envelope: bytes, tag: str | None) -> None:
        sha256 = hashlib.sha256(envelope).hexdigest()
        if sha256 != self._sha256:
            self._inbox.put(ENVELOPE, envelope)
            self._keys_at, self._keys_pause = float("-inf"), KEYS_FIRST_S
        elif tag == self._tag:
            return
        # After the envelope: a tag without it would let the plane say "unchanged" for ever.
        files.write_json(self._latest, {"v": 1, "envelope_sha256": sha256, "etag": tag})
        self._sha256, self._tag = sha256, tag

    def _withdraw(self) -> None:
        """Nothing is assigned: what was not brought into force yet is not to be."""
        if self._sha256 is not None:
            files.remove(self._latest)
            files.remove(self._layout.inbox / ENVELOPE)
            self._sha256 = self._tag = None

    def _settle(self) -> None:
        """Ask the activator where it has something to look at, and remove what it no longer wants."""
        self._inbox.finish(self._alive)
        decided = verdicts.read(self._layout)
        if self._is_to_be_asked(decided):
            self._inbox.request(self._alive)
            decided = verdicts.read(self._layout)
        answered = not self._inbox.pending(decided) and decided.envelope_sha256 == self._sha256
        verdict = (
            decided.of_envelope(self._sha256) if answered and self._sha256 is not None else None
        )
        self._waiting = verdict if verdict is not None and verdict.verdict == "waiting" else None
        known = decided.wanted if answered and decided.wanted is not None else verdict
        self._named = (known.deployment_id, known.sequence) if known is not None else None
        if answered or self._sha256 is None:
            self._download.tidy(decided.wanted if self._sha256 is not None else None)

    def _is_to_be_asked(self, decided: Record) -> bool:
        inbox = self._inbox
        if inbox.pending(decided):
            return inbox.may_repeat()
        if self._sha256 is None:
            return False
        if decided.envelope_sha256 != self._sha256:
            return True
        since = self._clock.monotonic() - inbox.asked_at
        if decided.wanted is not None:
            # It has the bundle, said nothing of it, and wants it: what held it up may be over.
            return self._brought == decided.wanted and since >= WAITING_S
        verdict = decided.of_envelope(self._sha256)
        if verdict is not None and verdict.verdict == "waiting":
            return since >= WAITING_S or (inbox.may_repeat() and self._clock_was_set())
        if verdict is not None and verdict.code == "unknown_key":
            return self._key_may_be_known(verdict)
        if verdict is None and not inbox.interrupted():
            return inbox.may_repeat()  # answered, and nothing came of it: what it began was lost
        return False  # final: never asked again

    def _clock_was_set(self) -> bool:
        before, now = self._inbox.asked_with, self._inbox.clock_offset_s
        if before is None or now is None:
            return before is not now
        return abs(now - before) >= CLOCK_WAS_SET_S

    def _key_may_be_known(self, verdict: Row) -> bool:
        if verdicts.keys_version(self._layout) != verdict.keys_version:
            return self._inbox.may_repeat()
        now = self._clock.monotonic()
        if now >= self._keys_at:
            self._keys_at, self._keys_pause = (
                now + self._keys_pause,
                min(KEYS_CAP_S, 2 * self._keys_pause),
            )
            self._keys_wanted()
        return False

    def _bring(self) -> None:
        decided = verdicts.read(self._layout)
        wanted = decided.wanted
        if (
            wanted is None
            or decided.envelope_sha256 != self._sha256
            or self._inbox.pending(decided)
        ):
            return
        if not self._download.is_here(wanted):
            self._brought = None
            try:
                self._download.bring(wanted)
            except GaveWay:
                return  # the hint that told us makes us look at once
            except TryAgain:
                if self._download.gained >= WORTH_BYTES:
                    self.schedule.failures = 0
                raise
        if self._brought != wanted:
            self._brought = wanted
            self._inbox.request(self._alive)
            self._settle()
