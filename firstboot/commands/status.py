"""``byteor-firstboot status``: show enrollment status and anything that needs attention.

Computes the very step that `run` would take next and says it in words. Changes nothing and needs no
root: what only root can read is said to be unknown.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from firstboot.base import documents, systemd
from firstboot.base.clock import Clock, instant
from firstboot.base.errors import ByteorError, Foreign, Invalid, LocalFault, NotErased, Refused
from firstboot.base.layout import Layout
from firstboot.commands import agent_page, agent_status
from firstboot.commands.agent_page import fact, span, until, word
from firstboot.commands.enroll import inputs
from firstboot.commands.watching import Seen, watch, watch_arguments
from firstboot.exchange import settings
from firstboot.exchange.handover import ENVIRONMENT, REENROLL, key_ends
from firstboot.identity import store
from firstboot.identity.store import State
from firstboot.provision.cleanup import unerased
from firstboot.provision.decision import Step, next_step
from firstboot.provision.erase.receipt import RESULTS, Copy, remaining
from firstboot.provision.facts import View, look, stop_error
from firstboot.provision.freezing import IMAGE
from firstboot.provision.progress import Progress, at_work
from firstboot.provision.sources import Inputs

# Step -> (the stable word of the JSON, the sentence for people)
STATES = {
    Step.REACH: ("token_waiting", "a token is here and was not presented yet"),
    Step.SETTLE: ("enrolled", "enrolled; the last run was interrupted, the next marks the token"),
    Step.HAND_OFF: ("enrolled", "enrolled"),
    Step.ERASE: ("enrolled", "enrolled; a spent token is on this host: run or erase overwrites it"),
    Step.DONE: ("enrolled", "enrolled"),
    Step.PREPARE: ("token_waiting", "a token is here and was not presented yet"),
    Step.ENROLL: ("enrolling", "enrolling: the token is presented until an answer comes"),
    Step.STOP_REFUSED: ("refused", "not enrolled: the control plane refused the token"),
    Step.STOP_LOST: ("identity_lost", "not enrolled: the token is spent and the identity is gone"),
    Step.STOP_PROBABLY_SPENT: ("probably_spent", "not enrolled: a lost answer spent the token"),
    Step.STOP_NO_TOKEN: ("no_token", "not enrolled: there is no token"),
    Step.STOP_FOREIGN: ("foreign", "the identity on this disk belongs to another host"),
    Step.STOP_UNREADABLE: ("unreadable", "the identity on this disk does not open"),
}
# Step that met a trouble -> what `run` was about, in the words of the summary
DOING = {
    Step.REACH.value: "waiting for the control plane",
    Step.PREPARE.value: "preparing to enroll",
    Step.ENROLL.value: "enrolling",
    Step.HAND_OFF.value: "starting the agent",
    Step.SETTLE.value: "marking the token as spent",
    Step.ERASE.value: "erasing the token",
}
UNDER_WAY = (Step.REACH, Step.PREPARE, Step.ENROLL)
AS_ROOT = "run as root"
LONGEST = 2000  # characters of a line; an error is shown in full
PENDING = "pending: the token is erased once cloud-init has finished (byteor-erase.service)"
SHOWN = (
    *("identity", "agent_id", "name", "plane", "enrolled_at", "expires_at"),
    *("token", "erasure", "problem", "hint"),
)


@dataclass(frozen=True)
class Erased:
    """The part of the erasing receipt that this page shows."""

    at: str
    copies: tuple[Copy, ...] = ()
    still_served: tuple[str, ...] = ()


status_arguments = watch_arguments


def status_command(arguments: argparse.Namespace) -> int:
    """Print the state, then the agent's; 0 when it could be said, but for ``--check``."""
    clock, layout, given = Clock(), arguments.layout, inputs(arguments)

    def page(seen: Seen) -> list[str]:
        return _page(seen.document, now=clock.wall())

    watch(arguments, lambda: _seen(layout, given, clock), page)
    return 0


def _seen(layout: Layout, given: Inputs, clock: Clock) -> Seen:
    """Look at first boot and at the agent, and judge the host as a whole.

    An identity from a container's environment counts as one that is enrolled. What needs a person
    ends a wait at once: a refusal, of the token or of the runtime key, settings that are invalid,
    another host's identity, or a user who may not look. A missing token does not: it may come late.
    """
    document, stop = describe(layout, given, clock=clock)
    agent = agent_status.look(layout, clock)
    if document["state"] == "no_token" and (agent["identity"] or {}).get("source") == ENVIRONMENT:
        said = "the agent has its identity from its environment: nothing is enrolled or sealed here"
        document.update(state=ENVIRONMENT, summary=said, problem=None, hint=None)
        stop = None
    document["agent"] = agent
    has_identity = document["state"] in ("enrolled", ENVIRONMENT)
    if document["state"] == "enrolled" and stop is None:
        stop = agent_status.key_refused(agent)
    trouble = agent_status.first_problem(agent) if has_identity else (document["summary"], None)
    if document["problem"] is not None:
        trouble = (document["problem"], document["hint"])
    return Seen(
        document=document,
        online=has_identity and agent_status.is_online(agent, clock),
        trouble=trouble,
        stop=stop,
        final=isinstance(stop, (Refused, Invalid, Foreign)) or document["hint"] == AS_ROOT,
    )


def _page(document: Mapping[str, Any], *, now: float) -> list[str]:
    """Return the page for people: what there is, then the agent, if one could have run."""
    lines, agent = [fact("state", word(document["summary"], LONGEST))], document["agent"]
    erasure = document["erasure"]
    said = {**document, "erasure": _erased(erasure) if erasure is not None else None}
    for key in SHOWN:
        if said[key]:
            lines.append(fact(key.replace("plane", "control plane"), word(said[key], LONGEST)))
    lines += [fact("notice", word(notice)) for notice in document["notices"]]
    if document["identity"] == State.HERE.value or agent["state"] != agent_page.NEVER_RAN:
        lines += agent_page.summary(agent, now=now)
    return lines


def describe(
    layout: Layout, given: Inputs, *, clock: Clock
) -> tuple[dict[str, Any], ByteorError | None]:
    """Return the document of ``--json`` without the agent's part, and what `run` would end with.

    The error is None where `run` would go on, or has nothing left to do. A user who cannot read the
    identity is told to be root, and never to open root's directories.
    """
    document: dict[str, Any] = {"v": 1, **dict.fromkeys(SHOWN), "notices": [], "progress": None}
    try:
        view = look(layout, given, handed_off=True, read_only=True)
    except ByteorError as error:
        state, summary = "invalid", "not enrolled: settings are invalid"
        if isinstance(error, LocalFault):
            state, summary = "unknown", "unknown: the identity cannot be read"
            if os.geteuid() != layout.owner:
                summary = "unknown: this user cannot read the identity"
                error = LocalFault(str(error), hint=AS_ROOT)
        return {**document, **_problem(error), "state": state, "summary": summary}, error
    step = next_step(view.facts)
    document["state"], document["summary"] = STATES[step]
    document["identity"] = view.seen.state.value
    document["token"] = view.facts.token.value if view.facts.token is not None else None
    here = view.seen.identity
    if here is not None:
        document.update(agent_id=here.agent_id, name=here.name, plane=here.api_base_url)
        document.update(enrolled_at=here.enrolled_at, expires_at=here.expires_at)
        ends = key_ends(here.expires_at, clock.wall())
        document.update(problem=ends, hint=REENROLL if ends is not None else None)
    for fault in view.faults[:1]:
        document.update(_problem(fault))
    met = _met(view, step)
    document["progress"] = met and met.shown()
    document.update(_under_way(layout, step, met, now=clock.wall()))
    stop: ByteorError | None = None
    if step.name.startswith("STOP_"):
        stop = stop_error(step, view)
    elif here is not None and not view.pending and (left := remaining(layout)):
        stop = NotErased(
            f"a copy of the token could not be erased: {', '.join(copy.path for copy in left)}"
        )
    if stop is not None:
        document.update(_problem(stop))
    elif here is not None and not document["problem"] and (spent := unerased(layout, view)):
        document.update(_problem(spent))
    document["notices"] = _notices(layout, view)
    try:
        document["erasure"] = _erasure(layout, pending=view.pending)
    except LocalFault as error:
        document["notices"].append(str(error))
    return document, stop


def _met(view: View, step: Step) -> Progress | None:
    """Return what the last run met, as far as it is about the step that comes now.

    Not a refusal of another token than the one that is here, nor a wait for an enrollment on a host
    that is enrolled: they are history.
    """
    met = view.progress
    if met is None or met.doing not in DOING or (met.was_refused and view.refusal is None):
        return None
    enrolling = (*UNDER_WAY, Step.STOP_REFUSED)
    is_here = view.seen.identity is not None
    same = is_here if Step(met.doing) not in UNDER_WAY else step in enrolling
    return met if same else None


def _under_way(layout: Layout, step: Step, met: Progress | None, *, now: float) -> dict[str, Any]:
    """Return what changes in the document while `run` has work, or met a trouble at its end.

    A run that should be there and is not is the first thing to say: no waiting helps then.
    """
    works, found = at_work(layout), dict[str, Any]()
    if met is not None:
        problem = word(met.problem, LONGEST)
        since, last = (instant(at) or now for at in (met.since, met.last_attempt_at))
        often = f"attempt {met.attempts} in {span(now - since)}, {span(now - last)} ago"
        due = until(met.next_attempt_at, now)
        if due is not None and works:
            often += f", next {due}"
        found = {"problem": problem, "hint": met.hint}
        if step in UNDER_WAY:
            # What ended a run is this host's own fault: nothing is waited for.
            doing = "not enrolled" if due is None else DOING[met.doing]
            found["summary"] = f"{doing}: {problem} ({often})"
    if step in UNDER_WAY and not works:
        start = "systemctl start byteor-firstboot"
        if not (layout.is_host and systemd.booted()):
            start = "byteor-firstboot run" + (f" --root {layout.root}" * (not layout.is_host))
        said = f"; the last one met: {found['problem']}" if found else ""
        hint = f"{found['hint']}; then: {start}" if found.get("hint") else start
        found.update(problem=f"no run is at work{said}", hint=hint)
    return found


def _notices(layout: Layout, view: View) -> list[str]:
    """Return what needs nobody now.

    A moved machine, near misses in user data, reverted settings, what is set aside.
    """
    here, found = view.seen.identity, []
    if here is not None and here.moved_in == view.boot_id:
        found.append(store.MOVED)
    intent = view.intent
    if here is not None and intent is not None and intent.unanswered and view.facts.settled:
        found.append(
            f"an enrollment as {intent.name} had no answer: look for that agent in the list"
        )
    found += view.found.misses
    with suppress(LocalFault):
        for key in settings.load(layout).reverted:
            found.append(f"{key} is back at its default: {IMAGE} no longer names it")
    with suppress(OSError):  # not there, or not for this user
        for path in sorted(layout.set_aside.iterdir()):
            found.append(f"an earlier identity or key is kept as {layout.shown(path)}")
    return found


def _problem(error: ByteorError) -> dict[str, str | None]:
    return {"problem": str(error), "hint": error.hint}


def _erasure(layout: Layout, *, pending: bool) -> dict[str, Any] | None:
    """Return when the token was last searched for and how many rows of the receipt ended how.

    None where nothing was to be erased yet; no time while the first search is pending.
    """
    seen = documents.read(layout.erasure, Erased)
    if seen is None and not pending:
        return None
    results = [copy.result for copy in seen.copies] if seen is not None else []
    return {
        "pending": pending,
        "at": seen.at if seen is not None else None,
        "copies": {one: results.count(one) for one in RESULTS},
        "served_again": bool(seen is not None and seen.still_served),
    }


def _erased(erasure: Mapping[str, Any]) -> str:
    """Return the same for people, in one line."""
    if erasure["pending"]:
        return PENDING
    counts = [f"{count} {one}" for one, count in erasure["copies"].items() if count]
    served = ["still served by the datasource"] if erasure["served_again"] else []
    found = "; ".join([", ".join(counts) or "no copy found", *served]).replace("_", " ")
    return f"{found} (last looked at {erasure['at']}; receipt: byteor-firstboot erase --json)"
