"""``byteor-firstboot trust``: show the trusted signing keys, or start over with ``--reset``.

Showing needs no root and changes nothing. `--reset` is the way out of a broken chain: the ring
starts over from the pins, else from the control plane's next answer over TLS, and not from the
enrollment reply, which leads into the same chain again. What is active stays active.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Any

from firstboot.activate import chain, keyring
from firstboot.activate.chain import Ring
from firstboot.activate.signatures import Key
from firstboot.base import files, log
from firstboot.base.clock import Clock
from firstboot.base.errors import LocalFault, TryAgain
from firstboot.base.layout import Layout
from firstboot.commands import agent_page
from firstboot.commands.agent_page import word
from firstboot.commands.flags import flag
from firstboot.exchange.inbox import drop_key_sets
from firstboot.exchange.settings import Settings
from firstboot.exchange.verdicts import ACTIVE
from firstboot.exchange.wake import wake
from firstboot.provision.sources import in_force

SOURCES = {
    chain.PINNED: "pinned in /etc/byteor/firstboot.yaml",
    chain.ENROLLMENT: "the enrollment reply",
    chain.TLS: "the control plane over TLS",
    chain.CLOSED: "none: the key ring was lost",
}


def trust_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flag of ``trust``."""
    flag(
        parser, "--reset", "start over: from the pinned keys, else from the control plane over TLS"
    )


def trust_command(arguments: argparse.Namespace) -> int:
    """Show the ring, or reset it."""
    layout: Layout = arguments.layout
    settings = in_force(layout, config=arguments.config)
    return (reset if arguments.reset else show)(layout, settings, as_json=arguments.json)


def show(layout: Layout, settings: Settings, *, as_json: bool) -> int:
    """Print the ring that is trusted now."""
    ring, why = keyring.look(layout, settings)
    found = f" ({keyring.said(ring, why)})" if why in keyring.WHY else ""
    version = f"version {ring.version}" if ring.envelope is not None else "none yet"
    rows = [("key set", version + found), ("source", SOURCES[ring.source])]
    now = Clock().wall()
    rows += [("key", f"{key.kid} {_state(key, now)}") for key in ring.keys]
    if not ring.keys:
        rows.append(("key", "none: nothing that is signed is accepted yet"))
    if ring.refused is not None:
        rows.append(("refused", f"{ring.refused.code} at {ring.refused.at}: {ring.refused.detail}"))
        rows.append(("hint", keyring.RESET))
    lines = [f"{name:<14} {word(said)}" for name, said in rows]
    agent_page.show(_document(ring), lines, as_json=as_json)
    return 0


def _state(key: Key, now: float) -> str:
    if key.status != ACTIVE or key.not_after is None:
        return key.status
    if key.signs(now):
        return f"{key.status} until {key.not_after}"
    return f"{key.status}, ended {key.not_after}: nothing new is accepted"


def reset(layout: Layout, settings: Settings, *, as_json: bool) -> int:
    """Set the ring aside and start over; a running agent asks for the keys at once."""
    if os.geteuid() != layout.owner:
        raise LocalFault("only root may reset the trusted signing keys", hint="run it as root")
    log.audit(layout, "trust --reset")
    ring = chain.unanchored(settings, keyring.place_of(settings))
    files.make_directory(layout.activation, 0o755)
    busy = TryAgain("an activation is in progress", hint="see byteor-agent deployments, and wait")
    with files.locked(layout.activation_lock, busy=lambda: busy):
        # A command that was cut leaves the former ring or the new one, never none.
        kept_as = files.set_aside(layout.keyring, label="reset", stays=True)
        keyring.save(layout, ring)
        drop_key_sets(layout)  # else one from before becomes the first one after
    told = wake(layout)
    aside = layout.shown(kept_as) if kept_as is not None else None
    first = "the key sets of the control plane's next answer over TLS"
    if ring.pins:
        first = "the first key set that a pinned key signed"
    lines = [
        f"trust starts again from {first}; what is active stays active",
        f"the agent asks for it {'now' if told else 'when it looks next: start it, or wait'}",
    ]
    if aside is not None:
        lines.insert(0, f"the former key ring is kept as {aside}")
    document = {**_document(ring), "set_aside": aside, "agent_told": told}
    agent_page.show(document, lines, as_json=as_json)
    return 0


def _document(ring: Ring) -> dict[str, Any]:
    """Return the document of ``--json``."""
    return {
        "v": 1,
        **keyring.public(ring),
        "source": ring.source,
        "refused": asdict(ring.refused) if ring.refused is not None else None,
        "hint": keyring.RESET if ring.refused is not None else None,
    }
