"""``byteor-agent metrics``: print the agent's health in the Prometheus text format (0.0.4).

For node_exporter's textfile collector, by a timer (image-build/examples/metrics). Read from what
the agent and the activator left on disk, as `status` does; needs no root. Times are seconds since
the epoch; what is unknown is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

from firstboot.agent.artifacts.spool import MOST_BYTES, MOST_ENTRIES
from firstboot.base import files
from firstboot.base.clock import Clock, instant
from firstboot.commands import agent_status
from firstboot.commands.agent_page import word

Labels = Mapping[str, object]
Sample = tuple[Labels, Optional[float]]

# Name without its prefix -> help. All are gauges.
HELP = {
    "info": "1, with the version of the agent and whose it is.",
    "up": "1 while the agent runs and writes its status, else 0.",
    "degraded": "1 when anything is wrong that status shows, else 0.",
    "problem": "1 for each problem that status shows, by its code.",
    "status_age_seconds": "Age of what the agent wrote last.",
    "heartbeat_age_seconds": "Age of the last heartbeat that was accepted.",
    "crashes": "How many runs of the agent in a row ended in a bug.",
    "task_last_success_timestamp_seconds": "When the task last succeeded.",
    "task_last_attempt_timestamp_seconds": "When the task was last attempted.",
    "task_next_attempt_timestamp_seconds": "When the task is attempted next.",
    "task_failures": "Failures of the task in a row.",
    "task_period_seconds": "Period of the task while all is well.",
    "spool_artifacts": "Artifacts in the spool, by state.",
    "spool_artifacts_limit": "How many artifacts the spool holds at most.",
    "spool_bytes": "Bytes of all artifacts in the spool.",
    "spool_bytes_limit": "Bytes that the spool holds at most.",
    "deployment_info": "1, with the deployment that is in force.",
    "deployment_sequence": "Sequence of the deployment that is in force.",
    "runtime_key_expires_timestamp_seconds": "When the runtime key ends.",
    "signing_keys_version": "Version of the trusted set of signing keys.",
    "clock_skew_seconds": "This host's clock minus the control plane's.",
}


def metrics_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flag of ``metrics``."""
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="replace FILE at once, in place of printing"
    )


def metrics_command(arguments: argparse.Namespace) -> int:
    """Print or write the metrics, in every state of the host."""
    clock = Clock()
    text = render(agent_status.look(arguments.layout, clock), now=clock.wall())
    if arguments.output is None:
        print(text, end="")
    else:
        files.write(Path(arguments.output), text.encode(), mode=0o644, durable=False)
    return 0


def render(document: Mapping[str, Any], *, now: float) -> str:
    """Return the text for a document of ``byteor-agent status --json``."""
    lines = []
    for name, samples in _families(document, now):
        known = [(labels, value) for labels, value in samples if value is not None]
        if known:
            full = f"byteor_agent_{name}"
            lines += [f"# HELP {full} {HELP[name]}", f"# TYPE {full} gauge"]
            lines += [f"{full}{_labels(labels)} {value:.15g}" for labels, value in known]
    return "\n".join(lines) + "\n"


def _families(document: Mapping[str, Any], now: float) -> Iterable[tuple[str, list[Sample]]]:
    identity, spool = document["identity"] or {}, document["spool"] or {}
    deployment, keys = document["deployment"] or {}, document["signing_keys"] or {}
    loops: dict[str, Any] = document["loops"]
    beat, _ = agent_status.last_beat(document, now)
    named = {name: identity.get(name) for name in ("agent_id", "name", "environment_id")}
    yield "info", [({"version": document.get("agent_version"), **named}, 1)]
    yield "up", [({}, document["running"])]
    yield "degraded", [({}, document["status"] != "ok")]
    codes = sorted({row["code"] for row in document["problems"]})
    yield "problem", [({"code": code}, 1) for code in codes]
    yield "status_age_seconds", [({}, document["age_s"])]
    yield "heartbeat_age_seconds", [({}, max(0.0, beat) if beat is not None else None)]
    yield "crashes", [({}, document.get("crashes"))]
    for when in ("last_success", "last_attempt", "next_attempt"):
        values = {task: instant(loop[f"{when}_at"]) for task, loop in loops.items()}
        yield f"task_{when}_timestamp_seconds", _by_task(values)
    for name, member in (("task_failures", "failures"), ("task_period_seconds", "period_s")):
        yield name, _by_task({task: loop[member] for task, loop in loops.items()})
    states = ("pending", "quarantined")
    yield "spool_artifacts", [({"state": one}, spool.get(one)) for one in states]
    yield "spool_artifacts_limit", [({}, MOST_ENTRIES)]
    yield "spool_bytes", [({}, spool.get("bytes"))]
    yield "spool_bytes_limit", [({}, MOST_BYTES)]
    about = {name: deployment.get(name) for name in ("deployment_id", "state", "spec_hash")}
    yield "deployment_info", [(about, 1 if deployment else None)]
    yield "deployment_sequence", [({}, deployment.get("sequence"))]
    yield "runtime_key_expires_timestamp_seconds", [({}, instant(identity.get("expires_at")))]
    yield "signing_keys_version", [({}, keys.get("version"))]
    yield "clock_skew_seconds", [({}, document["clock_skew_s"])]


def _by_task(values: Mapping[str, float | None]) -> list[Sample]:
    return [({"task": task}, value) for task, value in values.items()]


def _labels(labels: Labels) -> str:
    """Return ``{name="value"}``; a value is escaped as the format says, an absent one left out."""
    shown = []
    for name, value in labels.items():
        if value is not None:
            text = word(value).replace("\\", "\\\\").replace('"', '\\"')
            shown.append(f'{name}="{text}"')
    return f"{{{','.join(shown)}}}" if shown else ""
