"""The golden vectors: signed with fixed keys at a fixed time, checked by both sides.

Each file says what it holds in `about`; each case has a `verdict`: "ok", or the refusal code of
contract 3. Ed25519 and canonical JSON are deterministic, so the files are the same whenever they
are written; only the packing of a bundle depends on the compressor, so bundles are compared by what
they hold.
"""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path
from typing import Any

from tests.controlplane import bundles, signing, spoil
from tests.controlplane.signing import SigningKey

NOW = datetime.datetime(2026, 6, 1, 12, 0, 0, tzinfo=datetime.timezone.utc)
PLACE = ("org_1", "prj_1", "env_1")
FILES = {"spec.kv": b"name = golden\n", "adapters/feed.conf": b"feed = 1\n"}
# Too large for a file that people read, or slow to check: the running plane serves them.
NOT_IN_VECTORS = ("size", "ratio", "entries")


def key(number: int) -> SigningKey:
    return SigningKey.from_seed(f"kid-{number}", bytes([number]) * 32)


def _context(posture: str = "dev") -> dict[str, Any]:
    return {
        "org_id": PLACE[0],
        "project_id": PLACE[1],
        "environment_id": PLACE[2],
        "environment_posture": posture,
        "now": spoil.stamp(NOW),
        "highest_sequence": 6,
    }


def _bundles() -> dict[str, Any]:
    cases: list[dict[str, Any]] = [
        {"name": "good", "verdict": "ok", "bundle": bundles.build(FILES)}
    ]
    for verdict, variants in (
        ("malformed_bundle", bundles.MALFORMED),
        ("unsafe_archive", bundles.UNSAFE),
    ):
        cases += [
            {"name": name, "verdict": verdict, "bundle": make(FILES)}
            for name, make in variants.items()
            if name not in NOT_IN_VECTORS
        ]
    for case in cases:
        case["bundle"] = base64.b64encode(case["bundle"]).decode()
    files = {name: base64.b64encode(data).decode() for name, data in FILES.items()}
    about = "gzip'd tars in base64; `files` is what the good one unpacks to"
    return {"about": about, "files": files, "cases": cases}


def _envelopes() -> dict[str, Any]:
    cases = []
    wanted = [(None, None)] + [
        (code, variant)
        for code, variants in spoil.SPOILERS.items()
        for variant in variants
        if not code.startswith(
            ("approval_", "malformed_bundle", "unsafe_archive", "bundle_", "spec_hash")
        )
    ]
    for code, variant in wanted:
        made = _make(code, variant)
        cases.append(
            {
                "name": f"{code}-{variant}" if code else "good",
                "verdict": code or "ok",
                "envelope": made.envelope,
            }
        )
    older = spoil.make(PLACE, FILES, key=key(1), deployment_id="dep_golden", sequence=5, now=NOW)
    cases.append(
        {
            "name": "rolled_back_sequence",
            "verdict": "rolled_back_sequence",
            "envelope": older.envelope,
        }
    )
    second = _make(None, None).envelope
    both = {
        **second,
        "signatures": [*_make("unknown_key", None).envelope["signatures"], *second["signatures"]],
    }
    cases.append({"name": "good-beside-an-unknown-signature", "verdict": "ok", "envelope": both})
    about = (
        "deployment envelopes (DSSE v1), judged by `keys` in `context`; the bundle is not looked at"
    )
    return {
        "about": about,
        "context": _context(),
        "keys": [signing.key_entry(key(1))],
        "cases": cases,
    }


def _make(code: str | None, variant: str | None) -> spoil.Made:
    return spoil.make(
        PLACE,
        {"spec.kv": FILES["spec.kv"]},
        key=key(1),
        deployment_id="dep_golden",
        sequence=7,
        now=NOW,
        expires_in_s=86400.0,
        broken=code,
        variant=variant,
    )


def _approvals() -> dict[str, Any]:
    spec = FILES["spec.kv"]
    spec_hash = spoil.spec_hash_of(spec)
    wanted = [(None, None)] + [
        (code, variant)
        for code, variants in spoil.SPOILERS.items()
        if code.startswith("approval_") and code != "approval_missing"
        for variant in variants
    ]
    cases = []
    for code, variant in wanted:
        at, change = spoil.spoiler(code, variant)
        approver = change(key(1)) if at == "approver" else key(1)
        claims = spoil.claims_for(PLACE, "prod", spec_hash, approver.kid, now=NOW)
        text = signing.approval(change(claims) if at == "claims" else claims, approver)
        text = change(text) if at == "approval" else text
        cases.append(
            {
                "name": f"{code}-{variant}" if code else "good",
                "verdict": code or "ok",
                "credential": text,
            }
        )
    retired = signing.approval(
        spoil.claims_for(PLACE, "prod", spec_hash, key(2).kid, now=NOW), key(2)
    )
    cases.append({"name": "good-by-a-retired-key", "verdict": "ok", "credential": retired})
    about = (
        "approval credentials v1 for a deployment with `spec_hash` in `context`, judged by `keys`"
    )
    keys = [signing.key_entry(key(1)), signing.key_entry(key(2), status="retired")]
    return {
        "about": about,
        "context": _context("prod"),
        "spec_hash": spec_hash,
        "keys": keys,
        "cases": cases,
    }


def _key_sets() -> dict[str, Any]:
    def entries(**statuses: str) -> list[dict[str, Any]]:
        return [
            signing.key_entry(key(int(name[1:])), status=status)
            for name, status in statuses.items()
        ]

    one = signing.key_set(1, entries(k1="active"), [key(1)])
    two = signing.key_set(2, entries(k1="active", k2="active"), [key(1)])
    three = signing.key_set(3, entries(k1="retired", k2="active"), [key(2)])
    wide = signing.key_set(3, entries(k1="active", k2="active", k3="active"), [key(1)])
    four = signing.key_set(4, entries(k1="retired", k2="retired", k3="active"), [key(2)])
    by_retired = signing.key_set(4, entries(k2="active", k3="active"), [key(1)])
    other_two = signing.key_set(2, entries(k1="active", k3="active"), [key(1)])
    forged = {**two, "signatures": [{**two["signatures"][0], "sig": one["signatures"][0]["sig"]}]}
    typed = signing.envelope(signing.DEPLOYMENT_TYPE, base64.b64decode(two["payload"]), [key(1)])
    cases = [
        ("first", [one], ["accepted"]),
        ("rotation-with-overlap-then-retirement", [one, two, three, four], ["accepted"] * 4),
        ("same-version-same-bytes", [one, two, two], ["accepted", "accepted", "unchanged"]),
        (
            "same-version-other-bytes",
            [one, two, other_two],
            ["accepted", "accepted", "equivocation"],
        ),
        (
            "lower-version",
            [one, two, wide, two],
            ["accepted", "accepted", "accepted", "rolled_back"],
        ),
        (
            "signed-by-a-retired-key",
            [one, two, three, by_retired],
            ["accepted", "accepted", "accepted", "broken_chain"],
        ),
        (
            "signed-by-a-stranger",
            [one, signing.key_set(2, entries(k1="active"), [key(9)])],
            ["accepted", "broken_chain"],
        ),
        (
            "signed-by-a-key-it-brings-itself",
            [one, signing.key_set(2, entries(k9="active"), [key(9)])],
            ["accepted", "broken_chain"],
        ),
        ("bad-signature", [one, forged], ["accepted", "broken_chain"]),
        ("wrong-type", [one, typed], ["accepted", "wrong_type"]),
        (
            "first-not-self-consistent",
            [signing.key_set(1, entries(k1="active"), [key(2)])],
            ["broken_chain"],
        ),
        (
            "first-signed-by-its-retired-key",
            [signing.key_set(1, entries(k1="retired", k2="active"), [key(1)])],
            ["broken_chain"],
        ),
    ]
    about = "key sets offered one after the other to a host that knows none; `verdicts` has one word for each"
    return {
        "about": about,
        "cases": [{"name": n, "key_sets": sets, "verdicts": words} for n, sets, words in cases],
    }


def generate() -> dict[str, dict[str, Any]]:
    """Every vector file by its name."""
    return {
        "envelopes.json": _envelopes(),
        "approvals.json": _approvals(),
        "keysets.json": _key_sets(),
        "bundles.json": _bundles(),
    }


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in generate().items():
        (directory / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
