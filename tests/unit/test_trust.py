"""Which key set may follow which: histories as data, and what is left of the ring after each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.activate import chain
from firstboot.activate.chain import Place, Ring, adopt, anchor, unanchored
from firstboot.base.clock import from_rfc3339
from firstboot.base.errors import Invalid
from firstboot.exchange.settings import Settings
from tests.controlplane import signing
from tests.controlplane.signing import SigningKey

VECTORS = json.loads((Path(__file__).resolve().parents[1] / "vectors" / "keysets.json").read_text())
PLACE = Place("org_1", "prj_1", "env_1")
AT, LATER = "2026-06-01T12:00:00Z", "2026-06-02T12:00:00Z"
NOW = from_rfc3339(AT)
NOTHING = Ring(PLACE, chain.TLS, 0, None, (), (), None)


def key(number: int) -> SigningKey:
    return SigningKey.from_seed(f"kid-{number}", bytes([number]) * 32)


def key_set(
    version: int, by: int, *, ends: dict[int, str] | None = None, **keys: str
) -> dict[str, Any]:
    """A set with the keys k1="active" and so on, signed with key number `by`."""
    numbers = {int(name[1:]): status for name, status in keys.items()}
    entries = [
        signing.key_entry(key(n), status=status, not_after=(ends or {}).get(n))
        for n, status in numbers.items()
    ]
    return signing.key_set(version, entries, [key(by)])


ONE = key_set(1, 1, k1="active")
TWO = key_set(2, 1, k1="active", k2="active")
THREE = key_set(3, 2, k1="retired", k2="active")
FOUR = key_set(4, 2, k2="retired", k3="active")
FIVE = key_set(5, 3, k3="active", k4="active")
STRANGE_TWO = key_set(2, 9, k9="active")
FORGED_TWO = {**TWO, "signatures": [{"keyid": "kid-1", "sig": ONE["signatures"][0]["sig"]}]}
FOREIGN = signing.envelope(signing.DEPLOYMENT_TYPE, b"{}", [key(1)])
BY_RETIRED = key_set(4, 1, k1="retired", k2="active", k3="active")


def pinned(*numbers: int, sets: Any = (), **settings: Any) -> Settings:
    keys = tuple({"kid": f"kid-{n}", "public_key": signing.b64url(key(n).public)} for n in numbers)
    return Settings(
        org_id="org_1",
        project_id="prj_1",
        environment_id="env_1",
        signing_keys=keys,
        key_sets=tuple(sets),
        **settings,
    )


def state(ring: Ring) -> dict[str, str]:
    return {one.kid: one.status for one in ring.keys}


def refusal(ring: Ring) -> str | None:
    return ring.refused.code if ring.refused is not None else None


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_the_golden_histories(case: dict[str, Any]) -> None:
    """Sets offered one after the other, each with its verdict; what is refused leaves the ring as
    it was.
    """
    ring = NOTHING
    for envelope, verdict in zip(case["key_sets"], case["verdicts"]):
        after = adopt(ring, [envelope], at=AT)
        if verdict == "accepted":
            assert (
                refusal(after) is None
                and after.version > ring.version
                and after.payload == envelope["payload"]
            )
        elif verdict == "unchanged":
            assert after == ring
        else:
            assert refusal(after) == verdict and replace(after, refused=ring.refused) == ring
        ring = replace(after, refused=None)


# A ring that follows [ONE, TWO] is offered one reply: what is its version afterwards, and what was
# refused?
REPLIES: list[Any] = [
    ([], 2, None),
    ([THREE, FOUR, FIVE], 5, None),
    (
        [ONE, TWO, THREE],
        3,
        None,
    ),  # a plane that ignores `since`: what led to the set in force was dealt with
    ([TWO], 2, None),
    ([{**TWO, "signatures": []}], 2, None),  # the bytes in force, whoever signed them this time
    ([key_set(3, 1, k1="active", k2="active"), TWO], 3, "rolled_back"),
    ([THREE, TWO], 3, "broken_chain"),  # kid-1, which signed the lower one, is retired by now
    ([ONE], 2, "rolled_back"),
    (
        [ONE, key_set(2, 1, k1="active", k3="active"), TWO],
        2,
        "equivocation",
    ),  # an alarm, wherever it stands
    ([key_set(0, 1, k1="active")], 2, "rolled_back"),
    ([key_set(2, 1, k1="active", k3="active")], 2, "equivocation"),
    ([STRANGE_TWO], 2, "broken_chain"),
    ([key_set(3, 9, k9="active")], 2, "broken_chain"),
    ([key_set(3, 9, k1="active", k2="active", k9="active")], 2, "broken_chain"),
    ([THREE, BY_RETIRED], 3, "broken_chain"),
    (
        [THREE, BY_RETIRED, FOUR, FIVE],
        5,
        "broken_chain",
    ),  # what follows the set in force is taken, whatever stood between
    (
        [BY_RETIRED, THREE],
        4,
        "rolled_back",
    ),  # kid-1 is still active for this host: the order of the reply is the plane's
    ([key_set(7, 1, k1="active")], 7, None),  # a gap: what counts is the signature
    ([FIVE], 2, "broken_chain"),  # a gap too wide: nothing that we know signed it
    ([FOREIGN], 2, "wrong_type"),
    ([FOREIGN, THREE], 3, "wrong_type"),
    ([None, 7, "x", [], {}], 2, "malformed"),
    ([signing.envelope(signing.KEY_SET_TYPE, b'{"version": "three"}', [key(1)])], 2, "malformed"),
    ([{**THREE, "payload": THREE["payload"] + "\n"}], 2, "malformed"),
]


@pytest.mark.parametrize(("reply", "version", "refused"), REPLIES)
def test_one_reply(reply: list[Any], version: int, refused: str | None) -> None:
    """The chain over missed rotations; a set that may not follow changes nothing, and is remembered
    with its code.
    """
    before = adopt(NOTHING, [ONE, TWO], at=AT)
    after = adopt(before, reply, at=LATER)
    assert (after.version, refusal(after)) == (version, refused)
    assert after.refused is None or after.refused.at == LATER
    # Offered again (the inbox keeps the reply) nothing moves.
    assert adopt(after, reply, at="2027-01-01T00:00:00Z").version == version


def test_a_refusal_keeps_its_first_time_and_is_forgotten_by_a_clean_reply() -> None:
    """The same refusal a day later is the same; a reply that follows clears it."""
    once = adopt(adopt(NOTHING, [ONE], at=AT), [STRANGE_TWO], at=AT)
    assert adopt(once, [STRANGE_TWO], at=LATER) == once
    other = adopt(once, [FOREIGN], at=LATER)
    assert other.refused is not None and (other.refused.code, other.refused.at) == (
        "wrong_type",
        LATER,
    )
    assert refusal(adopt(other, [TWO], at=LATER)) is None


def test_keys_that_a_set_no_longer_lists_are_kept_as_retired() -> None:
    """They verify approvals until those expire, and sign nothing new."""
    ring = adopt(NOTHING, [ONE, TWO, THREE, FOUR], at=AT)
    assert state(ring) == {"kid-2": "retired", "kid-3": "active", "kid-1": "retired"}
    assert [one.kid for one in ring.for_deployments(None)] == ["kid-3"]
    assert {one.kid for one in ring.keys} == {"kid-1", "kid-2", "kid-3"}


@pytest.mark.parametrize("trust", [None, "tls"])
@pytest.mark.parametrize("start", [[], [ONE]], ids=["first", "later"])
def test_a_set_that_leaves_no_key_active_is_malformed(start: list[Any], trust: str | None) -> None:
    """One slip at the control plane must not end the chain on every host: it is refused and said,
    and what it should have been is taken afterwards.
    """
    ring = adopt(NOTHING, start, at=AT)
    for slip in (key_set(2, 1, k1="retired"), key_set(2, 1, k1="retired", k2="retired")):
        after = adopt(ring, [slip], at=AT, trust=trust)
        assert after.keys == ring.keys and after.version == ring.version
        assert refusal(after) == "malformed" and "no key active" in str(after.refused)
        mended = adopt(after, [slip, key_set(3, 1, k1="active", k2="active")], at=AT, trust=trust)
        assert mended.version == 3


def test_the_ring_stays_bounded() -> None:
    """A plane that brings new keys with every set does not grow the host's file without end."""
    ring = adopt(NOTHING, [ONE], at=AT)
    signer = key(1)
    for version in range(2, 9):
        fresh = [
            SigningKey.from_seed(f"kid-{version}-{n}", bytes([version, n]) * 16) for n in range(60)
        ]
        ring = adopt(
            ring,
            [signing.key_set(version, [signing.key_entry(one) for one in fresh], [signer])],
            at=AT,
        )
        signer = fresh[0]
    assert ring.version == 8
    assert len(ring.keys) == chain.MOST_KEYS_KEPT
    assert [one.kid for one in ring.for_deployments(None)] == [f"kid-8-{n}" for n in range(60)]


# -- anchors


def test_without_pins_and_sets_the_first_reply_is_the_anchor() -> None:
    """The plane over TLS is the root of trust, once: a chain that is broken in that reply starts at
    its newest part.
    """
    start = anchor(pinned(), PLACE, at=AT)
    assert (start.source, start.version, start.keys) == (chain.TLS, 0, ())
    assert adopt(start, [ONE, STRANGE_TWO, FORGED_TWO], at=AT).version == 2
    after = adopt(start, [key_set(1, 2, k1="active"), ONE, TWO], at=AT)
    assert (after.version, refusal(after)) == (2, "broken_chain")
    assert refusal(adopt(adopt(start, [ONE], at=AT), [STRANGE_TWO], at=AT)) == "broken_chain"


def test_the_enrollment_replys_sets_are_the_anchor_without_pins() -> None:
    """Then no later reply can bring keys of its own; sets that anchor nothing are as if they were
    not there.
    """
    ring = anchor(pinned(sets=[ONE, TWO]), PLACE, at=AT)
    assert (ring.source, ring.version) == (chain.ENROLLMENT, 2)
    assert refusal(adopt(ring, [key_set(3, 9, k9="active")], at=AT)) == "broken_chain"
    # Only the first stands on its own word; the rest of the reply is a chain.
    ring = anchor(pinned(sets=[ONE, STRANGE_TWO, key_set(3, 9, k9="active")]), PLACE, at=AT)
    assert (ring.source, ring.version, refusal(ring)) == (chain.ENROLLMENT, 1, "broken_chain")
    ring = anchor(pinned(sets=[FORGED_TWO, ONE, STRANGE_TWO]), PLACE, at=AT)
    assert (ring.source, ring.version, refusal(ring)) == (chain.ENROLLMENT, 1, "broken_chain")
    ring = anchor(pinned(sets=[{"payload": "x"}]), PLACE, at=AT)
    assert (ring.source, ring.version, refusal(ring)) == (chain.TLS, 0, "malformed")


def test_pins_come_before_the_enrollment_reply() -> None:
    """What the operator pinned counts from the start, before any set is there."""
    ring = anchor(pinned(2, sets=[ONE]), PLACE, at=AT)
    assert (ring.source, ring.version, state(ring)) == (chain.PINNED, 0, {"kid-2": "active"})
    assert [one.kid for one in ring.for_deployments(NOW)] == ["kid-2"]


@pytest.mark.parametrize(
    ("pins", "reply", "version", "refused"),
    [
        ((1,), [ONE, TWO, THREE], 3, None),
        (
            (2,),
            [ONE, TWO, THREE, FOUR],
            4,
            None,
        ),  # what stands before the first set that kid-2 signed is skipped
        ((2,), [ONE, TWO], 0, "broken_chain"),
        ((2,), [], 0, None),
        ((2,), [{**THREE, "signatures": FORGED_TWO["signatures"]}], 0, "broken_chain"),
        ((9,), [ONE, TWO, STRANGE_TWO], 2, None),
        (
            (1, 9),
            [ONE, STRANGE_TWO],
            1,
            "broken_chain",
        ),  # once anchored, the sets decide: kid-9 is not in the first
        (
            (1,),
            [ONE, STRANGE_TWO],
            1,
            "broken_chain",
        ),  # the leniency of a first reply is not for pinned hosts
        ((1,), [FOREIGN, None], 0, "broken_chain"),
    ],
)
def test_pinned_hosts_start_at_the_first_set_that_a_pin_signed(
    pins: Any, reply: list[Any], version: int, refused: str | None
) -> None:
    """Nothing but a pinned key anchors, not even TLS."""
    ring = adopt(anchor(pinned(*pins), PLACE, at=AT), reply, at=AT)
    assert (ring.version, refusal(ring), ring.source) == (version, refused, chain.PINNED)


def test_a_reset_does_not_take_the_enrollment_reply_again() -> None:
    """It holds the chain that is broken; the pins stay what they are."""
    assert unanchored(pinned(sets=[ONE]), PLACE) == NOTHING
    assert unanchored(pinned(1, sets=[ONE]), PLACE) == anchor(pinned(1), PLACE, at=AT)


@pytest.mark.parametrize(
    "keys",
    [
        [{"kid": "kid-1", "public_key": "AAAA"}],
        [{"kid": "kid-1", "public_key": signing.b64url(bytes(32))}],
        [{"kid": "../x", "public_key": signing.b64url(key(1).public)}],
        [{"kid": "kid-1"}],
        [{"kid": "kid-1", "public_key": signing.b64url(key(n).public)} for n in (1, 2)],
    ],
)
def test_a_pin_that_cannot_be_a_key_is_said_and_not_passed_over(keys: Any) -> None:
    """Falling back to TLS would be the opposite of what a pin is for."""
    with pytest.raises(Invalid, match="signing_keys"):
        anchor(Settings(signing_keys=tuple(keys)), PLACE, at=AT)


# -- signing_keys_trust: tls


@pytest.mark.parametrize(
    ("reply", "version", "refused"),
    [
        ([key_set(3, 9, k9="active")], 3, None),
        ([STRANGE_TWO], 2, "equivocation"),
        ([key_set(1, 9, k9="active")], 2, "rolled_back"),
        ([key_set(3, 9, k8="active")], 2, "broken_chain"),  # not even self-consistent
        ([key_set(3, 9, k9="retired", k8="active")], 2, "broken_chain"),
        ([THREE, FOUR], 4, None),
    ],
)
def test_with_tls_as_the_root_of_trust_a_newer_set_mends_the_chain(
    reply: list[Any], version: int, refused: str | None
) -> None:
    """Only a self-consistent one, and only upwards."""
    before = adopt(NOTHING, [ONE, TWO], at=AT)
    after = adopt(before, reply, at=AT, trust="tls")
    assert (after.version, refusal(after)) == (version, refused)


def test_a_pin_still_anchors_with_tls_as_the_root_of_trust() -> None:
    """The setting mends chains; it does not take the pins away."""
    start = anchor(pinned(1), PLACE, at=AT)
    assert adopt(start, [STRANGE_TWO], at=AT, trust="tls").version == 0
    assert adopt(start, [ONE, STRANGE_TWO], at=AT, trust="tls").version == 2


# -- ends of keys


def test_a_key_past_its_end_signs_no_set_once_a_clock_is_trusted() -> None:
    """A reply that a ring starts from is history, and its keys may have ended."""
    first = key_set(1, 1, k1="active", ends={1: AT})
    second = key_set(2, 1, k1="retired", k2="active")
    ring = adopt(NOTHING, [first], at=AT, now=NOW)
    assert ring.version == 1
    assert refusal(adopt(ring, [second], at=AT, now=NOW)) == "broken_chain"
    assert adopt(ring, [second], at=AT, now=NOW - 1).version == 2
    assert adopt(NOTHING, [first, second], at=AT, now=NOW).version == 2
    assert ring.for_deployments(NOW) == () and len(ring.for_deployments(None)) == 1


ENDING_TWO = key_set(2, 1, k1="active", k2="active", ends={2: AT})


@pytest.mark.parametrize(
    "reply", [[THREE], [STRANGE_TWO], [FOREIGN], [None], [ONE], [key_set(3, 1, k9="active")]]
)
@pytest.mark.parametrize("how", [None, "tls"])
def test_without_a_clock_a_ring_with_ends_waits(reply: list[Any], how: str | None) -> None:
    """Whoever withholds the time has nothing taken, nothing refused, and nothing that was refused
    forgotten.
    """
    ring = adopt(NOTHING, [ONE, ENDING_TWO], at=AT)
    assert adopt(ring, reply, at=LATER, trust=how) == ring
    alarmed = adopt(ring, [STRANGE_TWO], at=AT, now=NOW - 1)
    assert refusal(alarmed) is not None
    assert adopt(alarmed, reply, at=LATER, trust=how) == alarmed


def test_without_a_clock_the_walk_stops_where_ends_begin() -> None:
    """A ring without ends takes the set that brings them; what follows is for the clock. Ends of
    retired keys are none.
    """
    ring = adopt(adopt(NOTHING, [ONE], at=AT), [ENDING_TWO, THREE], at=AT)
    assert (ring.version, refusal(ring)) == (2, None)
    assert adopt(ring, [ENDING_TWO, THREE], at=AT, now=NOW - 1).version == 3
    retired = adopt(NOTHING, [key_set(1, 1, k1="active", k2="retired", ends={2: AT})], at=AT)
    assert adopt(retired, [TWO], at=AT).version == 2


# -- pins that change

PINNED_TWO = adopt(anchor(pinned(1, 9), PLACE, at=AT), [ONE, TWO], at=AT)


def test_an_added_pin_takes_nothing_away() -> None:
    """All that the ring rests on is still pinned; what it adds counts where the ring starts
    over.
    """
    added = chain.repinned(PINNED_TWO, pinned(8, 9, 1), PLACE, at=LATER)
    assert added == replace(PINNED_TWO, pins=chain.pins_of(pinned(8, 9, 1)))
    # Without a set it counts at once.
    empty = chain.repinned(anchor(pinned(1), PLACE, at=AT), pinned(1, 2), PLACE, at=LATER)
    assert empty == anchor(pinned(1, 2), PLACE, at=AT)


def test_the_set_in_force_stays_when_a_pin_that_stays_signed_it() -> None:
    """A pin that goes takes nothing away that does not rest on it."""
    ring = chain.repinned(PINNED_TWO, pinned(1), PLACE, at=LATER)
    assert (ring.version, ring.payload, ring.pins) == (2, TWO["payload"], chain.pins_of(pinned(1)))
    assert adopt(ring, [ONE, TWO, THREE], at=AT).version == 3


@pytest.mark.parametrize(
    ("reply", "version", "refused"),
    [
        ([ONE], 0, "rolled_back"),
        (
            [ONE, TWO, THREE],
            0,
            "rolled_back",
        ),  # not by way of the start that the plane has left behind
        ([key_set(2, 1, k1="active", k7="active")], 0, "rolled_back"),
        ([key_set(3, 1, k1="active")], 0, "rolled_back"),  # the version that was in force
        ([ONE, FOUR], 0, "rolled_back"),
        ([key_set(4, 9, k9="active")], 0, "broken_chain"),
        ([ONE, key_set(4, 1, k3="active"), FIVE], 5, None),
        ([], 0, None),
    ],
)
def test_no_older_set_comes_back_with_a_change_of_pins(
    reply: list[Any], version: int, refused: str | None
) -> None:
    """Where one pin stays: else whoever has a key that was retired since would only have to bring
    the set before.
    """
    before = adopt(PINNED_TWO, [THREE], at=AT)
    ring = chain.repinned(before, pinned(1, 8), PLACE, at=LATER)
    assert (ring.version, ring.floor, ring.envelope, state(ring)) == (
        0,
        3,
        None,
        {"kid-1": "active", "kid-8": "active"},
    )
    after = adopt(ring, reply, at=LATER)
    assert (after.version, refusal(after)) == (version, refused)
    assert after.floor == (0 if version else 3)
    # Nor with one more change.
    assert chain.repinned(ring, pinned(1), PLACE, at=LATER).floor == 3


def test_other_pins_altogether_are_another_beginning() -> None:
    """And so are the first ones."""
    for former in (PINNED_TWO, adopt(NOTHING, [ONE, TWO], at=AT)):
        assert chain.repinned(former, pinned(2), PLACE, at=AT) == anchor(pinned(2), PLACE, at=AT)


# -- a ring that was lost


def test_a_lost_ring_starts_from_what_root_has_or_is_closed() -> None:
    """Pins and the enrollment reply are root's own; the next answer over TLS is what the agent says
    it was.
    """
    assert chain.lost(pinned(1), PLACE, at=AT) == anchor(pinned(1), PLACE, at=AT)
    assert chain.lost(pinned(sets=[ONE]), PLACE, at=AT) == anchor(pinned(sets=[ONE]), PLACE, at=AT)
    for settings in (pinned(), pinned(sets=[FORGED_TWO])):
        ring = chain.lost(settings, PLACE, at=AT)
        assert (ring.source, ring.version, ring.keys, refusal(ring)) == (
            chain.CLOSED,
            0,
            (),
            "damaged",
        )
        for how in (None, "tls"):
            assert adopt(ring, [ONE, TWO, FOREIGN], at=LATER, trust=how, now=NOW) == ring


@given(
    st.lists(
        st.sampled_from([ONE, TWO, THREE, FOUR, FIVE, STRANGE_TWO, FORGED_TWO, FOREIGN, BY_RETIRED])
        | st.recursive(
            st.none() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(["payload", "payloadType", "signatures", "keyid", "sig"]), inner
                )
            ),
        ),
        max_size=8,
    ),
    st.sampled_from([None, "chained", "tls"]),
)
def test_whatever_is_offered_the_version_never_falls(reply: list[Any], how: str | None) -> None:
    """Any order of good, hostile and senseless sets: no exception, no lower version, and the set in
    force has an active key.
    """
    ring = adopt(NOTHING, [ONE, TWO], at=AT)
    after = adopt(ring, reply, at=AT, trust=how)
    assert after.version >= ring.version
    assert (after.version > ring.version) or after.keys == ring.keys
    if how != "tls":
        assert "kid-9" not in state(after)
