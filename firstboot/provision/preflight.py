"""Spend nothing until all is ready: what can fail on this side fails before the token is presented.

Checked: the state directory takes durable writes and has room, the clock is not before this package was built, the
sealing key seals and opens, the plane completes a TLS handshake. ``/healthz`` is advisory: any answer will do, since an
answer proves the handshake. Not checked: that the plane knows the token; only spending it tells.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import firstboot
from firstboot.api.client import PlaneApi
from firstboot.api.transport import Transport
from firstboot.base import files, log
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import ByteorError, LocalFault, TryAgain
from firstboot.base.layout import Layout
from firstboot.exchange.settings import Settings
from firstboot.identity import store
from firstboot.identity.store import State
from firstboot.provision.schema import require_complete
from firstboot.provision.sources import Inputs, gather
from firstboot.provision.tokens import Marks

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


def command(layout: Layout, inputs: Inputs, *, as_json: bool) -> int:
    """``byteor-firstboot preflight``: make every check, one line each; the first failure's error decides the exit code."""
    found = gather(layout, inputs, classify=Marks.load(layout).classify)
    settings = found.settings
    checks: tuple[tuple[str, Callable[[], None]], ...] = (
        ("settings", lambda: require_complete(settings)),
        ("state directory", lambda: check_disk(layout)),
        ("clock", lambda: check_clock(Clock())),
        ("sealing", lambda: _check_sealing(layout, settings)),
        ("control plane", lambda: _reach_plane(settings)),
    )
    failed: ByteorError | None = None
    rows: list[dict[str, str | None]] = []
    for name, check in checks:
        row: dict[str, str | None] = {"check": name, "result": "ok", "problem": None, "hint": None}
        try:
            check()
        except ByteorError as error:
            row.update(result="failed", problem=str(error), hint=error.hint)
            failed = failed or error
        rows.append(row)
    if as_json:
        print(json.dumps({"v": 1, "checks": rows, "token": found.token is not None}, indent=1))
    else:
        for row in rows:
            print(f"{'!' if row['problem'] else '+'} {row['check']}: {row['problem'] or 'ok'}")
        print("+ token: there is one" if found.token is not None else "- token: none in any source")
    if failed is not None:
        raise failed
    return 0


def _reach_plane(settings: Settings) -> None:
    require_complete(settings)
    with plane(settings) as api:
        check_plane(api)


def _check_sealing(layout: Layout, settings: Settings) -> None:
    if store.look(layout).state is State.FOREIGN:
        return  # its key must not be touched; `run` sets it aside before it seals
    store.probe_sealing(layout, seal=settings.seal)
