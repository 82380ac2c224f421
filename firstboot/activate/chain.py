"""Decide which key set may follow which (contract 2.5). Pure: values in, values out.

A `Ring` starts from an anchor: the keys pinned in the settings, else the key sets of the enrollment
reply, else the first reply over TLS. From then on a key set is taken when a key that is active in
its predecessor signed it. A set that may not follow is passed over, as if it had not been sent, and
remembered as `refused`: an older one (`rolled_back`), another one under the version that is in use
(`equivocation`), one without a good signature (`broken_chain`), one that leaves no key active
(`malformed`). Versions may have gaps: what counts is the signature.

A ring that was lost, and whose start cannot be had again, is `CLOSED`: it takes nothing until the
operator's ``trust --reset``. Otherwise the agent's user here would choose the keys of its second
start.

``signing_keys_trust: tls`` makes the control plane's word over TLS the root of trust: a broken
chain is then mended by any self-consistent set of a higher version. The price: an attacker who can
pose as the control plane, or become the agent's user on this host, can bring keys of their own.
Without pins that price is paid once, for the reply that the ring starts from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from firstboot.activate import signatures
from firstboot.activate.signatures import Envelope, Key, KeySet
from firstboot.base.documents import Rule
from firstboot.base.errors import Invalid, Untrusted
from firstboot.exchange.settings import Settings
from firstboot.exchange.verdicts import ACTIVE, ED25519, RETIRED, RingFile
from firstboot.exchange.verdicts import Place as Place
from firstboot.exchange.verdicts import Refusal as Refusal

PINNED, ENROLLMENT, TLS, CLOSED = "pinned", "enrollment", "tls", "closed"
TRUST_TLS = "tls"  # the value of signing_keys_trust
MOST_SETS = 1024  # in one reply; more do not fit into 1 MiB anyway
LARGEST_SET = 1 << 18  # bytes of its envelope, which is kept
MOST_KEYS_KEPT = 256  # in a ring, retired ones included; the newest stay


_Source = Annotated[str, Rule(lambda s: s in (PINNED, ENROLLMENT, TLS, CLOSED), "known")]


@dataclass(frozen=True)
class Ring(RingFile):
    """The keys that judge one environment's signatures.

    Version 0 and no `envelope` (of the newest set, as received): no key set yet. `keys` are the
    newest set's, then those of earlier sets (and pins) that it no longer lists, as retired.
    `floor`, while there is no envelope: the version that was in use before the pins changed.
    `passed_over`: the time (ns, in digits) of the answer here when the environment changed.
    """

    source: _Source
    keys: tuple[Key, ...]
    pins: tuple[Key, ...]

    def for_deployments(self, now: float | None) -> tuple[Key, ...]:
        """Return the keys that may sign something new; without `now`, whatever their end."""
        return tuple(key for key in self.keys if key.signs(now))

    @property
    def seeks_pin(self) -> bool:
        """Return True while only the pins count: one of them must have signed the first set."""
        return bool(self.pins) and self.envelope is None

    @property
    def has_ends(self) -> bool:
        """Return True when a clock has to say whether a key may still sign."""
        return any(key.signs(None) and key.not_after is not None for key in self.keys)

    @property
    def payload(self) -> Any:
        """Return the newest set's payload in base64, as received: what 'same bytes' means."""
        return self.envelope.get("payload") if self.envelope is not None else None


def pins_of(settings: Settings) -> tuple[Key, ...]:
    """Return the keys that the operator pinned; Invalid when one of them cannot be a key."""
    pins: dict[str, Key] = {}
    try:
        for entry in settings.signing_keys:
            pin = Key.parse({"alg": ED25519, "status": ACTIVE, **entry})
            pins[pin.kid] = pin
        if len(pins) != len(settings.signing_keys) or len(pins) > signatures.MOST_KEYS:
            raise ValueError("a kid is listed twice, or there are too many")
    except ValueError as error:
        hint = "correct it in /etc/byteor/firstboot.yaml, then byteor-firstboot run"
        raise Invalid(f"signing_keys in the settings: {error}", hint=hint) from None
    return tuple(pins.values())


def anchor(settings: Settings, place: Place, *, at: str) -> Ring:
    """Return the ring to start with: pins, else the enrollment reply's sets, else none."""
    fresh = unanchored(settings, place)
    if fresh.pins or not settings.key_sets:
        return fresh
    enrolled = adopt(replace(fresh, source=ENROLLMENT), settings.key_sets, at=at)
    return enrolled if enrolled.envelope is not None else replace(fresh, refused=enrolled.refused)


def unanchored(settings: Settings, place: Place) -> Ring:
    """Return the ring that `trust --reset` starts over with: the pins, else the next TLS reply."""
    pins = pins_of(settings)
    return Ring(place, PINNED if pins else TLS, 0, None, pins, pins, None)


def lost(settings: Settings, place: Place, *, at: str) -> Ring:
    """Return the ring after one that was damaged or taken away.

    From its anchor, or closed where that was the control plane over TLS.
    """
    start = anchor(settings, place, at=at)
    if start.source != TLS:
        return start
    detail = "the key ring was lost: no signature is trusted until a reset"
    return Ring(place, CLOSED, 0, None, (), (), Refusal("damaged", detail, at))


def repinned(former: Ring, settings: Settings, place: Place, *, at: str) -> Ring:
    """Return the ring after the operator changed the pins.

    It is `former`, but for its `pins`, when none of its own was taken away. Where one of them
    stays, so does the order of versions: the set in use is the start if a pin signed it, else a
    newer one. An older one would bring back keys that were retired since. Other pins altogether are
    another beginning.
    """
    fresh = anchor(settings, place, at=at)
    left = set(former.pins)
    stay = left & set(fresh.pins)
    if not stay:
        return fresh
    if stay == left and former.envelope is not None:
        return replace(former, pins=fresh.pins)
    fresh = replace(fresh, floor=max(former.version, former.floor))
    try:
        return _follow(replace(fresh, floor=0), former.envelope, lenient=False, now=None)
    except Untrusted:
        return fresh


def adopt(
    ring: Ring,
    envelopes: Sequence[Any],
    *,
    at: str,
    trust: str | None = None,
    now: float | None = None,
) -> Ring:
    """Walk the envelopes (JSON values) of one reply; return the ring after it, and never raise.

    What was taken before, or after, a set that may not follow is kept. The first refusal of the
    reply is remembered (with the time `at`, unless it is the one that is known already), and a
    reply without one forgets it. `trust` is the setting ``signing_keys_trust``.

    A key past its end signs no key set: a host that slept past the ends of all keys that it knows
    needs ``trust --reset``. Without a trusted `now` a ring whose keys have ends takes nothing and
    refuses nothing, it waits: withholding the time gains nothing. Ends are not judged in the reply
    that a ring starts from: it is the whole history, and its first keys may have ended long ago.

    A ring that starts from the enrollment reply takes its first set on its own word, and then the
    chain. One that starts over TLS takes each set of that one reply so: otherwise ``trust --reset``
    could not leave a history that is broken in the middle.
    """
    if ring.source == CLOSED:
        return ring
    starting, older = ring.envelope is None, None
    payloads = [value.get("payload") if isinstance(value, dict) else None for value in envelopes]
    # A reply may begin with what led to the set in use (the inbox keeps the last one): that it is
    # old is no refusal.
    known = payloads.index(ring.payload) if ring.payload in payloads and not starting else 0
    refused: Refusal | None = None
    for number, value in enumerate(envelopes):
        if ring.payload is not None and payloads[number] == ring.payload:
            continue
        if not starting and now is None and ring.has_ends:
            return with_refusal(ring, refused or ring.refused)
        on_its_word = trust == TRUST_TLS or (
            starting and not ring.pins and (ring.source == TLS or ring.envelope is None)
        )
        lenient = on_its_word and not ring.seeks_pin
        try:
            ring = _follow(ring, value, lenient=lenient, now=None if starting else now)
        except Untrusted as error:
            said = Refusal(error.code, str(error), at)
            # What stands before the first set that a pinned key signed is not ours to judge.
            news = number >= known or error.code == "equivocation"
            if ring.seeks_pin:
                older = said if error.code == "rolled_back" else older
            elif refused is None and news:
                refused = said
    if ring.seeks_pin and envelopes:
        none = f"none of the {len(envelopes)} key sets is signed with a pinned key"
        refused = older or Refusal("broken_chain", none, at)
    return with_refusal(ring, refused)


def with_refusal(ring: Ring, refused: Refusal | None) -> Ring:
    """Return the ring with this refusal; the same one as before keeps its first time."""
    former = ring.refused
    if refused is not None and former is not None and replace(former, at=refused.at) == refused:
        return ring
    return replace(ring, refused=refused)


def _follow(ring: Ring, value: Any, *, lenient: bool, now: float | None) -> Ring:
    """Return the ring with one more key set; Untrusted when it may not follow."""
    envelope = signatures.envelope_of(value, kind=signatures.KEY_SET)
    found = _parse(_vouched_for(ring, envelope, lenient=lenient, now=now))
    after = max(ring.version, ring.floor)
    if found.version < max(ring.version, ring.floor + 1):
        why = f"a key set of version {found.version} after one of version {after}"
        raise Untrusted("rolled_back", why)
    if found.version == ring.version:
        why = f"another key set under version {found.version}, which is in use"
        raise Untrusted("equivocation", why)
    listed = {key.kid for key in found.keys}
    former = tuple(replace(key, status=RETIRED) for key in ring.keys if key.kid not in listed)
    kept = (*found.keys, *former)[:MOST_KEYS_KEPT]
    # Without members that DSSE does not know: nobody vouches for those.
    made = [{"keyid": one.get("keyid"), "sig": one["sig"]} for one in value["signatures"]]
    bare = {name: value[name] for name in ("payload", "payloadType")}
    bare["signatures"] = made
    if len(json.dumps(bare)) > LARGEST_SET:
        raise Untrusted("malformed", f"a key set has more than {LARGEST_SET} bytes")
    return replace(ring, version=found.version, envelope=bare, keys=kept, floor=0)


def _vouched_for(ring: Ring, envelope: Envelope, *, lenient: bool, now: float | None) -> bytes:
    """Return the payload of a set signed by its predecessor's key, or (`lenient`) by its own."""
    try:
        return envelope.verified(ring.for_deployments(now))
    except Untrusted as error:
        why = f"a key set does not follow the one of version {ring.version}: {error}"
    if lenient:
        own = _parse(envelope.unverified_payload).keys
        try:
            return envelope.verified(key for key in own if key.signs(now))
        except Untrusted:
            why = "a key set is not signed with a key that it lists as active itself"
    raise Untrusted("broken_chain", why)


def _parse(payload: bytes) -> KeySet:
    try:
        return KeySet.parse(payload)
    except ValueError as error:
        raise Untrusted("malformed", f"a key set is malformed: {error}") from None
