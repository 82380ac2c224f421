"""Identity and settings of the agent: handed over, or from its environment.

On a host the unit's pre-start step has handed over; under ``--root`` `unseal` runs as a child,
since the key that it uses never enters this process. In a container all three BYTEOR_ variables are
the identity, and the settings file is the rest: nothing is sealed, and `status` says so
(contract 6). One agent at a time works on a tree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Callable

from firstboot.api.messages import KEY_LENGTHS
from firstboot.base import documents, files, systemd
from firstboot.base.documents import IDENTIFIER
from firstboot.base.errors import ByteorError, Corrupt, Invalid, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange import settings as frozen
from firstboot.exchange.handover import ENVIRONMENT, Handover, take
from firstboot.exchange.settings import Settings
from firstboot.exchange.wake import reachable

CHILD_TIMEOUT_S = 60


class ChildFailed(ByteorError):
    """A child of ours failed, and has said why itself."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("a child process failed")
        self.exit_code = exit_code


def alone(layout: Layout) -> AbstractContextManager[None]:
    """Hold the tree's agent lock; TryAgain when another agent does.

    Two would beat as one, with one sequence file and one status. Makes the agent's directory where
    no package has.
    """
    files.make_directory(layout.agent, 0o700)
    owner = layout.agent.stat().st_uid
    if owner != os.geteuid():
        # What root made there the agent could not open again.
        raise LocalFault(
            f"{layout.shown(layout.agent)} is owned by user id {owner}:"
            " byteor-agent run must run as that user",
            hint="systemctl start byteor-agent",
        )
    return reachable(layout)


def arrive(
    layout: Layout, *, config: Path | None, environ: MutableMapping[str, str]
) -> tuple[Handover, Settings]:
    """Return identity and settings; no child inherits the three variables of `environ`.

    Invalid (4) when they are not all there or ill-formed, LocalFault when nothing was handed over,
    ChildFailed when `unseal` or the reading of the settings file failed.
    """
    given = {name: environ.pop(name) for name in VARIABLES if name in environ}
    if given:
        base_url, agent_id, key = _checked(given)
        settings = read_config(layout, config=config)
        files.make_directory(layout.agent_run, 0o755)
        handed = Handover(
            base_url,
            agent_id,
            Secret(key),
            org_id=settings.org_id,
            project_id=settings.project_id,
            environment_id=settings.environment_id,
            name=settings.name,
            source=ENVIRONMENT,
        )
        return handed, settings
    if not layout.is_host:
        _child(["firstboot", "unseal", "--root", str(layout.root)])
    taken = take(layout)
    if taken is None:
        raise LocalFault(
            "no identity was handed over",
            hint="start byteor-agent.service, which runs byteor-firstboot unseal first",
        )
    return taken, frozen.load(layout)


def settings_again(layout: Layout, handed: Handover, *, config: Path | None) -> Settings:
    """Read the settings from where `arrive` read them."""
    if handed.source == ENVIRONMENT:
        return read_config(layout, config=config)
    return frozen.load(layout)


def read_config(layout: Layout, *, config: Path | None) -> Settings:
    """Return the settings of the file `config` or of the image's defaults.

    A child reads them: yaml never enters this process.
    """
    command = ["firstboot.provision.sources", "--root", str(layout.root)]
    if config is not None:
        command += ["--config", str(config)]
    out = _child(command)
    try:
        return frozen.thaw(json.loads(out))
    except (ValueError, AttributeError) as error:
        raise Corrupt("the child that read the settings wrote something else") from error


def _child(arguments: list[str]) -> bytes:
    """Run a module of ours to its end and return its stdout."""
    command = [sys.executable, "-I", "-m", *arguments]  # -I: nothing from the working directory
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=CHILD_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalFault(f"cannot run {arguments[0]}: {type(error).__name__}") from error
    if done.returncode:
        raise ChildFailed(done.returncode)
    return done.stdout


def _base_url(value: str) -> str:
    return documents.base_url(value, under_systemd=systemd.under_systemd())


def _agent_id(value: str) -> str:
    if not IDENTIFIER.match(value):
        raise ValueError("must be letters, digits, dot, underscore and dash, at most 128")
    return value


def _key(value: str) -> str:
    if len(value) not in KEY_LENGTHS or not all("!" <= c <= "~" for c in value):
        raise ValueError(f"must be {KEY_LENGTHS[0]} to {KEY_LENGTHS[-1]} visible ASCII characters")
    return value


VARIABLES: dict[str, Callable[[str], str]] = {
    "BYTEOR_API_BASE_URL": _base_url,
    "BYTEOR_AGENT_ID": _agent_id,
    "BYTEOR_AGENT_API_KEY": _key,
}


def _checked(given: dict[str, str]) -> list[str]:
    """Return the values of `VARIABLES` in order, each checked; else Invalid."""
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise Invalid(
            f"the environment sets {', '.join(given)} and not {', '.join(missing)}",
            hint="an agent's identity is all three variables, or none of them",
        )
    values = []
    for name, check in VARIABLES.items():
        try:
            values.append(check(given[name]))
        except ValueError as error:
            # Never the value: it may be the key that somebody put under the wrong name.
            raise Invalid(f"{name} {error}") from None
    return values
