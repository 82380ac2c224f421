"""First boot: look at what is on disk, take the next step of the table, do it, and look again, until done.

`decision` holds the table, `facts` reads what it rests on, and this module does the steps. The lock
``identity/lock`` is held for one look and one step, never during a pause or a request, and the facts are read again
after taking it. Two orderings carry the safety: the intent is durable before the token is presented, and the identity
is sealed, durable and read back before the token is erased.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from firstboot.api.client import Answer
from firstboot.api.messages import enrollment_body
from firstboot.base import files, log, systemd
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import Corrupt, LocalFault, NotErased, Refused, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange import settings as frozen
from firstboot.identity import store
from firstboot.identity.store import Identity, State
from firstboot.provision import cleanup, enrollment, preflight
from firstboot.provision import intent as intents
from firstboot.provision import schema as settings
from firstboot.provision.decision import Step, next_step
from firstboot.provision.enrollment import Meaning
from firstboot.provision.erase.receipt import Receipt
from firstboot.provision.facts import View, look, stop_error
from firstboot.provision.intent import Intent
from firstboot.provision.patience import Patience
from firstboot.provision.sources import Inputs
from firstboot.provision.tokens import TokenClass

# A success without a usable id or key is repeated after these pauses: three times over ten minutes (contract 2.1).
MALFORMED_PAUSES_S = (60.0, 180.0, 360.0)
RUN_LOCK_WAIT_S = 30.0
STEP_LOCK_WAIT_S = 30.0
AGENT_UNIT = "byteor-agent.service"


@dataclass(frozen=True)
class Options:
    """What the command line may say about a run."""

    again: bool = False  # present a refused token although this boot did
    reenroll: bool = False  # replace the identity that is here
    give_up_after: float | None = None  # seconds of transient failure; None: never


def run(layout: Layout, inputs: Inputs, options: Options) -> int:
    """The whole of first boot; returns 0 or raises the error whose exit code says what stopped it."""
    preflight.make_state(layout)
    busy = TryAgain(
        "another run is at work", hint="wait for it, or look at journalctl -u byteor-firstboot"
    )
    with files.locked(layout.run_lock, wait_s=RUN_LOCK_WAIT_S, busy=lambda: busy):
        return FirstBoot(layout, inputs, options).run()


class FirstBoot:
    """One run: what it has done already, beside what is on disk."""

    def __init__(
        self, layout: Layout, inputs: Inputs, options: Options, *, clock: Clock | None = None
    ) -> None:
        self._layout = layout
        self._inputs = inputs
        self._options = options
        self._clock = clock or Clock()
        self._patience = Patience(self._clock, limit_s=options.give_up_after)
        self._malformed = 0
        self._reached: str | None = None  # the base URL that preflight has reached
        self._handed_off = False
        self._replaced = False
        self._tried: set[Secret] = set()
        self._receipt: Receipt | None = None

    def run(self) -> int:
        """Take steps until one ends the run."""
        while True:
            try:
                if self._step():
                    return 0
            except enrollment.MalformedSuccess as error:
                self._patience.wait(error, pause_s=error.pause_s)
            except TryAgain as error:
                self._patience.wait(error)

    # -- one look, one step

    def _step(self) -> bool:
        with self._lock():
            view = self._look()
            step = next_step(view.facts)
            log.debug("next step", step=step.value)
            if step is Step.DONE:
                return self._finish(view)
            if step is Step.SETTLE:
                self._settle(view)
            elif step is Step.HAND_OFF:
                self._hand_off(view)
            elif step is Step.ERASE:
                self._erase(view)
            elif step is Step.PREPARE:
                self._prepare_locally(view)
            elif step is Step.ENROLL:
                settings.require_complete(view.settings)
            else:
                raise stop_error(step, view)
        # Requests happen without the lock; what they change is decided after another look.
        if step is Step.PREPARE and self._reached != view.settings.api_base_url:
            with preflight.plane(view.settings) as api:
                preflight.check_plane(api)
            self._reached = view.settings.api_base_url
        elif step is Step.ENROLL:
            self._enroll(view)
        return False

    def _lock(self) -> AbstractContextManager[int]:
        busy = LocalFault(
            "identity/lock is held by another process", hint="look for a hanging byteor-firstboot"
        )
        return files.locked(self._layout.lock, wait_s=STEP_LOCK_WAIT_S, busy=lambda: busy)

    def _look(self) -> View:
        return look(
            self._layout,
            self._inputs,
            again=self._options.again,
            reenrolling=self._options.reenroll and not self._replaced,
            handed_off=self._handed_off,
            tried=frozenset(self._tried) if self._receipt is not None else None,
        )

    # -- steps without an identity

    def _prepare_locally(self, view: View) -> None:
        """What can fail on this host fails here, before the plane or the token is touched; then the intent."""
        settings.require_complete(view.settings)
        preflight.check_disk(self._layout)
        preflight.check_clock(self._clock)
        if self._reached != view.settings.api_base_url:
            return  # the TLS handshake comes first, without the lock
        if view.seen.state in (State.FOREIGN, State.UNREADABLE):
            log.warning("the identity on this disk is set aside", because=view.seen.why)
            store.set_aside(self._layout)
        # Only now: a foreign sealing key must not be the one that this seals with.
        store.probe_sealing(self._layout, seal=view.settings.seal)
        token = self._token(view)
        # Durable before the intent that refers to it: a mark means nothing under another key.
        view.marks.put(token, view.marks.classify(token), boot_id=view.marks.presented_in(token))
        self._new_intent(view).save(self._layout)

    def _new_intent(self, view: View, *, nameless: bool = False) -> Intent:
        token = self._token(view)
        asked = view.settings.name or store.hostname(self._layout)
        fresh = Intent.new(
            body={} if nameless else enrollment_body(name=view.settings.name, hostname=asked),
            name=asked,
            token_mark=view.marks.mark(token),
            token_length=len(token.reveal()),
            host=store.fingerprint(self._layout),
        )
        former = view.intent
        if former is None or not former.unanswered:
            return fresh
        if former.token_mark != fresh.token_mark:
            log.warning(
                "an earlier enrollment was never answered: look for its agent in the list",
                name=former.name,
            )
            return fresh
        return replace(fresh, unanswered=True)

    def _enroll(self, view: View) -> None:
        token, intent = self._token(view), self._intent(view)
        log.info("presenting the token", name=intent.name)
        with preflight.plane(view.settings) as api:
            answer = enrollment.present(
                api, self._layout, intent, settings=view.settings, token=token
            )
        meaning = enrollment.meaning(answer, intent)
        log.debug("answered", status=answer.status, meaning=meaning.value)
        if meaning is Meaning.TRANSIENT:
            raise enrollment.transient(answer)
        if meaning is Meaning.MALFORMED:
            if self._malformed >= len(MALFORMED_PAUSES_S):
                raise enrollment.malformed_for_good(answer)
            self._malformed += 1
            raise enrollment.MalformedSuccess(
                answer, pause_s=MALFORMED_PAUSES_S[self._malformed - 1]
            )
        with self._lock():
            # Sources may say something else by now; the answer is to what was presented. The intent must be the same.
            stored = intents.load(self._layout)
            if stored is None or stored.key != intent.key:
                raise LocalFault("the intent changed while the plane answered", hint="run again")
            if meaning is Meaning.ENROLLED:
                self._seal(view, answer, intent)
            elif meaning is Meaning.ASK_WITHOUT_NAME:
                # Another body means another key; the refusal proves that the first one enrolled nothing.
                self._new_intent(view, nameless=True).save(self._layout)
            else:
                raise self._refused(
                    view, answer, stored, token, lost=meaning is Meaning.PROBABLY_SPENT
                )

    def _seal(self, view: View, answer: Answer, intent: Intent) -> None:
        found = view.settings
        reply = answer.enrolled
        assert reply is not None  # noqa: S101 - what ENROLLED means
        fresh = Identity(
            api_base_url=found.api_base_url or "",
            org_id=found.org_id or "",
            project_id=found.project_id or "",
            environment_id=found.environment_id or "",
            agent_id=reply.agent_id,
            name=reply.name or intent.name,
            api_key=reply.api_key,
            scopes=reply.scopes,
            expires_at=reply.expires_at,
            enrolled_at=rfc3339(self._clock.wall()),
            proxy=found.proxy,
            idempotency_key=intent.key,
        )
        # The reply's key sets replace those of an enrollment before: they are this environment's.
        frozen_settings = replace(found, key_sets=reply.signing_keys)
        if found.heartbeat_interval_s is None and reply.heartbeat_interval_s is not None:
            frozen_settings = replace(
                frozen_settings, heartbeat_interval_s=reply.heartbeat_interval_s
            )
        files.write_json(self._layout.settings, frozen.freeze(frozen_settings), mode=0o644)
        store.save(self._layout, fresh, seal=found.seal)
        back = store.look(self._layout)
        if back.state is not State.HERE or back.identity != fresh:
            raise LocalFault(
                f"the sealed identity does not read back: {back.why or 'it differs'}",
                hint="the token is kept and its intent stands: mend the disk and run again",
            )
        store.drop_unused_key(self._layout)
        log.notice("enrolled", agent_id=fresh.agent_id, name=fresh.name)
        self._replaced = True
        self._handed_off = False
        self._settle(view)

    def _settle(self, view: View) -> None:
        """The identity is sealed and read back: its token is spent, and the intent has done its work."""
        intent = self._intent(view)
        view.marks.put_mark(
            intent.token_mark, intent.token_length, TokenClass.SPENT, boot_id=view.boot_id
        )
        intents.wipe(self._layout)

    def _refused(
        self, view: View, answer: Answer, intent: Intent, token: Secret, *, lost: bool
    ) -> Refused:
        """Record the refusal (it ends the intent) and return the error that says it."""
        view.marks.put(token, TokenClass.REFUSED, boot_id=view.boot_id)
        if intent.unanswered:
            replace(intent, ended=True).save(self._layout)
        else:
            intents.wipe(self._layout)
        return enrollment.refusal(answer, intent, lost=lost)

    # -- steps with an identity

    def _hand_off(self, view: View) -> None:
        """Freeze what the image's defaults may change, and queue the agent's start; the boot waits for nothing."""
        self._refreeze(view)
        store.rebind(self._layout, view.seen)
        if self._layout.is_host and systemd.booted():
            systemd.start(AGENT_UNIT, restart=self._options.reenroll and self._replaced)
            log.info("handed off", unit=AGENT_UNIT)
        else:
            log.info(
                "handed off: byteor-agent run is to be started here, since there is no systemd"
            )
        self._handed_off = True

    def _refreeze(self, view: View) -> None:
        here = view.seen.identity
        assert here is not None  # noqa: S101 - only called with an identity
        try:
            stored = files.read_json(self._layout.settings)
            base = frozen.thaw(stored) if stored is not None else None
        except Corrupt as error:
            log.warning(str(error), kept_as=files.set_aside(self._layout.settings))
            stored = base = None
        if base is None:
            base = frozen.Settings(
                here.api_base_url, here.org_id, here.project_id, here.environment_id
            )
        fresh = frozen.freeze(settings.refreeze(base, view.found.image))
        if fresh != stored:
            files.write_json(self._layout.settings, fresh, mode=0o644)

    def _erase(self, view: View) -> None:
        self._tried |= view.erasable
        self._receipt = cleanup.erase(
            self._layout,
            view,
            view.erasable,
            TokenClass.SPENT,
            now=self._clock.wall(),
            late=view.finished,
        )

    def _finish(self, view: View) -> bool:
        if view.invalid is not None:
            log.warning(f"settings are not used: {view.invalid}", hint=view.invalid.hint)
        for warning in view.found.warnings:
            log.warning(warning)
        if view.facts.token in (TokenClass.FRESH, TokenClass.REFUSED):
            log.warning(
                "a token was found and not used: this host is enrolled",
                hint="byteor-firstboot reenroll",
            )
        if self._receipt is not None and self._receipt.remaining:
            raise NotErased(
                "enrolled, but a copy of the token could not be erased: "
                + ", ".join(self._receipt.remaining),
                hint="mend its cause and run byteor-firstboot erase",
            )
        return True

    # -- what a step of the table may rely on

    def _token(self, view: View) -> Secret:
        assert view.found.token is not None  # noqa: S101 - the table asks for one
        return view.found.token

    def _intent(self, view: View) -> Intent:
        assert view.intent is not None  # noqa: S101 - the table asks for one
        return view.intent
