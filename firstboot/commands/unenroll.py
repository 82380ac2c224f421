"""``byteor-firstboot unenroll``: remove the identity from this host, and name its agent.

No request deletes an agent: that is done at the control plane. Marks of tokens stay, so that a
spent token in user data is not presented again; so do what is active, artifacts that wait, and what
was set aside. Purging the package does the same, and removes the rest.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from firstboot.base import files, inplace, log, systemd, trees
from firstboot.base.clock import monotonic
from firstboot.base.errors import ByteorError, Corrupt, LocalFault, NoToken, TryAgain
from firstboot.base.layout import Layout
from firstboot.exchange.inbox import forget_answers
from firstboot.exchange.wake import is_running, wake
from firstboot.identity import store
from firstboot.provision.tokens import Intent

UNITS = ("byteor-firstboot.service", "byteor-agent.service")
WAIT_S, POLL_S = 30.0, 0.1


def unenroll_command(arguments: argparse.Namespace) -> int:
    """Stop the agent and remove the identity; NoToken (3) when there is none.

    An identity that does not open here, or belongs to another host, is removed as well.
    """
    layout: Layout = arguments.layout
    if os.geteuid() != layout.owner:
        raise LocalFault("only root may remove the identity", hint="run as root")
    if not any(map(os.path.lexists, (layout.credentials, layout.settings))):
        raise NoToken("this host is not enrolled", hint="byteor-firstboot status")
    log.audit(layout, "unenroll")
    stays = left_there(layout)
    with stopped(layout, *UNITS):
        begun = begun_there(layout)  # a run that waited for its answer has ended
        forget(layout)
    print(*filter(None, (stays, begun)), sep="\n")
    return 0


def left_there(layout: Layout) -> str:
    """Name the agent of this identity, which no command of ours deletes at the control plane."""
    try:
        here = store.required(layout)
        named = f"agent {here.agent_id} ({here.name}) of environment {here.environment_id}"
        named += f" at {here.api_base_url}"
    except ByteorError as error:
        named = f"this host's agent, whose identity cannot be read here ({error}),"
    return f"{named} stays in the agent list until it is deleted there"


def begun_there(layout: Layout) -> str | None:
    """Name the agent that an enrollment without an answer may have made."""
    intent = Intent.load(layout, repair=False)
    if intent is None or not intent.unanswered:
        return None
    return (
        f"the enrollment as {intent.name} was never answered: the control plane may have that"
        " agent; look for it in the agent list, and delete it"
    )


@contextmanager
def stopped(layout: Layout, *units: str) -> Iterator[None]:
    """Stop `units`, a run that waits and the agent: none may write what is removed meanwhile.

    An agent that no unit runs (a container, another tree) is found by the lock that it holds.
    """
    if layout.is_host and systemd.booted():
        systemd.stop(*units)
    pause, limit = Event(), monotonic() + WAIT_S
    wake(layout, signal.SIGTERM)
    while is_running(layout):
        if monotonic() >= limit:
            raise TryAgain("the agent does not stop", hint="byteor-agent status shows it")
        pause.wait(POLL_S)
    busy = TryAgain("a run is at work", hint="wait for it, or stop byteor-firstboot.service")
    with files.locked(layout.run_lock, wait_s=WAIT_S, busy=lambda: busy):
        yield


def sealed(layout: Layout) -> tuple[Path, ...]:
    """Return what opens as an identity, or is one, the sealed file first.

    A command that is cut after that leaves none that opens.
    """
    return (layout.credentials, layout.sealing_key, layout.sealing_cred, layout.handover)


def forget(layout: Layout) -> None:
    """Remove the identity, what the control plane answered for it, and last the settings.

    So a command that was cut can be repeated. `reports` stays: it says which are of the former
    environment, and not to be sent.
    """
    for path in (*sealed(layout), layout.intent):
        remove(layout, path)
    forget_answers(layout)
    for path in (layout.progress, layout.agent_state, layout.uploaded, layout.agent_status):
        remove(layout, path)
    files.remove(layout.settings)


def remove(layout: Layout, path: Path) -> None:
    """Remove one name of ours; what may hold a secret is overwritten before, through no link.

    In the agent's own directories names alone are removed: it could replace what they lead to.
    """
    secret = layout.identity in path.parents or path in (layout.drop_place, layout.token_file)
    if secret and not path.is_symlink():
        for file in [path, *path.rglob("*")]:
            if file.is_file() and not file.is_symlink():
                try:
                    inplace.wipe_file(file)
                except Corrupt:
                    pass  # too large for a file of ours: removed as it is
    trees.remove(path)
