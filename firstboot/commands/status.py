"""``byteor-firstboot status``: show enrollment status and anything that needs attention.

Computes the very step that `run` would take next and says it in words. Changes nothing and needs no
root: what only root can read is said to be unknown.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from firstboot.base import documents
from firstboot.base.clock import Clock
from firstboot.base.errors import ByteorError, LocalFault
from firstboot.base.layout import Layout
from firstboot.commands import agent_status
from firstboot.commands.enroll import inputs
from firstboot.exchange import settings
from firstboot.exchange.handover import ENVIRONMENT, REENROLL, key_ends
from firstboot.identity import store
from firstboot.identity.store import State
from firstboot.provision.decision import Step, next_step
from firstboot.provision.erase.receipt import RESULTS, Copy
from firstboot.provision.facts import View, look, stop_error
from firstboot.provision.freezing import IMAGE
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
PENDING = "pending: the token is erased once cloud-init has finished (byteor-erase.service)"
WHO = ("identity", "agent_id", "name", "plane", "enrolled_at", "expires_at")
SHOWN = (*WHO, "token", "erasure", "problem", "hint")


@dataclass(frozen=True)
class Erased:
    """The part of the erasing receipt that this page shows."""

    at: str
    copies: tuple[Copy, ...] = ()
    still_served: tuple[str, ...] = ()


def status_command(arguments: argparse.Namespace) -> int:
    """Print the state, then the agent's; always 0 when it could be said."""
    clock, layout = Clock(), arguments.layout
    document, agent = describe(layout, inputs(arguments)), agent_status.look(layout, clock)
    source = (agent["identity"] or {}).get("source")
    if document["state"] == "no_token" and source == ENVIRONMENT:
        said = "the agent has its identity from its environment: nothing is enrolled or sealed here"
        document.update(state=ENVIRONMENT, summary=said, problem=None, hint=None)
    document["agent"] = agent
    if arguments.json:
        print(json.dumps(document, indent=1, sort_keys=True))
        return 0
    print(f"{'state':<14} {document['summary']}")
    for key in SHOWN:
        if document.get(key):
            named = key.replace("plane", "control plane")
            print(f"{named:<14} {agent_status.word(str(document[key]))}")
    for notice in document["notices"]:
        print(f"{'notice':<14} {agent_status.word(notice)}")
    if document["identity"] == State.HERE.value or agent["state"] != agent_status.NEVER_RAN:
        print("\n".join(agent_status.summary(agent, now=clock.wall())))
    return 0


def describe(layout: Layout, given: Inputs) -> dict[str, Any]:
    """Return the document of ``--json``, without the agent's part."""
    document: dict[str, Any] = {"v": 1, **dict.fromkeys(SHOWN), "notices": []}
    try:
        view = look(layout, given, handed_off=True, read_only=True)
    except ByteorError as error:
        state, summary = "invalid", "not enrolled: settings are invalid"
        if isinstance(error, LocalFault):
            state, summary = "unknown", "unknown: this user cannot read the identity"
            if os.geteuid() == layout.owner:
                summary = "unknown: the identity cannot be read"
        return {**document, **_problem(error), "state": state, "summary": summary}
    step = next_step(view.facts)
    document["state"], document["summary"] = STATES[step]
    document["identity"] = view.seen.state.value
    document["token"] = view.facts.token.value if view.facts.token is not None else None
    stop = next(iter(view.faults), None)
    if step.name.startswith("STOP_"):
        stop = stop_error(step, view)
    here = view.seen.identity
    if here is not None:
        document.update(agent_id=here.agent_id, name=here.name, plane=here.api_base_url)
        document.update(enrolled_at=here.enrolled_at, expires_at=here.expires_at)
        ends = key_ends(here.expires_at, Clock().wall())
        document.update(problem=ends, hint=REENROLL if ends is not None else None)
    if stop is not None:
        document.update(_problem(stop))
    if step is Step.ENROLL and view.intent is not None and view.intent.problem is not None:
        problem, _, hint = view.intent.problem.partition(": ")
        document.update(problem=problem, hint=hint)
    document["erasure"] = PENDING if view.pending else _erasure(layout)
    document["notices"] = _notices(layout, view)
    return document


def _notices(layout: Layout, view: View) -> list[str]:
    """Return what needs nobody now: a moved machine, reverted settings, what is set aside."""
    here, found = view.seen.identity, []
    if here is not None and here.moved_in == view.boot_id:
        found.append(store.MOVED)
    with suppress(LocalFault):
        for key in settings.load(layout).reverted:
            found.append(f"{key} is back at its default: {IMAGE} no longer names it")
    with suppress(OSError):  # not there, or not for this user
        for path in sorted(layout.set_aside.iterdir()):
            found.append(f"an earlier identity or key is kept as {layout.shown(path)}")
    return found


def _problem(error: ByteorError) -> dict[str, str | None]:
    return {"problem": str(error), "hint": error.hint}


def _erasure(layout: Layout) -> str | None:
    try:
        seen = documents.read(layout.erasure, Erased)
    except LocalFault as error:
        return str(error)
    if seen is None:
        return None
    left = [copy.path for copy in seen.copies if copy.result == "remains"]
    results = [copy.result for copy in seen.copies]
    counts = [f"{results.count(one)} {one}" for one in RESULTS if one in results]
    served = ["still served by the datasource"] if seen.still_served else []
    said = "; ".join([f"last looked at {seen.at}", *filter(None, [", ".join(counts)]), *served])
    return said.replace("_", " ") + (f", copies left in {', '.join(left)}" if left else "")
