"""``byteor-firstboot status``: where this host is on the path, and what a human must do, if anything.

Computes the very step that `run` would take next and says it in words. Changes nothing and needs no root: what only
root can read is said to be unknown.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Optional

from firstboot import files
from firstboot.errors import ByteorError, LocalFault
from firstboot.layout import Layout
from firstboot.provision.decision import Step, next_step
from firstboot.provision.facts import look, stop_error
from firstboot.provision.sources import Inputs

WORDS = {
    Step.SETTLE: "enrolled; the last run was cut before it marked the token: the next run does",
    Step.HAND_OFF: "enrolled",
    Step.ERASE: "enrolled; a spent token is on this host: run or erase overwrites it",
    Step.DONE: "enrolled",
    Step.PREPARE: "a token is here and was not presented yet",
    Step.ENROLL: "enrolling: the token is being presented, the same key is used until an answer comes",
}


def status(layout: Layout, inputs: Inputs, *, as_json: bool) -> int:
    """Print the state; always 0 when it could be said."""
    document = describe(layout, inputs)
    if as_json:
        print(json.dumps(document, indent=1, sort_keys=True))
        return 0
    print(f"state     {document['state']}")
    for key in ("identity", "agent_id", "name", "plane", "token", "erasure", "problem", "hint"):
        if document.get(key):
            print(f"{key:<9} {document[key]}")
    return 0


def describe(layout: Layout, inputs: Inputs) -> Dict[str, Any]:
    """Return the document that ``status --json`` prints (README, "JSON")."""
    document: Dict[str, Any] = {"v": 1, "state": "unknown", "problem": None, "hint": None}
    try:
        view = look(layout, inputs, handed_off=True)
    except ByteorError as error:
        document.update(state="stopped", problem=str(error), hint=error.hint)
        return document
    step = next_step(view.facts)
    document["state"] = WORDS.get(step, step.value)
    document["identity"] = view.seen.state.value
    document["token"] = view.facts.token.value if view.facts.token is not None else None
    here = view.seen.identity
    if here is not None:
        document.update(agent_id=here.agent_id, name=here.name, plane=here.api_base_url, enrolled_at=here.enrolled_at)
    if step not in WORDS:
        stop = stop_error(step, view)
        document.update(problem=str(stop), hint=stop.hint)
    elif view.invalid is not None:
        document.update(problem=str(view.invalid), hint=view.invalid.hint)
    document["erasure"] = _erasure(layout)
    return document


def _erasure(layout: Layout) -> Optional[str]:
    try:
        receipt = files.read_json(layout.erasure)
    except LocalFault as error:
        return str(error)
    return None if receipt is None else f"last looked at {receipt.get('at')}: see {layout.shown(layout.erasure)}"
