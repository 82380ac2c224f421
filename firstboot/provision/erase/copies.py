"""Look everywhere, overwrite what is found, look again, write the receipt."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Callable

from firstboot.base import files
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.provision.erase.find import Kind, Place, places, recognise
from firstboot.provision.erase.receipt import Copy, Receipt, earlier, save
from firstboot.provision.erase.scrub import Unredactable, redact

FILE_LIMIT = 64 << 20
TRIES = 3  # a file that somebody writes meanwhile is read and overwritten again
# cloud-init's datasources that fetch user data again at every boot (leak-map, section 4).
FETCH_AGAIN = frozenset(
    [
        "aliyun",
        "altcloud",
        "bigstep",
        "cloudcix",
        "cloudsigma",
        "cloudstack",
        "ec2",
        "exoscale",
        "gce",
        "nwcs",
        "opennebula",
        "ovf",
        "rbxcloud",
        "scaleway",
        "smartos",
        "vmware",
    ]
)


def cloud_init_finished(layout: Layout) -> bool:
    """True when no later stage of this boot can still need what it left: it wrote its result, or does not run at all."""
    if not layout.is_host or layout.cloud_result.exists():
        return True
    return not layout.cloud_run.is_dir() or (layout.cloud_run / "disabled").exists()


def still_served(layout: Layout) -> tuple[str, ...]:
    """Sentences for what brings a token back whatever is overwritten here."""
    described = files.read(layout.cloud_datasource, limit=4096) or b""
    name = described.decode("utf-8", "replace").split(":")[0]
    short = name.replace("DataSource", "").lower()
    for suffix in ("local", "net"):
        short = short[: -len(suffix)] if short.endswith(suffix) else short
    if short in FETCH_AGAIN:
        return (
            f"the datasource {name} serves the user data again at every boot, and to any process on this host",
        )
    return ()


def erase(
    layout: Layout,
    tokens: Iterable[bytes],
    *,
    now: float,
    finished: bool,
    served: Sequence[str] = (),
    kept: Sequence[Copy] = (),
    lengths: frozenset[int] = frozenset(),
    known: Callable[[bytes], bool] = lambda candidate: False,
) -> Receipt:
    """Erase `tokens`, and those that only their mark (`lengths`, `known`) tells, and write the receipt.

    `kept` are copies that are not ours to erase, for the receipt: those that were erased all the same are left out.
    """
    found = list(places(layout))
    wanted: set[bytes] = set(tokens)
    unread: list[Copy] = []
    for place in found if lengths else ():
        try:
            wanted |= recognise(
                files.read(place.path, limit=FILE_LIMIT) or b"", lengths=lengths, known=known
            )
        except LocalFault:
            continue  # said below
    copies = []
    for place in found:
        try:
            data = files.read(place.path, limit=FILE_LIMIT)
        except LocalFault as error:
            unread.append(Copy(layout.shown(place.path), {}, "not_looked_at", str(error)))
            continue
        copy = _scrub(layout, place, data, sorted(wanted), finished=finished) if data else None
        if copy is not None:
            copies.append(copy)
    looked_at, seen = len(found) - len(unread), {copy.path for copy in copies}
    unread += [copy for copy in kept if copy.path not in seen]
    receipt = Receipt(now, looked_at, (*copies, *unread), tuple(served), history=earlier(layout))
    save(layout, receipt)
    return receipt


def _scrub(
    layout: Layout, place: Place, data: bytes, tokens: Sequence[bytes], *, finished: bool
) -> Copy | None:
    """Erase what one file holds; None when it holds no token."""
    shown, counts = layout.shown(place.path), {}
    try:
        clean, found = redact(data, tokens)
        if not found:
            return None
        counts = dict(found)
        if place.kind is Kind.LATE and not finished:
            return Copy(shown, counts, "pending", "cloud-init has not finished in this boot")
        for _ in range(TRIES):
            if len(data) == place.path.lstat().st_size:
                files.overwrite(place.path, clean)
            data = files.read(place.path, limit=FILE_LIMIT) or b""
            clean, found = redact(data, tokens)
            if not found:
                break
        else:
            return Copy(shown, counts, "remains", "it was written again while it was being erased")
        if place.kind is Kind.OURS:
            files.wipe(place.path)
        return Copy(shown, counts, "unlinked" if place.kind is Kind.OURS else "overwritten")
    except Unredactable as error:
        return Copy(shown, counts, "remains", str(error))
    except LocalFault as error:
        read_only = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EROFS
        return Copy(shown, counts, "still_served" if read_only else "remains", str(error))
