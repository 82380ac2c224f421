"""Key sets, deployments, approvals and golden vectors of the reference control plane, each refusal
shown on the wire.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.controlplane import ControlPlane, PlaneError, bundles, examine, keysets, spoil, vectors
from tests.controlplane.plain import PlainHost

VECTORS = Path(__file__).parents[1] / "vectors"
FILES = {"spec.kv": b"name = wire\n", "adapters/feed.conf": b"feed = 1\n"}


@pytest.fixture
def host(control_plane: ControlPlane) -> Iterator[PlainHost]:
    with PlainHost(control_plane) as one:
        yield one.enrolled()


def key_sets(host: PlainHost, since: int = 0) -> list[dict[str, Any]]:
    reply = host.ask("GET", "signing-keys", params={"since": since})
    assert reply.status_code == 200
    return list(reply.json()["key_sets"])


def walk(envelopes: list[dict[str, Any]], last: dict[str, Any] | None = None) -> dict[str, Any]:
    for envelope in envelopes:
        last = examine.key_set(envelope, last)
    assert last is not None
    return last


def verdict(host: PlainHost, keys: list[dict[str, Any]], last: dict[str, Any] | None = None) -> str:
    """What a host that fetches envelope and bundle would have to say."""
    envelope = host.ask("GET", "deployments/latest").json()
    now = datetime.datetime.now(datetime.timezone.utc)
    try:
        payload = examine.deployment(envelope, keys, host.plane.where(), now=now, last=last)
        data = host.ask("GET", f"deployments/{payload['deployment_id']}/bundle").content
        files = examine.bundle(data, payload)
        cred = files["approval.cred"].decode() if "approval.cred" in files else None
        examine.approval(cred, keys, payload, now=now)
    except examine.Refused as refused:
        return str(refused.args[0])
    return "ok"


@pytest.mark.parametrize("posture", ["dev", "staging", "prod"])
def test_a_good_deployment_is_good(
    control_plane: ControlPlane, host: PlainHost, posture: str
) -> None:
    """Envelope, bundle and (where needed) approval hold, and the bundle has the files."""
    control_plane.environment(posture=posture)
    made = control_plane.deploy(FILES)
    keys = walk(key_sets(host))["keys"]
    assert verdict(host, keys) == "ok"
    data = host.ask("GET", f"deployments/{made['deployment_id']}/bundle").content
    files = examine.bundle(
        data,
        {
            "bundle": {"size": made["bundle_size"], "sha256": made["bundle_sha256"]},
            "spec_hash": made["spec_hash"],
        },
    )
    assert {name: files[name] for name in FILES} == FILES
    assert ("approval.cred" in files) == (posture != "dev")


@pytest.mark.parametrize(
    ("code", "variant"),
    [
        (code, variant)
        for code, variants in spoil.SPOILERS.items()
        for variant in variants
        if variant != "size"
    ],
)
def test_each_refusal_can_be_provoked(
    control_plane: ControlPlane, host: PlainHost, code: str, variant: str
) -> None:
    """A deployment broken by the switch deserves exactly that refusal, and no other."""
    control_plane.deploy(FILES, broken=code, variant=variant)
    assert verdict(host, walk(key_sets(host))["keys"]) == code


@pytest.mark.slow
def test_over_four_gib_can_be_provoked(control_plane: ControlPlane, host: PlainHost) -> None:
    """A bundle of a few megabytes that unpacks to more than 4 GiB."""
    control_plane.deploy(FILES, broken="unsafe_archive", variant="size")
    assert verdict(host, walk(key_sets(host))["keys"]) == "unsafe_archive"


def test_a_sequence_may_go_back_or_stand_for_something_else(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """rolled_back_sequence and equivocation, against the deployment before."""
    keys = walk(key_sets(host))["keys"]
    now = datetime.datetime.now(datetime.timezone.utc)
    for code in spoil.HISTORY:
        control_plane.deploy(FILES)
        envelope = host.ask("GET", "deployments/latest").json()
        last = examine.deployment(envelope, keys, control_plane.where(), now=now)
        assert verdict(host, keys, last) == "ok"
        control_plane.deploy(FILES, broken=code)
        assert verdict(host, keys, last) == code


def test_a_rollback_is_a_new_envelope_with_an_old_id(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """The plane may order an old deployment again, under a higher sequence."""
    first = control_plane.deploy(FILES)
    control_plane.deploy({"spec.kv": b"name = newer\n"})
    again = control_plane.deploy(FILES, deployment_id=first["deployment_id"])
    assert (again["sequence"], again["spec_hash"], again["bundle_sha256"]) == (
        3,
        first["spec_hash"],
        first["bundle_sha256"],
    )
    assert verdict(host, walk(key_sets(host))["keys"]) == "ok"


def test_deployments_for_one_agent_and_for_all(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """One that is for one agent is seen by it alone; another agent's bundle is not found."""
    with PlainHost(control_plane) as other:
        other.enrolled()
        made = control_plane.deploy(agent_id=host.agent_id)
        assert host.ask("GET", "deployments/latest").status_code == 200
        assert other.ask("GET", "deployments/latest").status_code == 204
        assert other.ask("GET", f"deployments/{made['deployment_id']}/bundle").status_code == 404
        control_plane.configure(no_deployment_answer=404)
        assert other.ask("GET", "deployments/latest").json()["code"] == "no_deployment"


def test_latest_has_a_strong_tag(control_plane: ControlPlane, host: PlainHost) -> None:
    """The tag answers 304 until something else is assigned."""
    control_plane.deploy()
    tag = host.ask("GET", "deployments/latest").headers["etag"]
    assert not tag.startswith("W/")
    unchanged = host.ask("GET", "deployments/latest", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    control_plane.deploy()
    assert host.ask("GET", "deployments/latest", headers={"If-None-Match": tag}).status_code == 200


def test_five_rotations_make_a_chain(control_plane: ControlPlane, host: PlainHost) -> None:
    """A host that slept through five rotations walks from its set to the newest; `since` cuts what
    it has.
    """
    first = walk(key_sets(host))
    for number in range(5):
        control_plane.rotate(retire=["old"] if number % 2 else None)
    newer = key_sets(host, since=1)
    assert len(newer) == 5
    last = walk(newer, first)
    assert last["version"] == 6
    assert [key["status"] for key in last["keys"]].count("active") == 2
    control_plane.deploy(FILES)
    assert verdict(host, last["keys"]) == "ok"
    assert key_sets(host, since=6) == []


def test_rotation_overlaps_retires_and_ends(control_plane: ControlPlane, host: PlainHost) -> None:
    """Overlap keeps the old key active; retire ends it; not_after travels; a retired key still
    signs when told to.
    """
    old = walk(key_sets(host))["keys"][0]["kid"]
    overlap = control_plane.rotate(not_after="2027-01-01T00:00:00Z")
    assert overlap["active"][0] == old
    assert walk(key_sets(host))["keys"][1]["not_after"] == "2027-01-01T00:00:00Z"
    retired = control_plane.rotate(add=False, retire=[old])
    assert (retired["retired"], len(retired["active"])) == ([old], 1)
    control_plane.deploy(FILES, kid=old)
    assert verdict(host, walk(key_sets(host))["keys"]) == "unknown_key"


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("unrelated_signer", "broken_chain"),
        ("bad_signature", "broken_chain"),
        ("equivocation", "equivocation"),
        ("lower_version", "rolled_back"),
        ("wrong_type", "wrong_type"),
        ("malformed", "malformed"),
    ],
)
def test_key_sets_can_be_broken(
    control_plane: ControlPlane, host: PlainHost, broken: str, expected: str
) -> None:
    """Each rule of contract 2.5 has its switch; a host that is up to date gets to see the broken
    set.
    """
    control_plane.rotate()
    known = walk(key_sets(host))
    control_plane.rotate(broken=broken)
    with pytest.raises(examine.Refused, match=expected):
        walk(key_sets(host, since=known["version"]), known)


def test_a_version_can_be_missing(control_plane: ControlPlane, host: PlainHost) -> None:
    """gap: the versions are not consecutive."""
    control_plane.rotate(broken="gap")
    versions = [json.loads(base64.b64decode(one["payload"]))["version"] for one in key_sets(host)]
    assert versions == [1, 3]
    assert "gap" in keysets.BREAKS


def test_approvals_by_hand(control_plane: ControlPlane, host: PlainHost) -> None:
    """`approve` makes a credential that can be put into a bundle, also one that says something
    else.
    """
    good = control_plane.approve(FILES["spec.kv"])
    control_plane.deploy({**FILES, "approval.cred": good.encode()}, posture="prod")
    keys = walk(key_sets(host))["keys"]
    assert verdict(host, keys) == "ok"
    other = control_plane.approve(FILES["spec.kv"], capabilities=["observe"])
    control_plane.deploy({**FILES, "approval.cred": other.encode()}, posture="prod")
    assert verdict(host, keys) == "approval_capability"


def test_a_retired_key_still_verifies_an_approval(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """Contract 3: until that approval's own expiry."""
    good = control_plane.approve(FILES["spec.kv"])
    control_plane.rotate(retire=["old"])
    control_plane.deploy({**FILES, "approval.cred": good.encode()}, posture="staging")
    assert (
        verdict(host, walk(key_sets(host))["keys"]) == "approval_environment"
    )  # it was given for prod
    control_plane.deploy({**FILES, "approval.cred": good.encode()}, posture="prod")
    assert verdict(host, walk(key_sets(host))["keys"]) == "ok"


def test_nonsense_is_refused(control_plane: ControlPlane) -> None:
    """A typing error in a test must not become a deployment in order."""
    for words in (
        {"broken": "nonsense"},
        {"broken": "expired", "variant": "x"},
        {"broken": "equivocation"},
        {"kid": "x"},
    ):
        with pytest.raises(PlaneError):
            control_plane.deploy(**words)  # type: ignore[arg-type]
    with pytest.raises(PlaneError):
        control_plane.rotate(broken="nonsense")


def test_bundles_are_reproducible() -> None:
    """The same files in another order are the same bytes."""
    assert bundles.build(FILES) == bundles.build(dict(reversed(list(FILES.items()))))


def test_the_golden_vectors_are_what_the_signing_code_writes() -> None:
    """Nobody edits a vector by hand, and no change of the signing code goes unseen."""

    def comparable(name: str, content: Any) -> Any:
        if name != "bundles.json":
            return content
        # How well a compressor packs may differ between its versions; the tar within may not.
        cases = [
            {**case, "bundle": inner(base64.b64decode(case["bundle"]))} for case in content["cases"]
        ]
        return {**content, "cases": cases}

    def inner(data: bytes) -> bytes:
        try:
            return gzip.decompress(data)
        except (OSError, EOFError):
            return data[:10]

    for name, content in vectors.generate().items():
        stored = json.loads((VECTORS / name).read_text())
        assert comparable(name, stored) == comparable(name, content), (
            f"{name}: python -m tests.controlplane vectors"
        )


def test_the_examiner_agrees_with_the_envelope_vectors() -> None:
    """The verdicts are those of the contract, as read a second time."""
    content = json.loads((VECTORS / "envelopes.json").read_text())
    keys, context = content["keys"], content["context"]
    last = {"sequence": context["highest_sequence"]}
    for case in content["cases"]:
        said = told(examine.deployment, case["envelope"], keys, context, now=vectors.NOW, last=last)
        assert said == case["verdict"], case["name"]


def test_the_examiner_agrees_with_the_approval_vectors() -> None:
    """Likewise for approvals, a retired key's among them."""
    content = json.loads((VECTORS / "approvals.json").read_text())
    payload = {**content["context"], "spec_hash": content["spec_hash"]}
    for case in content["cases"]:
        said = told(examine.approval, case["credential"], content["keys"], payload, now=vectors.NOW)
        assert said == case["verdict"], case["name"]


def test_the_examiner_agrees_with_the_bundle_vectors() -> None:
    """Likewise for bundles, whose digest and size are taken as right."""
    content = json.loads((VECTORS / "bundles.json").read_text())
    spec_hash = spoil.spec_hash_of(base64.b64decode(content["files"]["spec.kv"]))
    for case in content["cases"]:
        data = base64.b64decode(case["bundle"])
        claims = {
            "bundle": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()},
            "spec_hash": spec_hash,
        }
        assert told(examine.bundle, data, claims) == case["verdict"], case["name"]


def test_the_examiner_agrees_with_the_key_set_vectors() -> None:
    """Each set offered gets the word that stands beside it."""
    for case in json.loads((VECTORS / "keysets.json").read_text())["cases"]:
        last: dict[str, Any] | None = None
        said = []
        for envelope in case["key_sets"]:
            try:
                found = examine.key_set(envelope, last)
            except examine.Refused as refused:
                said.append(refused.args[0])
                continue
            said.append("unchanged" if found == last else "accepted")
            last = found
        assert said == case["verdicts"], case["name"]


def told(check: Callable[..., Any], *arguments: Any, **words: Any) -> str:
    """The refusal code of a check, or ok."""
    try:
        check(*arguments, **words)
    except examine.Refused as refused:
        return str(refused.args[0])
    return "ok"
