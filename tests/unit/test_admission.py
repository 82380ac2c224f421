"""Admitted, or refused with its own code: every rule of contract 3 that is decided from bytes,
keys, place and time.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.activate import chain
from firstboot.activate.admission import Deployment, Highest, Inadmissible, Untimely, admit, approve
from firstboot.activate.chain import Place, Ring
from firstboot.activate.signatures import Key
from firstboot.base.clock import from_rfc3339
from firstboot.base.errors import Untrusted
from tests.controlplane import signing, spoil, vectors
from tests.controlplane.signing import DEPLOYMENT_TYPE, SigningKey

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
ENVELOPES, APPROVALS = (
    json.loads((VECTORS / f"{name}.json").read_text()) for name in ("envelopes", "approvals")
)
NOW = from_rfc3339(ENVELOPES["context"]["now"])
PLACE = Place("org_1", "prj_1", "env_1")
SIGNER, RETIRED, ENDED, OTHER = (
    SigningKey.from_seed(f"kid-{n}", bytes([n]) * 32) for n in (1, 2, 3, 4)
)
RING = Ring(
    PLACE, chain.TLS, 1, None,
    tuple(
        Key.parse(entry)
        for entry in (
            signing.key_entry(SIGNER), signing.key_entry(RETIRED, status="retired"),
            signing.key_entry(ENDED, not_after="2026-06-01T12:00:00Z"),
        )
    ),
    (), None,
)  # fmt: skip
GOOD: dict[str, Any] = json.loads(base64.b64decode(ENVELOPES["cases"][0]["envelope"]["payload"]))


def envelope(payload: Any, *, by: SigningKey = SIGNER, kind: str = DEPLOYMENT_TYPE) -> bytes:
    raw = payload if isinstance(payload, bytes) else signing.canonical(payload)
    return json.dumps(signing.envelope(kind, raw, [by])).encode()


def admitted(
    raw: bytes, *, highest: Highest | None = None, now: float | None = NOW, place: Place = PLACE
) -> Deployment:
    return admit(raw, ring=RING, place=place, highest=highest, now=now)


def refused(call: Callable[[], Any]) -> Untrusted:
    with pytest.raises(Untrusted) as caught:
        call()
    return caught.value


def made(**change: Any) -> Deployment:
    return admitted(envelope({**GOOD, **change}))


@pytest.mark.parametrize("case", ENVELOPES["cases"], ids=lambda case: case["name"])
def test_the_golden_envelopes(case: dict[str, Any]) -> None:
    """What the plane's own signer wrote is admitted, or refused with the code that it was broken
    for.
    """
    ring = Ring(PLACE, chain.TLS, 1, None, tuple(map(Key.parse, ENVELOPES["keys"])), (), None)
    highest = Highest(PLACE, ENVELOPES["context"]["highest_sequence"], "0" * 64)
    raw = json.dumps(case["envelope"]).encode()
    if case["verdict"] == "ok":
        assert admit(raw, ring=ring, place=PLACE, highest=highest, now=NOW).name == "dep_golden-7"
    elif case["verdict"] == "not_yet_valid":
        with pytest.raises(Untimely, match="in the future"):
            admit(raw, ring=ring, place=PLACE, highest=highest, now=NOW)
    else:
        assert (
            refused(lambda: admit(raw, ring=ring, place=PLACE, highest=highest, now=NOW)).code
            == case["verdict"]
        )


def test_an_admitted_deployment_says_what_was_signed() -> None:
    """Every member of the payload, and the hash of its bytes."""
    raw = signing.canonical(GOOD)
    found = admitted(envelope(raw))
    assert found.place == PLACE
    assert (found.bundle.sha256, found.bundle.size) == (
        GOOD["bundle"]["sha256"],
        GOOD["bundle"]["size"],
    )
    for name in (
        "environment_posture",
        "deployment_id",
        "sequence",
        "spec_hash",
        "issued_at",
        "expires_at",
    ):
        assert getattr(found, name) == GOOD[name]
    assert found.payload_sha256 == hashlib.sha256(raw).hexdigest()
    assert made(expires_at=None, future_member=[1]).expires_at is None


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def bundle(**change: Any) -> dict[str, Any]:
    return {**GOOD, "bundle": {**GOOD["bundle"], **change}}


HOSTILE = [
    ("unknown_key", envelope(GOOD, by=RETIRED)),
    ("unknown_key", envelope(GOOD, by=ENDED)),
    ("unknown_key", envelope(GOOD, by=OTHER)),
    ("bad_signature", envelope(GOOD, by=SigningKey("kid-1", OTHER.private))),
    ("wrong_type", envelope(GOOD, kind=signing.KEY_SET_TYPE)),
    ("malformed", b""),
    ("malformed", envelope(b"")),
    ("malformed", envelope(b"null")),
    ("malformed", envelope(b'{"v":1,"v":1}')),
    ("malformed", envelope(b"\xff")),
    ("malformed", envelope(signing.canonical(GOOD) + b"{}")),
    ("malformed", envelope(b'{"v":' + b"1" * 2000 + b"}")),
    *(
        ("unsupported_version", envelope({**GOOD, "v": v}))
        for v in (0, 2, True, 1.0, "1", None, [1])
    ),
    ("unsupported_version", envelope(without("v"))),
    *(("malformed", envelope(without(name))) for name in sorted(set(GOOD) - {"v", "expires_at"})),
    *(
        ("malformed", envelope({**GOOD, "sequence": s}))
        for s in (-1, 2**53, True, 7.0, "7", None, [7])
    ),
    *(
        ("malformed", envelope({**GOOD, "deployment_id": i}))
        for i in ("", ".x", "a/b", "a\n", "a" * 129, "é", 7, "..")
    ),
    *(("malformed", envelope({**GOOD, "org_id": i})) for i in ("", "../x", None, 1)),
    *(
        ("malformed", envelope({**GOOD, "environment_posture": p}))
        for p in ("", "production", "DEV", None, [], 1)
    ),
    *(
        ("malformed", envelope({**GOOD, "spec_hash": h}))
        for h in (
            "",
            "sha256:",
            "sha256:" + "A" * 64,
            "0" * 64,
            "sha512:" + "0" * 64,
            "sha256:" + "0" * 64 + "\n",
            1,
        )
    ),
    *(
        ("malformed", envelope(bundle(sha256=h)))
        for h in ("0" * 63, "0" * 65, "G" * 64, "A" * 64, None, "0" * 64 + "\n")
    ),
    *(
        ("malformed", envelope(bundle(size=s)))
        for s in (0, -1, True, 1.5, "1", None, (16 << 30) + 1)
    ),
    ("malformed", envelope({**GOOD, "bundle": [1]})),
    *(
        ("malformed", envelope({**GOOD, "issued_at": d}))
        for d in ("", "now", 1, None, "2026-13-01T00:00:00Z")
    ),
    *(("malformed", envelope({**GOOD, "expires_at": d})) for d in ("", "never", 1, False)),
    ("wrong_environment", envelope({**GOOD, "org_id": "org_2"})),
    ("wrong_environment", envelope({**GOOD, "environment_id": "ENV_1"})),
    ("expired", envelope({**GOOD, "expires_at": "2026-06-01T12:00:00Z"})),
    (
        "expired",
        envelope(
            {**GOOD, "expires_at": "2020-01-01T00:00:00Z", "issued_at": "2030-01-01T00:00:00Z"}
        ),
    ),
]


@pytest.mark.parametrize(("code", "raw"), HOSTILE)
def test_what_is_refused_has_its_code(code: str, raw: bytes) -> None:
    """A retired or ended key is as unknown as a stranger's; strict shapes; a sentence of one line
    for people.
    """
    error = refused(lambda: admitted(raw))
    assert error.code == code
    assert str(error).isprintable()


@pytest.mark.parametrize(
    "issued_at", ["2026-06-01T12:05:00Z", "2020-01-01T00:00:00+02:00", "2026-06-01T12:00:00.5Z"]
)
def test_what_is_in_time_is_admitted(issued_at: str) -> None:
    """Five minutes ahead is still now, and an old envelope has no end but its own."""
    assert made(issued_at=issued_at, expires_at="2026-06-01T12:00:01Z").issued_at == issued_at


@pytest.mark.parametrize(
    ("issued_at", "due"),
    [
        ("2026-06-01T12:05:01Z", "2026-06-01T12:00:01Z"),
        ("2026-06-01T12:05:00.25Z", "2026-06-01T12:00:01Z"),
        ("2026-06-02T14:00:00+02:00", "2026-06-02T11:55:00Z"),
    ],
)
def test_what_is_issued_ahead_waits_until_it_is_due(issued_at: str, due: str) -> None:
    """A verdict that time changes is none on the content: at `due` it is admitted."""
    raw = envelope({**GOOD, "issued_at": issued_at})
    with pytest.raises(Untimely) as caught:
        admitted(raw)
    assert (caught.value.code, caught.value.due) == ("not_yet_valid", due)
    assert admitted(raw, now=from_rfc3339(due)).name == "dep_golden-7"


def test_sequences_only_grow_and_never_fork() -> None:
    """Lower: rolled back. Equal: the same bytes are known, other bytes are an alarm. An old id
    under a higher one is fine.
    """
    found = made()
    for sequence, sha256, code in [
        (8, found.payload_sha256, "rolled_back_sequence"),
        (7, "0" * 64, "equivocation"),
    ]:
        error = refused(lambda: admitted(envelope(GOOD), highest=Highest(PLACE, sequence, sha256)))  # noqa: B023
        assert error.code == code
        assert isinstance(error, Inadmissible) and error.deployment == found
    assert admitted(envelope(GOOD), highest=Highest(PLACE, 7, found.payload_sha256)) == found
    assert admitted(envelope(GOOD), highest=Highest(PLACE, 6, found.payload_sha256)) == found


def test_the_same_claims_in_other_bytes_are_an_equivocation() -> None:
    """What is compared is what was signed, not what a parser makes of it."""
    spaced = json.dumps(GOOD, sort_keys=True, indent=1).encode()
    error = refused(
        lambda: admitted(envelope(spaced), highest=Highest(PLACE, 7, made().payload_sha256))
    )
    assert error.code == "equivocation"


def test_without_a_trusted_clock_a_good_deployment_waits() -> None:
    """It is not refused; but what is wrong in itself is refused at once, and an end of a key is not
    judged.
    """
    for payload, by in [
        (GOOD, SIGNER),
        ({**GOOD, "expires_at": "2020-01-01T00:00:00Z"}, SIGNER),
        (GOOD, ENDED),
    ]:
        with pytest.raises(Untimely) as caught:
            admitted(envelope(payload, by=by), now=None)
        assert caught.value.deployment.name == "dep_golden-7"
    for code, raw in HOSTILE:
        if code != "expired" and raw != envelope(GOOD, by=ENDED):
            assert refused(lambda: admitted(raw, now=None)).code == code  # noqa: B023
    error = refused(lambda: admitted(envelope(GOOD), now=None, highest=Highest(PLACE, 8, "")))
    assert error.code == "rolled_back_sequence"


def test_no_two_deployments_share_a_directory() -> None:
    """The sequence follows the last dash, and has only digits."""
    names = {
        made(deployment_id=i, sequence=s).name
        for i, s in [("a", 12), ("a-1", 2), ("a-1", 12), ("a", 2)]
    }
    assert names == {"a-12", "a-1-2", "a-1-12", "a-2"}


# -- approvals

PROD = made(environment_posture="prod", spec_hash=APPROVALS["spec_hash"])
CLAIMS = spoil.claims_for(
    ("org_1", "prj_1", "env_1"), "prod", APPROVALS["spec_hash"], "kid-1", now=vectors.NOW
)


def approval(by: SigningKey = SIGNER, **change: Any) -> bytes:
    return signing.approval({**CLAIMS, "kid": by.kid, **change}, by).encode()


@pytest.mark.parametrize("case", APPROVALS["cases"], ids=lambda case: case["name"])
def test_the_golden_approvals(case: dict[str, Any]) -> None:
    """The seven refusals, and what is in order."""
    ring = Ring(PLACE, chain.TLS, 1, None, tuple(map(Key.parse, APPROVALS["keys"])), (), None)
    raw = case["credential"].encode()
    if case["verdict"] == "ok":
        approve(raw, PROD, ring=ring, now=NOW)
    else:
        assert refused(lambda: approve(raw, PROD, ring=ring, now=NOW)).code == case["verdict"]


@pytest.mark.parametrize(
    ("code", "raw"),
    [
        ("approval_missing", None),
        ("approval_undecodable", b""),
        ("approval_signature", approval(OTHER)),
        ("approval_environment", approval(org_id="org_2")),
        ("approval_environment", approval(project_id="prj_2")),
        ("approval_environment", approval(environment_posture="staging")),
        ("approval_expired", approval(expires_at="2026-06-01T12:00:00Z")),
        ("approval_capability", approval(capabilities=["Deploy", "deploy "])),
        # The order is fixed: who asks twice is told the same.
        (
            "approval_spec_hash",
            approval(spec_hash="x", org_id="org_2", expires_at="2020-01-01T00:00:00Z"),
        ),
        (
            "approval_environment",
            approval(org_id="org_2", expires_at="2020-01-01T00:00:00Z", capabilities=[]),
        ),
        ("approval_expired", approval(expires_at="2020-01-01T00:00:00Z", capabilities=[])),
    ],
)
def test_approvals_that_are_refused(code: str, raw: bytes | None) -> None:
    """Each by its own code, and the deployment is named."""
    error = refused(lambda: approve(raw, PROD, ring=RING, now=NOW))
    assert error.code == code
    assert isinstance(error, Inadmissible) and error.deployment == PROD


def test_retired_and_ended_keys_still_verify_an_approval() -> None:
    """Until that approval's own expiry, if the key had not ended when it was issued."""
    for by in (SIGNER, RETIRED, ENDED):
        approve(approval(by, capabilities=["observe", "deploy"]), PROD, ring=RING, now=NOW)
    approve(approval(ENDED, issued_at="2026-06-01T12:00:00Z"), PROD, ring=RING, now=NOW)


@pytest.mark.parametrize(
    "raw",
    [
        approval(issued_at="2026-06-01T12:05:01Z"),
        approval(issued_at="2099-01-01T00:00:00Z", expires_at="2100-01-01T00:00:00Z"),
        approval(ENDED, issued_at="2026-06-01T12:00:01Z"),
        approval(ENDED, issued_at="2026-06-01T12:04:59Z"),
    ],
)
def test_an_approval_is_issued_before_now_and_before_its_keys_end(raw: bytes) -> None:
    """A key that ended signs nothing new, whatever date its holder writes into the future."""
    assert refused(lambda: approve(raw, PROD, ring=RING, now=NOW)).code == "approval_expired"


def test_only_staging_and_prod_need_an_approval() -> None:
    """In dev one that is there is not looked at."""
    approve(None, made(), ring=RING, now=NOW)
    approve(b"nonsense", made(), ring=RING, now=NOW)
    staging = made(environment_posture="staging")
    assert refused(lambda: approve(None, staging, ring=RING, now=NOW)).code == "approval_missing"


# -- whatever the bytes are

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ANYTHING = st.recursive(
    SCALARS | st.sampled_from(list(map(str, GOOD.values()))),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(max_size=3), inner)
    ),
    max_leaves=10,
)


@given(
    st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()) | ANYTHING.map(envelope)
    | st.dictionaries(st.sampled_from(sorted(GOOD)), ANYTHING).map(lambda change: envelope({**GOOD, **change})),
    st.none() | st.just(NOW),
    st.none() | st.builds(Highest, st.just(PLACE), st.integers(0, 9), st.just("")),
)  # fmt: skip
def test_any_bytes_are_admitted_or_refused(
    raw: bytes, now: float | None, highest: Highest | None
) -> None:
    """Signed or not: no exception but ours, and what is admitted is in this place and in order."""
    try:
        found = admitted(raw, now=now, highest=highest)
    except (Untrusted, Untimely):
        return
    assert found.place == PLACE and now is not None
    assert highest is None or found.sequence > highest.sequence
