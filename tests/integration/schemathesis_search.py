"""What schemathesis searches: a test module for the pytest that test_controlplane_schemathesis starts."""

from __future__ import annotations

import hashlib
import itertools
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import load_all_checks

from tests.controlplane import ControlPlane, contract
from tests.controlplane.plain import PlainHost

SCHEMA = schemathesis.openapi.from_path(str(contract.DOCUMENT))
load_all_checks()


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


def credential(case: Any, host: PlainHost) -> dict[str, str]:
    """What the operation needs, a fresh token for each enrollment; nothing where that would repair
    a bad header.
    """
    kind = contract.operations()[case.operation.definition.raw["operationId"]].credential
    data = case.meta.phase.data
    if kind is None or (
        negative(case, "header") and getattr(data, "parameter", None) in (None, "Authorization")
    ):
        return {}
    secrets = {
        "enrollment_token": host.plane.mint,
        "operator_token": lambda: host.plane.operator_token,
        "runtime_key": lambda: host.api_key,
    }
    return {"Authorization": f"Bearer {secrets[kind]()}"}


def negative(case: Any, place: str) -> bool:
    """Whether that part of the case breaks the schema on purpose."""
    return any(
        at.value == place and info.mode.value == "negative"
        for at, info in case.meta.components.items()
    )


def make_real(case: Any, host: PlainHost, made: dict[str, Any], numbers: Iterator[int]) -> None:
    """Give a case that is meant to succeed what a generator cannot know: existing ids, digests, the
    next sequence.
    """
    if case.path_parameters and not negative(case, "path"):
        known = {
            **host.plane.where(),
            "agent_id": host.agent_id,
            "deployment_id": made["deployment_id"],
        }
        case.path_parameters = {name: known[name] for name in case.path_parameters}
    if case.headers and not negative(case, "header"):
        # The generator likes to repeat a key, and does not know how long the bundle is.
        real = {"Idempotency-Key": str(uuid.uuid4()), "Range": "bytes=1-"}
        case.headers.update({name: value for name, value in real.items() if name in case.headers})
    if negative(case, "body") or not isinstance(case.body, dict):
        return
    if case.operation.definition.raw["operationId"] == "heartbeat" and "sequence" in case.body:
        case.body = {**case.body, "sequence": next(numbers)}
    if "metadata" in case.body and isinstance(case.body.get("file"), (bytes, str)):
        data = (
            case.body["file"]
            if isinstance(case.body["file"], bytes)
            else case.body["file"].encode()
        )
        digest = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        case.body = {**case.body, "metadata": {**case.body["metadata"], **digest}}


def call(case: Any, host: PlainHost, session: requests.Session) -> None:
    """Send the case with a good credential and all of schemathesis's checks."""
    plane = host.plane
    made = plane.deploy()
    make_real(case, host, made, itertools.count(int(plane.agents()[0]["last_sequence"]) + 1))
    headers = credential(case, host)
    case.call_and_validate(
        base_url=plane.base_url, session=session, headers=headers, verify=session.verify
    )
    assert not [row for row in plane.violations() if row["rule"] == "plane_bug"]
    plane.clear_violations()


@pytest.mark.provokes_violations
@SCHEMA.parametrize()
@settings(
    max_examples=int(os.environ["EXAMPLES"]),
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_an_operation(case: Any, host: PlainHost, session: requests.Session) -> None:
    """Every status, media type, header and body is documented; nothing malformed is accepted,
    nothing good refused.
    """
    call(case, host, session)
