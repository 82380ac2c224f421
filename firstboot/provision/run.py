"""First boot: look at what is on disk, take the next step of the table, look again, until done.

`decision` holds the table, `facts` reads what it rests on, and this module does the steps. The lock
``identity/lock`` is held for one look and one step, never during a pause or a request, and the
facts are read again after taking it. Two orderings carry the safety: the intent is durable before
the token is presented, and the identity is sealed, durable and read back before the token is
erased. Model: SPIRE ``pkg/agent/attestor/node/node.go``.
"""

from __future__ import annotations

import json
import math
import resource
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Callable

from firstboot.api.client import Answer, PlaneApi
from firstboot.api.connection import DEADLINE_S
from firstboot.api.messages import enrollment_body
from firstboot.base import files, log, systemd
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import ByteorError, LocalFault, NotErased, Refused, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange import settings as frozen
from firstboot.exchange.inbox import forget_answers
from firstboot.identity import store
from firstboot.identity.host import hostname
from firstboot.identity.store import Identity, State
from firstboot.provision import cleanup, enrollment, preflight, progress
from firstboot.provision.decision import IntentState, Step, next_step
from firstboot.provision.enrollment import PAUSES_S, Meaning
from firstboot.provision.erase.receipt import Receipt
from firstboot.provision.facts import View, look, say_unused, stop_error
from firstboot.provision.freezing import freeze_again, with_proxy_of
from firstboot.provision.schema import ROUTING, require_complete
from firstboot.provision.sources import Inputs
from firstboot.provision.tokens import Intent, TokenClass
from firstboot.provision.waiting import Pause

HOURLY_S = (3240.0, 3960.0)  # between a gateway's answers after those of `enrollment.PAUSES_S`
LEAST_S = 1.0  # for a request, however short the limit is


@dataclass(frozen=True)
class Options:
    """The command line's wishes for a run."""

    again: bool = False  # present a refused token although this boot did
    reenroll: bool = False  # replace the identity that is here
    give_up_after: float | None = None  # seconds of transient failure; None: never


def run(layout: Layout, inputs: Inputs, options: Options) -> int:
    """Do the whole of first boot; return 0, or raise the error that stopped it.

    An identity that opens here is handed off before anything beside it may fail: a damaged lock or
    directory is then a warning.
    """
    first = FirstBoot(layout, inputs, options)
    hint = "wait for it, or look at journalctl -u byteor-firstboot"
    busy = TryAgain("another run is at work", hint=hint)
    try:
        preflight.make_state(layout)
        with files.locked(layout.run_lock, busy=lambda: busy):
            return first.run()
    except LocalFault as error:
        if options.reenroll or not first.hand_off_despite(error):
            raise
        return 0
    except Exception as error:  # raised again: a bug must not keep an enrolled host dark
        if not isinstance(error, ByteorError) and not options.reenroll:
            first.hand_off_despite(LocalFault("first boot failed in a way that is a bug"))
        raise


class FirstBoot:
    """One run: what it has done already, beside what is on disk."""

    def __init__(
        self, layout: Layout, inputs: Inputs, options: Options, *, clock: Clock | None = None
    ) -> None:
        self._layout = layout
        self._inputs = inputs
        self._options = options
        self._clock = clock or Clock()
        self._started = self._clock.monotonic()
        self._unbelieved = {Meaning.MALFORMED: 0, Meaning.GATEWAY: 0}
        self._trouble = progress.Trouble(layout, self._clock)
        self._pause = Pause(layout, inputs)
        self._reached: str | None = None  # the base URL that preflight has reached
        self._handed_off = self._replaced = False
        self._fault: LocalFault | None = None  # of the hand-off: raised when the rest is done
        self._tried: frozenset[Secret] | None = None
        self._receipt: Receipt | None = None

    def run(self) -> int:
        """Take steps until one ends the run."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the token
        with self._lock():
            preflight.sweep(self._layout)
        while True:
            try:
                if self._step():
                    return 0
            except TryAgain as error:
                self._wait(error)
            except LocalFault as error:
                self._trouble.ends(error)
                raise
            except ByteorError as error:
                progress.show_end(error)
                raise

    def _wait(self, error: TryAgain) -> None:
        """Pause after a transient failure, or raise it when the limit is reached."""
        left = self._left()
        least, delay = self._pause.length(error)
        if left <= 0 or left < least <= delay:
            self._trouble.ends(error)
            raise error
        delay = min(delay, left)
        self._trouble.waits(error, delay)
        least = error.retry_after or 0.0
        self._pause.wait(delay, least_s=least, reenrolling=self._reenrolling)

    @property
    def _reenrolling(self) -> bool:
        return self._options.reenroll and not self._replaced

    def _left(self) -> float:
        """Return the seconds until this run gives up."""
        limit = self._options.give_up_after
        return math.inf if limit is None else self._started + limit - self._clock.monotonic()

    def _plane(self, view: View) -> PlaneApi:
        deadline_s = min(DEADLINE_S, max(LEAST_S, self._left()))
        return preflight.plane(view.settings, deadline_s=deadline_s)

    # -- one look, one step

    def _step(self) -> bool:
        actions: dict[Step, Callable[[View], None]] = {
            Step.HAND_OFF: self._hand_off,
            Step.SETTLE: self._settle,
            Step.ERASE: self._erase,
            Step.REACH: self._check_host,
            Step.PREPARE: self._prepare,
            Step.ENROLL: lambda view: require_complete(view.settings),
        }
        self._pause.looks()
        with self._lock():
            view = look(
                self._layout,
                self._inputs,
                again=self._options.again,
                reenrolling=self._reenrolling,
                handed_off=self._handed_off,
                reached=self._reached,
                tried=self._tried,
                tighten=True,
            )
            self._pause.seen(view)
            step = next_step(view.facts)
            log.debug("next step", step=step.value)
            self._trouble.doing = step.value
            if step is Step.DONE:
                self._finish(view)
                return True
            if step not in actions:
                raise stop_error(step, view)
            actions[step](view)
        # Requests happen without the lock; what they change is decided after another look.
        if step is Step.REACH:
            with self._plane(view) as api:
                preflight.check_plane(api)
            self._reached = view.settings.api_base_url
            self._trouble.over(done=False)
        elif step is Step.ENROLL:
            self._enroll(view)
        return False

    def _lock(self) -> AbstractContextManager[int]:
        busy = LocalFault(
            "identity/lock is held by another process", hint="look for a hanging byteor-firstboot"
        )
        return files.locked(self._layout.lock, busy=lambda: busy)

    # -- steps without an identity

    def _check_host(self, view: View) -> None:
        """Fail on this host's side before the control plane or the token is touched."""
        for warning in view.found.warnings:  # they may say why something is missing
            log.warning(warning)
        require_complete(view.settings)
        preflight.check_disk(self._layout)
        preflight.check_clock(self._clock)
        if self._trouble.is_new:
            with log.warned():  # it is no reason not to enroll
                preflight.check_agent(self._layout)

    def _prepare(self, view: View) -> None:
        """Set aside what does not open here, try the sealing, and make the intent durable."""
        if view.seen.state in (State.FOREIGN, State.UNREADABLE):
            log.warning("the identity on this disk is set aside", because=view.seen.why)
            store.set_aside(self._layout)
        # Only now: a foreign sealing key must not be the one that this seals with.
        store.probe_sealing(self._layout, seal=view.settings.seal)
        token = view.chosen
        # Durable before the intent that refers to it: a mark means nothing under another key.
        view.marks.put(token, view.marks.classify(token), boot_id=view.marks.presented_in(token))
        # The control plane replays its first answer to the key that it knows.
        if view.facts.intent is not IntentState.OURS:
            self._new_intent(view).save(self._layout)

    def _new_intent(self, view: View, *, nameless: bool = False) -> Intent:
        token, former = view.chosen, view.intent
        mark, name = view.marks.mark(token), view.settings.name or hostname(self._layout)
        body = {} if nameless else enrollment_body(name=view.settings.name, hostname=name)
        same_token = former is not None and former.token_mark == mark
        if former is not None and former.unanswered and not same_token:
            log.warning(
                "an earlier enrollment was never answered: look for its agent in the list",
                name=former.name,
            )
        return Intent(
            key=str(uuid.uuid4()),
            body=json.dumps(body, sort_keys=True),
            name=name,
            token_mark=mark,
            token_length=len(token.reveal()),
            host=store.fingerprint(self._layout),
            unanswered=former is not None and former.unanswered and same_token,
        )

    def _enroll(self, view: View) -> None:
        token, intent = view.chosen, view.begun
        if self._trouble.is_new:
            log.info("presenting the token", name=intent.name)
        with self._plane(view) as api:
            answer = enrollment.present(api, self._layout, intent, view.settings, token)
        meaning = enrollment.meaning(answer, intent)
        log.debug("answered", status=answer.status, meaning=meaning.value)
        if meaning is Meaning.TRANSIENT:
            raise enrollment.transient(answer)
        if meaning in self._unbelieved:
            raise self._disbelieve(answer, meaning)
        with self._lock():
            # Sources may say something else by now; the answer is to what was presented. The intent
            # must be the same.
            stored = Intent.load(self._layout)
            if stored is None or stored.key != intent.key:
                raise LocalFault(
                    "the intent changed while the control plane answered", hint="run again"
                )
            if meaning is Meaning.ENROLLED:
                self._seal(view, answer, intent)
            elif meaning is Meaning.ASK_WITHOUT_NAME:
                # Another body means another key; the refusal proves that the first one enrolled
                # nothing.
                self._new_intent(view, nameless=True).save(self._layout)
            else:
                lost = meaning is Meaning.PROBABLY_SPENT
                raise self._refused(view, answer, stored, token, lost=lost)

    def _disbelieve(self, answer: Answer, meaning: Meaning) -> ByteorError:
        """Return the error for an answer that is asked for again, a malformed one three times."""
        count = self._unbelieved[meaning]
        self._unbelieved[meaning] += 1
        again = count < len(PAUSES_S)
        pause_s = PAUSES_S[count] if again else self._pause.chance.uniform(*HOURLY_S)
        if meaning is Meaning.GATEWAY or again:
            return enrollment.Unbelieved(answer, meaning, pause_s=pause_s)
        error = enrollment.malformed_for_good(answer)
        self._trouble.ends(error)
        return error

    def _seal(self, view: View, answer: Answer, intent: Intent) -> None:
        reply = answer.enrolled
        assert reply is not None  # noqa: S101 - what ENROLLED means
        found = with_proxy_of(self._inputs.environ, view.settings)
        fresh = Identity(
            **{name: getattr(found, name) for name in ROUTING},
            agent_id=reply.agent_id,
            name=reply.name or intent.name,
            api_key=reply.api_key,
            scopes=reply.scopes,
            expires_at=reply.expires_at,
            enrolled_at=rfc3339(self._clock.wall()),
            routed=True,
            idempotency_key=intent.key,
        )
        # The reply's key sets replace those of an enrollment before: they are this environment's.
        settings = replace(
            found,
            key_sets=reply.signing_keys,
            heartbeat_interval_s=found.heartbeat_interval_s or reply.heartbeat_interval_s,
        )
        forget_answers(self._layout)
        files.write_json(self._layout.settings, frozen.freeze(settings), mode=0o644)
        store.save(self._layout, fresh, seal=found.seal)
        back = store.look(self._layout)
        if back.state is not State.HERE or back.identity != fresh:
            raise LocalFault(
                f"the sealed identity does not read back: {back.why or 'it differs'}",
                hint="the token and its intent are kept: fix the disk and run again",
            )
        store.drop_unused_key(self._layout)
        log.notice("enrolled", agent_id=fresh.agent_id, name=fresh.name)
        former = view.seen.identity
        if former is not None and former.agent_id != fresh.agent_id:
            log.notice(f"agent {former.agent_id} is superseded: delete it at the control plane")
        self._trouble.over(done=True)
        self._replaced = True
        self._handed_off = False

    def _refused(
        self, view: View, answer: Answer, intent: Intent, token: Secret, *, lost: bool
    ) -> Refused:
        """Record the refusal, which ends the intent, and return the error that says it."""
        view.marks.put(token, TokenClass.REFUSED, boot_id=view.boot_id)
        if intent.unanswered:
            replace(intent, ended=True).save(self._layout)
        else:
            Intent.wipe(self._layout)
        error = enrollment.refusal(answer, intent, view.settings, lost=lost)
        self._trouble.refused(error, answer, mark=view.marks.mark(token))
        return error

    # -- steps with an identity

    def hand_off_despite(self, error: LocalFault) -> bool:
        """Hand off an identity that opens here although `error` stopped the run before it did."""
        seen = store.look(self._layout)
        if self._handed_off or seen.identity is None:
            return False
        log.warning(f"this host is enrolled and its agent is started, but {error}", hint=error.hint)
        self._start_agent(restart=False)
        return True

    def _hand_off(self, view: View) -> None:
        """Take what the image's defaults may change, and queue the agent's start.

        The agent is started even where the settings cannot be written. A fault is raised when the
        rest is done: without its unit, too, the token is erased.
        """
        self._handed_off = True
        try:
            freeze_again(self._layout, view.seen, view.found.image, boot_id=view.boot_id)
        except LocalFault as error:
            self._fault = error
        try:
            # An identity that is not settled is new: an agent that runs has the old one.
            self._start_agent(restart=not view.facts.settled)
        except LocalFault as error:
            self._fault = self._fault or error

    def _start_agent(self, *, restart: bool) -> None:
        if self._layout.is_host and systemd.booted():
            systemd.start(preflight.AGENT_UNIT, restart=restart)
            log.info("handed off", unit=preflight.AGENT_UNIT)
        else:
            log.info("handed off; there is no systemd here: start byteor-agent run")

    def _settle(self, view: View) -> None:
        """Mark the token spent and wipe the intent, which has done its work."""
        intent = view.begun
        view.marks.put_mark(
            intent.token_mark, intent.token_length, TokenClass.SPENT, boot_id=view.boot_id
        )
        Intent.wipe(self._layout)

    def _erase(self, view: View) -> None:
        self._tried = view.erasable | (self._tried or frozenset())
        kind, now = TokenClass.SPENT, self._clock.wall()
        self._receipt = cleanup.erase(
            self._layout, view, self._inputs, view.erasable, kind, now=now, late=view.finished
        )

    def _finish(self, view: View) -> None:
        """Say what was not used; raise a fault of the hand-off, or NotErased when a copy stays."""
        if self._fault is None:
            progress.clear(self._layout)
        say_unused(view)
        if self._fault is not None:
            self._trouble.doing = Step.HAND_OFF.value
            raise self._fault
        left = cleanup.left(self._receipt) if self._receipt is not None else []
        if left:
            raise NotErased(
                f"enrolled, but a copy of the token could not be erased: {', '.join(left)}",
                hint="fix its cause and rerun byteor-firstboot erase",
            )
