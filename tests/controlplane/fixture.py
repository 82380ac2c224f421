"""The pytest fixture `control_plane`: one server per worker, emptied for each test, strict at each
test's end.

A test fails when violations remain, or a recorded request of the client's does not validate against
openapi.yaml;
``@pytest.mark.provokes_violations`` opts a test out that breaks the contract on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controlplane.conformance import complaints
from tests.controlplane.process import ControlPlane


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "provokes_violations: breaks the contract on purpose; violations do not fail it"
    )


@pytest.fixture(scope="session")
def control_plane_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The server that the tests of this worker share; use `control_plane`."""
    with ControlPlane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


def _judge(plane: ControlPlane, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("provokes_violations"):
        return
    violations = plane.violations()
    assert not violations, (
        f"violations of the contract: {[(row['rule'], row['detail']) for row in violations]}"
    )
    wrong = complaints(plane.requests())
    assert not wrong, f"requests that openapi.yaml does not allow: {wrong}"


@pytest.fixture
def control_plane(
    control_plane_process: ControlPlane, request: pytest.FixtureRequest
) -> Iterator[ControlPlane]:
    """A running plane without agents, faults or history; it may be stopped, killed and restarted by
    the test.
    """
    plane = control_plane_process
    if not plane.running():
        plane.restart()
    plane.reset()
    yield plane
    if not plane.running():
        plane.restart()
    _judge(plane, request)


@pytest.fixture
def own_control_plane(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A plane of the test's own, not yet started: for late starts and other addresses."""
    plane = ControlPlane(tmp_path / "plane")
    yield plane
    try:
        if plane.running():
            _judge(plane, request)
    finally:
        plane.close()
