"""openapi.yaml is true: schemathesis finds nothing against the running plane, and what does not conform is seen."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from typing import Any, Dict, Iterator

import pytest
import requests
from hypothesis import HealthCheck, Phase, settings

from tests.controlplane import ControlPlane, contract
from tests.controlplane.conformance import complaints
from tests.controlplane.plain import PlainHost

schemathesis = pytest.importorskip("schemathesis", "4.0", reason="schemathesis 4 needs Python 3.10")
from schemathesis.checks import load_all_checks  # noqa: E402

SCHEMA = schemathesis.openapi.from_path(str(contract.DOCUMENT))
EXAMPLES = 20


@pytest.fixture
def host(control_plane: ControlPlane) -> Iterator[PlainHost]:
    with PlainHost(control_plane) as one:
        yield one.enrolled()


@pytest.fixture
def session(control_plane: ControlPlane) -> Iterator[requests.Session]:
    with requests.Session() as one:
        one.verify, one.trust_env = str(control_plane.ca_path), False
        one.headers.clear()  # schemathesis would let them replace the headers that it generates
        yield one


def credential(plane: ControlPlane, host: PlainHost, operation: str) -> Dict[str, str]:
    """What the operation needs; a fresh token for each enrollment."""
    kind = contract.operations()[operation].credential
    if kind is None:
        return {}
    secrets = {
        "enrollment_token": plane.mint, "operator_token": lambda: plane.operator_token, "runtime_key": lambda: host.api_key,
    }
    return {"Authorization": f"Bearer {secrets[kind]()}"}


def make_real(case: Any, host: PlainHost, made: Dict[str, Any], numbers: Iterator[int]) -> None:
    """Give a case that is meant to succeed what a generator cannot know: existing ids, digests, the next sequence."""
    modes = {str(place): info.mode.value for place, info in case.meta.components.items()}
    if modes.get("path_parameters", modes.get("path")) != "negative" and case.path_parameters:
        known = {**host.plane.where(), "agent_id": host.agent_id, "deployment_id": made["deployment_id"]}
        case.path_parameters = {name: known[name] for name in case.path_parameters}
    if "Idempotency-Key" in (case.headers or {}) and modes.get("headers", modes.get("header")) != "negative":
        case.headers["Idempotency-Key"] = str(uuid.uuid4())  # the generator likes to repeat one
    if modes.get("body") == "negative" or not isinstance(case.body, dict):
        return
    if case.operation.definition.raw["operationId"] == "heartbeat" and "sequence" in case.body:
        case.body = {**case.body, "sequence": next(numbers)}
    if "metadata" in case.body and isinstance(case.body.get("file"), (bytes, str)):
        data = case.body["file"] if isinstance(case.body["file"], bytes) else case.body["file"].encode()
        digest = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        case.body = {**case.body, "metadata": {**case.body["metadata"], **digest}}


@pytest.mark.provokes_violations
@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_schemathesis_finds_nothing(
    case: Any, control_plane: ControlPlane, host: PlainHost, session: requests.Session
) -> None:
    """Every status, media type, header and body is documented; nothing malformed is accepted, nothing good refused."""
    load_all_checks()
    made = control_plane.deploy()
    make_real(case, host, made, itertools.count(int(control_plane.agents()[0]["last_sequence"]) + 1))
    headers = credential(control_plane, host, case.operation.definition.raw["operationId"])
    case.call_and_validate(base_url=control_plane.base_url, session=session, headers=headers, verify=session.verify)
    assert not [row for row in control_plane.violations() if row["rule"] == "plane_bug"]


def test_requests_that_do_not_conform_are_seen(control_plane: ControlPlane, host: PlainHost) -> None:
    """The check that every test's end makes over the recorded requests is able to fail."""
    host.beat()
    assert complaints(control_plane.requests()) == []
    (enrollment, beat) = control_plane.requests()
    for change in (
        {"path": "/api/v2/agents", "operation": None}, {"body": "{}"}, {"query": "debug=1"},
        {"headers": {**beat["headers"], "content-type": "text/plain"}},
    ):
        assert len(complaints([enrollment, {**beat, **change}])) == 1


@pytest.mark.parametrize("operation", list(contract.operations()))
def test_each_of_the_nine_requests_is_described(operation: str) -> None:
    """Name, method and path are the contract's."""
    found = contract.operations()[operation]
    path = found.template.format(
        org_id="o", project_id="p", environment_id="e", agent_id="a", deployment_id="d"
    )
    assert contract.which(found.method, path) is found
    assert len(contract.operations()) == 9
