"""What several integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.integration.answering import OPEN, Script, Server
from tests.integration.host import Host


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    """A scratch root that knows the control plane's address, not yet enrolled."""
    return Host(tmp_path / "root", control_plane)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Servers of the test's own, closed behind it."""
    servers: list[Server] = []

    def begin(script: Script, **keywords: Any) -> Server:
        servers.append(Server(script, **keywords))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No test leaves a connection behind."""
    yield
    while OPEN:
        OPEN.pop().close()
