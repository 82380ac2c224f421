"""``byteor-agent deployments`` and ``retry``: list what was decided, and ask for one more try.

Listing reads only and needs no root. A retry of a deployment is an operator's word in a file of
root's, which the agent cannot write; one of an artifact takes it out of the quarantine.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from firstboot.activate import directories, journal, replay
from firstboot.agent.problems import ENDS
from firstboot.base import log, systemd
from firstboot.base.errors import Invalid, NoToken
from firstboot.base.layout import ENVELOPE, Layout
from firstboot.commands.agent_page import show, word
from firstboot.exchange import verdicts
from firstboot.exchange.wake import wake


def deployments_command(arguments: argparse.Namespace) -> int:
    """Print the history, newest last; NoToken (3) on a host that is not enrolled."""
    layout: Layout = arguments.layout
    if not layout.settings.exists() and not layout.activation.exists():
        raise NoToken("this host is not enrolled", hint="byteor-firstboot status")
    document = look(layout)
    show(document, page(document), as_json=arguments.json)
    return 0


def look(layout: Layout) -> dict[str, Any]:
    """Return the document of ``--json``."""
    known, current = verdicts.read(layout), directories.named(layout)
    rows: list[dict[str, Any]] = []
    for row in known.history:
        on_disk = row.name is not None and (layout.deployments / row.name).is_dir()
        is_current = row.name is not None and row.name == current
        rows.append({**asdict(row), "name": row.name, "on_disk": on_disk, "current": is_current})
    return {
        "v": 1,
        "current": current,
        "wanted": known.wanted and asdict(known.wanted),
        "in_progress": layout.journal.exists(),
        "deployments": rows,
    }


def page(document: Mapping[str, Any]) -> list[str]:
    """Return lines for people: what is active and awaited, then verdicts, newest first."""
    lines = [f"active:   {word(document['current'] or 'nothing')}"]
    wanted: Mapping[str, Any] | None = document["wanted"]
    if wanted is not None:
        name = f"{wanted['deployment_id']}-{wanted['sequence']}"
        lines.append(f"awaited:  {name}: its bundle is being downloaded")
    if document["in_progress"]:
        lines.append("an activation is in progress")
    rows: list[dict[str, Any]] = document["deployments"]
    for row in reversed(rows):
        said = ": ".join(word(row[name]) for name in ("code", "reason") if row[name])
        there = "" if row["on_disk"] or row["name"] is None else " (not on disk)"
        verdict = f"{word(row['verdict']):<12} {word(row['name'] or 'unsigned')}{there}"
        mark = "*" if row["current"] else " "
        lines.append(f"{mark} {word(row['at'])}  {verdict}{'  ' + said if said else ''}")
    # Not what was refused before its bundle was asked for: no retry changes that.
    last = rows[-1] if rows else {"verdict": None}
    if last["verdict"] in ENDS and last["payload_sha256"] and last["name"]:
        lines.append(f"to retry it: byteor-agent retry {word(last['name'])}")
    return lines


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument of ``retry``."""
    parser.add_argument(
        "id",
        metavar="ID",
        help="as `deployments` shows it (with or without its sequence), or `status`",
    )


def retry_command(arguments: argparse.Namespace) -> int:
    """Send a refused artifact again, or try a failed deployment again."""
    layout: Layout = arguments.layout
    if _retry_artifact(layout, arguments.id):
        return 0
    named = retry_deployment(layout, arguments.id)
    if named is None:
        raise Invalid(
            "there is no deployment or refused artifact of that id",
            hint="byteor-agent deployments; byteor-agent status",
        )
    log.audit(layout, f"retry {named}")
    log.notice(f"retrying {named}")
    if layout.is_host and systemd.booted():
        systemd.start("byteor-activate.service")
        return 0
    from firstboot.commands.services import activate_command

    activate_command(arguments)
    wake(layout)
    return 0


def _retry_artifact(layout: Layout, artifact: str) -> bool:
    """Return False when no artifact of that id is in quarantine."""
    from firstboot.agent.artifacts import spool
    from firstboot.commands.upload import enter, writer

    account = writer(layout)
    if artifact not in spool.ids(layout.quarantine):
        return False
    log.audit(layout, f"retry {artifact}")
    enter(layout, account)
    if not spool.release(layout, artifact):
        return False
    wake(layout, signal.SIGUSR2)
    log.notice(f"{artifact} is in the spool again")
    return True


def retry_deployment(layout: Layout, named: str) -> str | None:
    """Ask for one more try of `named` (an id, or id-sequence); return its name, None if unknown.

    Invalid (4) when it is active, when it is not the newest one verified here (an older one comes
    back only by the control plane's word, under a higher sequence), or when it was withdrawn.
    """
    found = [
        row
        for row in verdicts.load(layout).history
        if row.name is not None and named in (row.deployment_id, row.name)
    ]
    if not found:
        return None
    row = ([row for row in found if row.payload_sha256 is not None] or found)[-1]
    shown = str(row.name)
    made = directories.read(layout, directories.named(layout))
    is_active = made is not None and made.payload_sha256 == row.payload_sha256
    if row.verdict == verdicts.ACTIVE and is_active:
        raise Invalid(
            f"deployment {shown} did not fail", hint="byteor-agent deployments shows what did"
        )
    if not replay.is_highest(layout, row.payload_sha256):
        raise Invalid(
            f"deployment {shown} is not the newest that was verified here",
            hint="roll back at the control plane: it signs an older one under a higher sequence",
        )
    if not (layout.inbox / ENVELOPE).exists():
        raise Invalid(
            f"deployment {shown} is not assigned to this host any more",
            hint="assign it again at the control plane",
        )
    journal.ask_again(layout, str(row.payload_sha256))
    return shown
