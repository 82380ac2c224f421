"""Read from disk in one go what the decision rests on; the words for a run that must stop.

Reading changes nothing but what `sources` tightens on its way. Settings or user data that are wrong
stop a host without an identity (exit 4), never one whose identity opens here: a typo at the next
reboot must not darken a fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from firstboot.base import files, log
from firstboot.base.errors import ByteorError, Foreign, LocalFault, NoToken, Refused
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.settings import Settings
from firstboot.identity import store
from firstboot.identity.store import Identity, Look, State
from firstboot.provision import freezing, progress
from firstboot.provision.decision import Facts, IntentState, Step
from firstboot.provision.erase.copies import cloud_init_finished
from firstboot.provision.erase.receipt import remaining
from firstboot.provision.progress import Progress, Refusal
from firstboot.provision.sources import Found, Inputs, Rank, gather
from firstboot.provision.tokens import Intent, Marks, TokenClass


@dataclass(frozen=True)
class View:
    """One look: the facts, and what they were drawn from."""

    facts: Facts
    found: Found
    seen: Look
    intent: Intent | None
    marks: Marks
    boot_id: str
    faults: tuple[ByteorError, ...]  # what a host with an identity does without
    finished: bool  # cloud-init has finished in this boot, or does not run
    erasable: frozenset[Secret]  # spent tokens that may be erased now
    progress: Progress | None  # for people: what the last attempt met

    @property
    def settings(self) -> Settings:
        return self.found.settings

    @property
    def chosen(self) -> Secret:
        """Return the token of a step that the table gives one."""
        assert self.found.token is not None  # noqa: S101 - the table asks for one
        return self.found.token

    @property
    def begun(self) -> Intent:
        """Return the intent of a step that the table gives one."""
        assert self.intent is not None  # noqa: S101 - the table asks for one
        return self.intent

    @property
    def refusal(self) -> Refusal | None:
        """Return what the control plane said to the token that is here, if it refused that one."""
        kept, token = self.progress and self.progress.refusal, self.found.token
        if not kept or token is None or kept.token_mark != self.marks.mark(token):
            return None
        return kept

    @property
    def pending(self) -> bool:
        """True while a spent token waits for cloud-init to finish."""
        return not self.finished and bool(self.tokens(TokenClass.SPENT))

    def tokens(self, *classes: TokenClass) -> tuple[Secret, ...]:
        """Return every token in any source, chosen or not, that is of one of `classes`."""
        return tuple(
            token for _, token in self.found.tokens if self.marks.classify(token) in classes
        )


def look(
    layout: Layout,
    inputs: Inputs,
    *,
    again: bool = False,
    reenrolling: bool = False,
    handed_off: bool = False,
    reached: str | None = None,
    tried: frozenset[Secret] | None = None,
    tolerant: bool = False,
    read_only: bool = False,
    tighten: bool = False,
) -> View:
    """Read identity, marks, intent and sources, and draw the facts.

    Invalid settings raise only on a host without an identity, and not for a `tolerant` caller that
    needs none: the sources that are not broken count then. `reached` is the address that this run
    had a TLS session with, `tried` the tokens that it has erased (None when it has not erased yet).
    A `read_only` look leaves a damaged file where it is; `tighten` as for `gather`. LocalFault when
    the identity could not be looked at.
    """
    seen = _identity(layout, reenrolling=reenrolling)
    stored = Intent.load(layout, repair=not read_only)
    # Not so where a crash came between sealing and marking.
    settled = stored is None or seen.identity is None or seen.identity.idempotency_key != stored.key
    state = State.NONE if reenrolling and seen.identity is not None and settled else seen.state
    faults: list[ByteorError] = []
    try:
        marks = Marks.load(layout, repair=not read_only)
    except LocalFault as error:
        if state is not State.HERE or tolerant:
            raise
        marks = Marks.none(layout)
        faults.append(error)
    known, strict = not faults, not tolerant and state is not State.HERE
    found = gather(layout, inputs, classify=marks.classify, strict=strict, tighten=tighten)
    faults += [found.fault] if found.fault is not None else []
    if reenrolling and seen.identity is not None:
        found = _routed(layout, found, seen.identity)
    boot_id = (files.read(layout.boot_id, limit=64) or b"").decode().strip()
    finished = cloud_init_finished(layout)
    erasable = _erasable(found, marks, finished=finished)
    token = found.token if known else None  # else nothing can be said about it
    facts = Facts(
        identity=state,
        token=marks.classify(token) if token is not None else None,
        intent=_intent_state(layout, stored, token, marks),
        settled=settled,
        handed_off=handed_off,
        reached=reached is not None and reached == found.settings.api_base_url,
        # A copy that could not be erased is tried again in each run, whether a source still shows
        # its token or not.
        spent_here=bool(erasable) or (finished and bool(remaining(layout))),
        erased=tried is not None and erasable <= tried,
        presented=token is not None and not again and marks.presented_in(token) == boot_id,
    )
    return View(
        facts, found, seen, stored, marks, boot_id, tuple(faults), finished, erasable,
        progress.load(layout),
    )  # fmt: skip


def _routed(layout: Layout, found: Found, here: Identity) -> Found:
    """Send a bare token of the operator's where `here` points, whatever a source says."""
    if found.source is None or found.source.rank is not Rank.TOKEN_FILE:
        return found
    return replace(found, settings=freezing.as_enrolled(layout, here, found.settings))


def _identity(layout: Layout, *, reenrolling: bool) -> Look:
    try:
        return store.look(layout)
    except LocalFault as error:
        if not reenrolling:
            raise
        # The operator's way out of an identity that may be good, and that this host cannot open.
        return Look(State.UNREADABLE, why=str(error))


def _erasable(found: Found, marks: Marks, *, finished: bool) -> frozenset[Secret]:
    """Return the spent tokens that need not wait for byteor-erase.

    While cloud-init is at work that is a token from stdin or a file of the caller's alone: what
    byteor-erase cannot read, it cannot erase.
    """
    spent: set[Secret] = set()
    later: set[Secret] = set()
    for source, token in found.tokens:
        if marks.classify(token) is TokenClass.SPENT:
            (spent if finished or source.rank is Rank.TOKEN_FILE else later).add(token)
    return frozenset(spent - later)


def _intent_state(
    layout: Layout, intent: Intent | None, token: Secret | None, marks: Marks
) -> IntentState:
    if intent is None:
        return IntentState.NONE
    ours = (
        not intent.ended
        and token is not None
        and marks.mark(token) == intent.token_mark
        and store.same_host(layout, intent.host)
    )
    return IntentState.OURS if ours else IntentState.OTHER


MINT = "mint a new token, provide it and run again"
FIND = f"look for {{name}} in the agent list, delete it, {MINT}"
# Step -> (error, one sentence, what to do).
STOPS: dict[Step, tuple[type[ByteorError], str, str]] = {
    Step.STOP_REFUSED: (
        Refused,
        "the control plane refused this token, and it was presented in this boot already",
        "mint a new token; or fix the cause at the control plane, then "
        "byteor-firstboot run --again",
    ),
    Step.STOP_LOST: (
        Refused,
        "the token is spent and the identity that it bought is not on this disk",
        f"delete the agent of this host in the agent list, {MINT}",
    ),
    Step.STOP_PROBABLY_SPENT: (
        Refused,
        "an enrollment was begun as {name}, its token is gone, and no identity is here: "
        "it was probably spent",
        FIND,
    ),
    Step.STOP_FOREIGN: (
        Foreign,
        "the identity on this disk belongs to another host: {why}",
        "a clone needs a token of its own: provide a fresh one and run again",
    ),
    Step.STOP_UNREADABLE: (
        LocalFault,
        "the sealed identity does not open: {why}",
        "restore /var/lib/byteor/identity, or provide a fresh token and run again",
    ),
    Step.STOP_NO_TOKEN: (
        NoToken,
        "no enrollment token in any source, and this host is not enrolled",
        "put one into user data, /run/byteor-firstboot/settings.yaml or "
        "/etc/byteor/enrollment-token",
    ),
}


def stop_error(step: Step, view: View) -> ByteorError:
    """Return the error that ends a run at `step`: its exit code, one sentence, and what to do."""
    intent, here = view.intent, view.seen.identity
    kind, said, hint = STOPS[step]
    # Only reenroll stops with an identity here: it must not speak as if none were.
    if here is not None:
        kind = NoToken
        said = f"reenroll needs a fresh token; this host stays enrolled as {here.agent_id}"
        hint = "mint a new token for this environment, provide it and run byteor-firstboot reenroll"
    elif step is Step.STOP_REFUSED and intent is not None and intent.unanswered:
        said = (
            "the control plane refused this token after an answer was lost: it was probably spent"
        )
        hint = FIND
    elif step is Step.STOP_REFUSED and (kept := view.refusal) is not None:
        told = f"the control plane refused the token at {kept.at}: {kept.said()}"
        return Refused(told, hint=kept.hint)
    name = intent.name if intent is not None else "this host"
    return kind(said.format(name=name, why=view.seen.why), hint=hint.format(name=name))


def say_unused(view: View) -> None:
    """Say what an enrolled host does without, and which token it holds in vain."""
    for fault in view.faults:
        log.warning(f"not used: {fault}", hint=fault.hint)
    for warning in view.found.warnings:
        log.warning(warning)
    where = view.found.source.where if view.found.source is not None else ""
    if view.facts.token is TokenClass.FRESH:
        said = f"the token in {where} is not used: this host is enrolled"
        log.warning(said, hint="byteor-firstboot reenroll would use it")
    elif view.facts.token is TokenClass.REFUSED:
        said = f"{where} still holds a token that the control plane refused: nothing to do"
        log.notice(said, hint="byteor-firstboot erase --refused removes it")
