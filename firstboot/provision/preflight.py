"""Spend nothing until all is ready: what can fail on this side fails before the token is presented.

Checked: the state directory takes durable writes and has room, the clock is not before this package was built, the
sealing key seals and opens, the plane completes a TLS handshake. ``/healthz`` is advisory: any answer will do, since an
answer proves the handshake. Not checked: that the plane knows the token; only spending it tells.
"""

from __future__ import annotations

from pathlib import Path

import firstboot
from firstboot.api.client import PlaneApi
from firstboot.api.transport import Transport
from firstboot.base import files, log
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import LocalFault, TryAgain
from firstboot.base.layout import Layout
from firstboot.exchange.settings import Settings

# More than identity, settings, intent, marks and receipt take together, with their temporary files.
ROOM_BYTES = 256 * 1024


def plane(settings: Settings) -> PlaneApi:
    """Return the plane's API as `settings` (complete ones) reach it."""
    transport = Transport(
        ca_certificates=settings.ca_certificates, proxy=settings.proxy, no_proxy=settings.no_proxy
    )
    return PlaneApi(settings.api_base_url or "", transport)


def make_state(layout: Layout) -> None:
    """Make the directories that first boot writes to, where the package has not; LocalFault if they are not private."""
    files.make_directory(layout.state, 0o755)
    files.make_directory(layout.identity, 0o700)
    files.check_private_directory(layout.identity, owner=layout.owner)


def check_disk(layout: Layout) -> None:
    """LocalFault unless the state directory takes and keeps what first boot is about to write."""
    make_state(layout)
    files.require_room(layout.identity, ROOM_BYTES)


def check_clock(clock: Clock) -> None:
    """LocalFault when the clock stands before this package was installed or built: no certificate would be valid."""
    built = Path(firstboot.__file__).stat().st_mtime
    if clock.wall() < built:
        raise LocalFault(
            f"the clock says {rfc3339(clock.wall())}, before this package was built ({rfc3339(built)})",
            hint="set the clock, or let NTP set it, and run again",
        )


def check_plane(api: PlaneApi) -> None:
    """TryAgain unless a TLS session with the plane can be made now."""
    try:
        api.health()
    except TryAgain as error:
        if not error.maybe_arrived:
            raise
        log.debug("the plane accepted a connection but did not answer /healthz", reason=error)
