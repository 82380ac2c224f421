"""Check everything on this side before the token is presented.

The state directory takes durable writes and has room, the clock is not before this package was
built, systemd knows the agent's unit, the control plane completes a TLS handshake. ``/healthz`` is
advisory: any answer will do, since an answer proves the handshake. Sealing is probed by
`identity.store`. Not checked: that the control plane knows the token; only spending it tells.
"""

from __future__ import annotations

from pathlib import Path

import firstboot
from firstboot.api.client import PlaneApi
from firstboot.api.connection import DEADLINE_S
from firstboot.base import files, log, private, systemd
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import LocalFault, TryAgain
from firstboot.base.layout import Layout
from firstboot.exchange.settings import Settings

AGENT_UNIT = "byteor-agent.service"
# Identity, settings, intent, marks and receipt take less together, with their temporary files.
ROOM_BYTES = 256 * 1024


def plane(settings: Settings, *, deadline_s: float = DEADLINE_S) -> PlaneApi:
    """Return the control plane's API as `settings` (complete ones) reach it."""
    from firstboot.api.transport import Transport  # requests is a fifth of an ordinary boot

    transport = Transport(
        ca_certificates=settings.ca_certificates, proxy=settings.proxy, no_proxy=settings.no_proxy
    )
    return PlaneApi(settings.api_base_url or "", transport, deadline_s=deadline_s)


def make_state(layout: Layout) -> None:
    """Make the directories that the package has not; LocalFault if they are not private."""
    files.make_directory(layout.state, 0o755)
    files.make_directory(layout.identity, 0o700)
    private.check_directory(layout.identity, owner=layout.owner)


def sweep(layout: Layout) -> None:
    """Remove what a writer that was killed left half-made; the caller holds the lock.

    A key that was being made has two names until then, and is not used.
    """
    with files.attempt("look at", layout.identity):
        made = [path for path in layout.identity.glob(".*") if path.suffix in (".tmp", ".new")]
    for path in made:
        files.remove(path)


def check_disk(layout: Layout) -> None:
    """Raise LocalFault unless the state directory takes and keeps what first boot writes."""
    make_state(layout)
    files.require_room(layout.identity, ROOM_BYTES)


def check_clock(clock: Clock) -> None:
    """Raise LocalFault when the clock is before this package: no certificate would be valid."""
    built = Path(firstboot.__file__).stat().st_mtime
    if clock.wall() < built:
        raise LocalFault(
            f"the clock says {rfc3339(clock.wall())}, before this package was built "
            f"({rfc3339(built)})",
            hint="set the clock, or let NTP set it, and run again",
        )


def check_agent(layout: Layout) -> None:
    """Raise LocalFault when systemd knows no unit of the agent: an identity would lie idle."""
    if layout.is_host and systemd.booted() and not systemd.knows(AGENT_UNIT):
        raise LocalFault(
            f"{AGENT_UNIT} is not installed: nothing will run the agent",
            hint="install the package with its units, or run byteor-agent run in a unit of yours",
        )


def check_plane(api: PlaneApi) -> None:
    """Raise TryAgain unless a TLS session with the control plane can be made now."""
    try:
        api.health()
    except TryAgain as error:
        if not error.maybe_arrived:
            raise
        log.debug("the control plane did not answer /healthz", reason=error)
