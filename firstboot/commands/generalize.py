"""``byteor-firstboot generalize``: make this system safe to image.

Removes what is of this host alone, and names what is not ours but makes clones alike. The package,
the image's defaults, enabled units, our directories and locks stay. The identity goes first: a
command that was cut leaves none that opens, and the next one removes the rest. Receipt and marks
stay while the receipt names a copy of a token that is still there: nothing else tells of it.

``--stale`` is what ``cloud-init clean`` calls, which is an everyday command on live hosts: an
identity that opens here stays, and so does all that belongs to it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from firstboot.agent.artifacts import spool
from firstboot.base import files, log
from firstboot.base.errors import CheckFailed, LocalFault, TryAgain, Usage
from firstboot.base.layout import Layout
from firstboot.commands import leftovers, unenroll
from firstboot.commands.asking import confirmed
from firstboot.commands.leftovers import Leftover
from firstboot.exchange.inbox import forget_answers
from firstboot.exchange.wake import is_running
from firstboot.identity import store
from firstboot.identity.store import State
from firstboot.provision import preflight

UNITS = (
    "byteor-firstboot.path",
    "byteor-activate.path",
    *unenroll.UNITS,
    "byteor-activate.service",
    "byteor-erase.service",
)
OURS = "of this host alone"
HERE = "byteor-firstboot generalize"


def generalize_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``generalize``."""
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--check", action="store_true", help="only report; exit 10 if anything is left"
    )
    only.add_argument(
        "--stale",
        action="store_true",
        help="keep an identity that opens here; remove what is foreign, unreadable or set aside",
    )
    parser.add_argument("--force", action="store_true", help="remove artifacts that wait, too")
    parser.add_argument(
        "--yes", action="store_true", help="do not ask where the agent runs, or is being enrolled"
    )


def generalize_command(arguments: argparse.Namespace) -> int:
    """Remove all that is of this host; with ``--check`` CheckFailed (10) when anything is left."""
    layout: Layout = arguments.layout
    if arguments.check:
        return check(layout, config=arguments.config, as_json=arguments.json)
    if arguments.stale and arguments.json:
        raise Usage("--stale prints no JSON", hint="leave out --json")
    if os.geteuid() != layout.owner:
        raise LocalFault("only root may make an image of this system", hint="run as root")
    if arguments.stale:
        return remove_stale(layout)
    waiting = len(spool.ids(layout.spool))
    if waiting and not arguments.force:
        raise LocalFault(
            f"{waiting} artifacts wait to be uploaded, and would be removed",
            hint="let the agent upload them (byteor-agent status), or add --force",
        )
    begun = unenroll.begun_there(layout)
    in_use = "the agent runs: this host is in service" if is_running(layout) else begun
    if in_use is not None and not arguments.yes and not confirmed(in_use, "remove its identity?"):
        raise LocalFault(
            "nothing is removed: the answer was not yes", hint="answer y, or add --yes"
        )
    log.audit(layout, "generalize" + " --force" * arguments.force)
    # Before the receipt and the settings go: they tell where a token is left.
    rest = leftovers.others(layout, config=arguments.config)
    agent = unenroll.left_there(layout) if os.path.lexists(layout.credentials) else None
    preflight.make_state(layout)
    with unenroll.stopped(layout, *UNITS):
        # A run that waited for its answer may have written meanwhile.
        begun = unenroll.begun_there(layout) or begun
        for sentence in filter(None, (agent, begun)):
            # Now: a command that is cut could not say it again.
            print(sentence, file=sys.stderr if arguments.json else sys.stdout, flush=True)
        removed = remove(layout)
    if arguments.json:
        members = {"agent": agent, "begun": begun, "removed": removed}
        shown = [asdict(row) for row in rest]
        print(json.dumps({"v": 1, **members, "left": shown}, indent=1))
        return 0
    print(f"removed what was of this host alone: {removed} files and directories")
    _show(rest)
    return 0


def check(layout: Layout, *, config: Path | None, as_json: bool) -> int:
    """Report what an image must not carry; CheckFailed when there is anything."""
    found = [Leftover(layout.shown(path), OURS, HERE) for path in leftovers.ours(layout)]
    found += leftovers.others(layout, config=config)
    if as_json:
        print(json.dumps({"v": 1, "left": [asdict(row) for row in found]}, indent=1))
    else:
        _show(found)
    if found:
        raise CheckFailed(
            f"{len(found)} things are left that no image may carry",
            hint=f"{HERE} removes what is ours; the other lines say how",
        )
    if not as_json:
        print("nothing is left: this system is safe to image")
    return 0


def _show(found: Sequence[Leftover]) -> None:
    for row in found:
        print(f"! {row.path}: {row.what}: {row.remedy}")


def remove(layout: Layout) -> int:
    """Remove what is of this host alone; return how many names there were."""
    # In the agent's own directory names alone are removed: it could replace what they lead to.
    tops = {
        layout.agent / path.relative_to(layout.agent).parts[0]
        if layout.agent in path.parents
        else path: None
        for path in [layout.credentials, *leftovers.ours(layout)]
    }
    busy = TryAgain("another byteor-firstboot is at work", hint="wait until it has ended")
    with files.locked(layout.lock, busy=lambda: busy):
        there = [path for path in tops if os.path.lexists(path)]
        for path in there:
            unenroll.remove(layout, path)
    left = leftovers.ours(layout)
    if left:
        raise LocalFault(
            f"{layout.shown(left[0])} came back: something writes to it", hint=f"rerun {HERE}"
        )
    return len(there)


def remove_stale(layout: Layout) -> int:
    """Remove what is foreign, unreadable, set aside, or damaged; never what opens here.

    LocalFault, and nothing removed, where the identity cannot be looked at.
    """
    log.audit(layout, "generalize --stale")
    if not layout.identity.is_dir():
        return 0
    busy = TryAgain("another byteor-firstboot is at work", hint="it is removed the next time")
    with files.locked(layout.lock, busy=lambda: busy):
        seen = store.look(layout)
        stale = [layout.set_aside, *layout.identity.glob("*.corrupt-*")]
        if seen.state in (State.FOREIGN, State.UNREADABLE):
            forget_answers(layout)
            # The sealed file last: a command that was cut finds the same verdict.
            stale += reversed(unenroll.sealed(layout))
        for path in stale:
            unenroll.remove(layout, path)
    if seen.identity is not None:
        agent = seen.identity.agent_id
        print(f"this host stays enrolled as agent {agent}; {HERE} makes an image of it")
    return 0
