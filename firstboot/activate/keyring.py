"""``activation/keyring.json``: the trusted signing keys, for the activator, `status` and people.

What may follow what is decided in `chain`; here a ring is read, kept and replaced. A ring that is
damaged, of another environment, or started from other pins than the settings name is set aside, and
the anchor is where it starts over. One that is damaged, or gone although there was one, and that
only the control plane over TLS could start again stays closed. Callers hold the activation's lock,
but for `look`, which changes nothing. The file is public (0644).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from firstboot.activate import chain
from firstboot.activate.chain import Place, Refusal, Ring
from firstboot.base import documents, files, log
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import Corrupt, Invalid
from firstboot.base.layout import Layout
from firstboot.exchange.settings import Settings

VERSION = 1
RESET = "if the control plane confirms its keys: byteor-firstboot trust --reset"
# Why the file is not the ring in use. Those that WHY explains are labels of what is set aside.
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
    """Return the ring in use and None, or the ring that is to replace it on disk, and why.

    Invalid when the settings name no place, or pin what cannot be a key.
    """
    place, pins, at = place_of(settings), chain.pins_of(settings), _now()
    try:
        ring = documents.read(layout.keyring, Ring)
    except Corrupt as error:
        log.warning(str(error))
        return chain.lost(settings, place, at=at), CORRUPT
    if ring is None:
        # Also where power went between setting a ring aside and its successor.
        traces = [*layout.activation.glob("keyring.json.*"), *layout.activation.glob("sequence.*")]
        if traces:
            return chain.lost(settings, place, at=at), GONE
        return chain.anchor(settings, place, at=at), ABSENT
    if ring.place != place:
        return chain.anchor(settings, place, at=at), FOREIGN
    if pins and set(pins) != set(ring.pins):
        after = chain.repinned(ring, settings, place, at=at)
        return after, PINS_ADDED if after == replace(ring, pins=pins) else REPINNED
    if ring.source == chain.CLOSED:
        start = chain.lost(settings, place, at=at)
        return (ring, None) if start.source == chain.CLOSED else (start, REPLACED)
    return ring, None


def place_of(settings: Settings) -> Place:
    """Return the place that the settings name; Invalid when they do not."""
    ids = (settings.org_id, settings.project_id, settings.environment_id)
    if None in ids:
        raise Invalid(
            "the settings name no organisation, project and environment",
            hint="byteor-firstboot status",
        )
    return Place(*map(str, ids))


def current(layout: Layout, settings: Settings, *, fetched_at: str | None = None) -> Ring:
    """Return the ring in use; one that is not is set aside, and what replaces it is kept.

    `fetched_at`: the time of the agent's answer. It does not start the ring of a new environment.
    """
    ring, why = look(layout, settings)
    if why == FOREIGN:
        ring = replace(ring, passed_over=fetched_at)
    if why in WHY:
        kept_as = files.set_aside(layout.keyring, label=why)
        log.warning(said(ring, why), kept_as=kept_as, source=ring.source)
        if ring.source == chain.CLOSED:
            log.hint(RESET)
    if why is not None:
        save(layout, ring)
    return ring


def said(ring: Ring, why: str) -> str:
    """Return what happened to a ring that is not used, for people."""
    then = "no signature is trusted" if ring.source == chain.CLOSED else "it starts over"
    return f"{WHY[why]}: {then}"


def offer(
    layout: Layout,
    settings: Settings,
    raw_reply: bytes,
    *,
    fetched_at: str | None = None,
    now: float | None = None,
) -> Ring:
    """Judge the bytes of an answer to request 7; keep and return the ring after it.

    Never raises for what the answer holds, and writes only what changed. `now` is the trusted time,
    None without a trusted clock: keys that have ends then wait for one (`chain.adopt`).
    `fetched_at` is the time of the file: one that was here when the environment changed may be the
    former control plane's word, and the agent must bring another.
    """
    before, at = current(layout, settings, fetched_at=fetched_at), _now()
    stale = fetched_at is not None and fetched_at == before.passed_over
    if stale or before.source == chain.CLOSED:
        return before
    try:
        value = documents.load(raw_reply)
        sets = value.get("key_sets") if isinstance(value, dict) else None
        if not isinstance(sets, list) or len(sets) > chain.MOST_SETS:
            raise ValueError(f"no list of at most {chain.MOST_SETS} key_sets")
    except ValueError as error:
        detail = f"what the agent fetched as key sets is not an answer: {error}"
        after = chain.with_refusal(before, Refusal("malformed", detail, at))
    else:
        after = chain.adopt(before, sets, at=at, trust=settings.signing_keys_trust, now=now)
    if after == before:
        return before
    save(layout, after)
    if after.version != before.version:
        log.notice("signing keys", version=after.version, source=after.source)
    refused = after.refused
    if refused is not None and refused != before.refused:
        detail = f"{refused.code}: {refused.detail}"
        log.warning(f"signing keys are refused: {detail}", in_force=after.version)
        log.hint(RESET)
    return after


def public(ring: Ring) -> dict[str, Any]:
    """Return ``signing_keys.json`` for the vendor's runtime: a key set, retired keys included."""
    return {"version": ring.version, "keys": [key.to_json() for key in ring.keys]}


def save(layout: Layout, ring: Ring) -> None:
    """Replace the file durably."""
    lists = {name: [key.to_json() for key in getattr(ring, name)] for name in ("keys", "pins")}
    files.write_json(layout.keyring, {"v": VERSION, **asdict(ring), **lists}, mode=0o644)


def _now() -> str:
    return rfc3339(Clock().wall())
