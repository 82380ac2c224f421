"""``activation/keyring.json``: the signing keys in force, kept on disk for the activator, for `status` and for people.

What may follow what is decided in `trust`; here a ring is read, kept and replaced. A ring that is damaged, of another
environment, or started from other pins than the settings name is set aside, and the anchor is where it starts over. One
that is damaged, or gone although there was one, and that only the plane over TLS could start again stays closed.
Callers hold the activation's lock, but for `look`, which changes nothing. The file is public (0644).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from firstboot.activate import chain
from firstboot.activate.chain import Place, Refusal, Ring
from firstboot.activate.signatures import Key
from firstboot.base import documents, files, log
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import Corrupt, Invalid
from firstboot.base.layout import Layout
from firstboot.exchange import verdicts
from firstboot.exchange.settings import Settings
from firstboot.exchange.verdicts import RingFile

VERSION = 1
SOURCES = (chain.PINNED, chain.ENROLLMENT, chain.TLS, chain.CLOSED)
RESET = "if the plane confirms its keys: byteor-firstboot trust --reset"
# Why the file is not the ring in force. Those that WHY explains are the labels under which it is set aside.
ABSENT, PINS_ADDED = "absent", "pins added"
CORRUPT, GONE, FOREIGN, REPINNED, REPLACED = "corrupt", "gone", "foreign", "repinned", "replaced"
WHY = {
    CORRUPT: "the key ring is damaged",
    GONE: "the key ring is gone, though this host had one",
    FOREIGN: "the key ring is another environment's",
    REPINNED: "the settings pin other signing keys than the key ring started from",
    REPLACED: "the key ring was lost, and there is an enrollment reply to start from now",
}


def look(layout: Layout, settings: Settings) -> tuple[Ring, str | None]:
    """The ring in force and None, or the ring that is to replace what is on disk, and why.

    Invalid when the settings name no place, or pin what cannot be a key.
    """
    place = place_of(settings)
    pins = chain.pins_of(settings)
    try:
        stored = verdicts.ring(layout)
        ring = None if stored is None else _of(stored)
    except Corrupt as error:
        log.warning(str(error))
        return chain.lost(settings, place, at=_now()), CORRUPT
    if ring is None:
        had_one = _had_one(layout)
        return (chain.lost if had_one else chain.anchor)(
            settings, place, at=_now()
        ), GONE if had_one else ABSENT
    if ring.place != place:
        return chain.anchor(settings, place, at=_now()), FOREIGN
    if pins and not chain.same_pins(ring.pins, pins):
        after = chain.repinned(ring, settings, place, at=_now())
        return after, PINS_ADDED if after == replace(ring, pins=pins) else REPINNED
    if ring.source == chain.CLOSED:
        start = chain.lost(settings, place, at=_now())
        return (ring, None) if start.source == chain.CLOSED else (start, REPLACED)
    return ring, None


def _had_one(layout: Layout) -> bool:
    """True where deployments were verified, or a ring was set aside: also when power went between that and its successor."""
    traces = (
        path
        for shape in ("keyring.json.*", "sequence.json*")
        for path in layout.activation.glob(shape)
    )
    return next(traces, None) is not None


def place_of(settings: Settings) -> Place:
    """Return the place that the settings name; Invalid when they do not."""
    ids = (settings.org_id, settings.project_id, settings.environment_id)
    if None in ids:
        raise Invalid(
            "the settings name no organisation, project and environment",
            hint="byteor-firstboot status",
        )
    return Place(*map(str, ids))


def current(layout: Layout, settings: Settings) -> Ring:
    """The ring in force; one that does not count is set aside, and what replaces it is kept."""
    ring, why = look(layout, settings)
    if why in WHY:
        kept_as = files.set_aside(layout.keyring, label=why)
        log.warning(said(ring, why), kept_as=kept_as, source=ring.source)
        if ring.source == chain.CLOSED:
            log.hint(RESET)
    if why is not None:
        save(layout, ring)
    return ring


def said(ring: Ring, why: str) -> str:
    """What became of a ring that does not count, for people."""
    return f"{WHY[why]}: " + (
        "no signature counts" if ring.source == chain.CLOSED else "it starts over"
    )


def offer(
    layout: Layout, settings: Settings, raw_reply: bytes, *, now: float | None = None
) -> Ring:
    """Judge the bytes of an answer to request 7; keep and return the ring after it, written only when it changed.

    Never raises for what the answer holds. `now` is the trusted time, None without a trusted clock: keys that have ends
    then wait for one, as `trust.adopt` says, which also names the price of ends.
    """
    before = current(layout, settings)
    if before.source == chain.CLOSED:
        return before
    try:
        envelopes = _envelopes(raw_reply)
    except ValueError as error:
        refusal = Refusal(
            "malformed", f"what the agent brought as key sets is not an answer: {error}", _now()
        )
        after = chain.with_refusal(before, refusal)
    else:
        after = chain.adopt(
            before, envelopes, at=_now(), trust=settings.signing_keys_trust, now=now
        )
    if after == before:
        return before
    save(layout, after)
    if after.version != before.version:
        log.notice("signing keys", version=after.version, source=after.source)
    if after.refused is not None and after.refused != before.refused:
        log.warning(
            f"signing keys are refused: {after.refused.code}: {after.refused.detail}",
            in_force=after.version,
        )
        log.hint(RESET)
    return after


def _envelopes(raw_reply: bytes) -> Any:
    value = documents.load(raw_reply)
    found = value.get("key_sets") if isinstance(value, dict) else None
    if not isinstance(found, list) or len(found) > chain.MOST_SETS:
        raise ValueError(f"no list of at most {chain.MOST_SETS} key_sets")
    return found


def public(ring: Ring) -> dict[str, Any]:
    """The document ``signing_keys.json`` for the vendor's runtime: a key set's members, retired keys included."""
    return {"version": ring.version, "keys": [key.to_json() for key in ring.keys]}


def save(layout: Layout, ring: Ring) -> None:
    """Replace the file durably."""
    document = {
        "v": VERSION,
        "place": asdict(ring.place),
        "version": ring.version,
        "source": ring.source,
        "envelope": ring.envelope,
        "keys": [key.to_json() for key in ring.keys],
        "pins": [key.to_json() for key in ring.pins],
        "refused": asdict(ring.refused) if ring.refused is not None else None,
        "floor": ring.floor,
    }
    files.write_json(layout.keyring, document, mode=0o644)


def _of(stored: RingFile) -> Ring:
    """Return the ring of a file; Corrupt when a key is none. Its keys were verified before."""
    try:
        if stored.source not in SOURCES:
            raise ValueError("no such source")
        keys, pins = tuple(map(Key.of, stored.keys)), tuple(map(Key.of, stored.pins))
    except ValueError as error:
        raise Corrupt(f"keyring.json is damaged: {error}") from error
    return Ring(
        stored.place, stored.source, stored.version, stored.envelope, keys, pins,
        stored.refused, stored.floor,
    )  # fmt: skip


def _now() -> str:
    return rfc3339(Clock().wall())
