"""openapi.yaml describes the nine requests, and what does not conform to it is seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.controlplane import ControlPlane, contract
from tests.controlplane.conformance import complaints
from tests.controlplane.plain import PlainHost


@pytest.fixture
def host(control_plane: ControlPlane) -> Iterator[PlainHost]:
    with PlainHost(control_plane) as one:
        yield one.enrolled()


def test_requests_that_do_not_conform_are_seen(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """The check that every test's end makes over the recorded requests is able to fail."""
    host.beat()
    assert complaints(control_plane.requests()) == []
    (enrollment, beat) = control_plane.requests()
    for change in (
        {"path": "/api/v2/agents", "operation": None},
        {"body": "{}"},
        {"query": "debug=1"},
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
