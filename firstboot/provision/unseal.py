"""``byteor-firstboot unseal``: open the identity and hand it to the agent.

It is the privileged pre-start step of the agent's unit. It runs as root outside the agent's
sandbox, so that the sealing key and the cryptography never enter the resident process. A foreign or
unreadable identity is not handed over: the agent then does not start, and `status` says why.
"""

from __future__ import annotations

from dataclasses import fields

from firstboot.base import accounts, files
from firstboot.base.layout import Layout
from firstboot.exchange import handover, settings
from firstboot.exchange.handover import Handover
from firstboot.identity import store


def unseal(layout: Layout) -> int:
    """Write the hand-over file; the error says why there is none (exit 3, 7 or 8)."""
    # One that no agent took must not outlive the identity that it came from.
    files.remove(layout.handover)
    here = store.required(layout)
    names = {member.name for member in fields(Handover)} - {"source", "proxy"}
    # A proxy without a password is in settings.json, where a later boot may change it.
    proxy = here.proxy if settings.has_password(here.proxy) else None
    handed = Handover(**{name: getattr(here, name) for name in names}, proxy=proxy)
    user = accounts.agent() if layout.is_host else None
    owner = (user.pw_uid, user.pw_gid) if user is not None else None
    handover.write(layout, handed, owner=owner)
    return 0
