"""``byteor-agent deployments``: what is there, what was decided about it, why and when. Reads only; needs no root."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from firstboot.activate import directories
from firstboot.base.errors import NoToken
from firstboot.base.layout import Layout
from firstboot.exchange import verdicts

ON_DISK = "on_disk"


def deployments(layout: Layout, *, as_json: bool) -> int:
    """Print the history, newest last; NoToken (3) on a host that is not enrolled."""
    if not layout.settings.exists() and not layout.activation.exists():
        raise NoToken("this host is not enrolled", hint="byteor-firstboot status says where it is")
    document = look(layout)
    if as_json:
        print(json.dumps(document, sort_keys=True, indent=1))
    else:
        sys.stdout.write("\n".join(page(document)) + "\n")
    return 0


def look(layout: Layout) -> dict[str, Any]:
    """The document of ``--json`` (README, "JSON")."""
    known, current = verdicts.peek(layout), directories.named(layout)
    rows: list[dict[str, Any]] = []
    for row in known.history:
        name = f"{row.deployment_id}-{row.sequence}" if row.deployment_id is not None else None
        there = name is not None and (layout.deployments / name).is_dir()
        rows.append(
            {
                **asdict(row),
                "name": name,
                ON_DISK: there,
                "current": name is not None and name == current,
            }
        )
    return {
        "v": 1,
        "current": current,
        "wanted": known.wanted,
        "in_progress": layout.journal.exists(),
        "deployments": rows,
    }


def page(document: Mapping[str, Any]) -> list[str]:
    """For people: what is in force, what is coming, then a line a verdict, the newest first."""
    lines = [f"in force: {_word(document['current'] or 'nothing')}"]
    wanted: Mapping[str, Any] | None = document["wanted"]
    if wanted is not None:
        lines.append(
            f"awaited:  {_word(wanted.get('deployment_id'))}-{_word(wanted.get('sequence'))}: its bundle is fetched"
        )
    if document["in_progress"]:
        lines.append("an activation is in progress")
    for row in reversed(document["deployments"]):
        mark = "*" if row["current"] else " "
        said = ": ".join(_word(row[name]) for name in ("code", "reason") if row[name])
        there = "" if row[ON_DISK] or row["name"] is None else " (not on disk)"
        verdict = f"{_word(row['verdict']):<12} {_word(row['name'] or 'unsigned')}{there}"
        lines.append(f"{mark} {_word(row['at'])}  {verdict}{'  ' + said if said else ''}")
    for row in document["deployments"][-1:]:
        # Not what was refused before its bundle was asked for: no retry changes that.
        if (
            row["verdict"] in (verdicts.FAILED, verdicts.ROLLED_BACK, verdicts.REFUSED)
            and row["payload_sha256"] is not None
        ):
            lines.append(f"to try it once more: byteor-agent retry {_word(row['name'])}")
    return lines


def _word(value: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(value))[:300]
