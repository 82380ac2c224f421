"""The agent on networks as they are: proxies, IPv6 alone, middleboxes that forget, new addresses,
balancers that hang up.
"""

from __future__ import annotations

import base64
import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from tests.controlplane import ControlPlane
from tests.integration.networks import ConnectProxy, NamespacedHost, Network, lacking

pytestmark = [
    pytest.mark.minutes,
    pytest.mark.skipif(bool(lacking()), reason=lacking() or ""),
]
PERIOD_S = 5
USER, PASSWORD = "edge user", "p@ss:w/rd"
QUOTED = "edge%20user:p%40ss%3Aw%2Frd"
# Nothing listens there.
DEAD_PROXY = "http://198.18.255.254:9"


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@contextlib.contextmanager
def beating(
    network: Network, directory: Path, *, address: str, env: dict[str, str] | None = None
) -> Iterator[NamespacedHost]:
    """A host that enrolled and beats in the namespace, against a plane at `address`; two beats have
    arrived.
    """
    with ControlPlane(directory / "plane", host=address) as plane:
        host = NamespacedHost(directory / "root", plane, network)
        host.defaults(heartbeat_interval_s=PERIOD_S)
        host.token(host.mint())
        done = host.run("--give-up-after", "30", env=env or {})
        assert done.code == 0, done
        with open(directory / "log", "w") as log:
            agent = host.start(
                "byteor-agent", "run", env=env or {}, stdout=subprocess.DEVNULL, stderr=log
            )
            try:
                wait(host, lambda: beats(host) >= 2)
                yield host
            finally:
                agent.terminate()
                agent.wait(60)
        assert plane.violations() == []


def beats(host: NamespacedHost) -> int:
    return sum(int(agent["heartbeats"]) for agent in host.plane.agents())


def wait(host: NamespacedHost, true: Callable[[], bool], *, limit_s: float = 60.0) -> int:
    """Until `true()`; the most failures in a row that the heartbeat had meanwhile."""
    until, failures = time.monotonic() + limit_s, 0
    while not true():
        assert time.monotonic() < until, host.heartbeat()
        failures = max(failures, host.heartbeat().get("failures", 0))
        time.sleep(0.1)
    return failures


def test_a_proxy_with_credentials_is_the_only_way(network: Network, tmp_path: Path) -> None:
    """Enrollment and beats go through the proxy that the environment names, with a password that
    needs quoting.
    """
    proxy = ConnectProxy(
        network.plane, credentials=base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    )
    env = {"HTTPS_PROXY": f"http://{QUOTED}@{network.plane}:{proxy.port}"}
    try:
        with beating(network, tmp_path, address=network.hidden, env=env) as host:
            assert wait(host, lambda: beats(host) >= 3) == 0
    finally:
        proxy.close()
    assert len(proxy.asked) >= 2 and all(
        head.startswith(b"CONNECT " + network.hidden.encode()) for head in proxy.asked
    )
    # One connection for first boot, one for its preflight, one kept alive for all beats, one for
    # deployments, one for keys.
    assert len(proxy.asked) <= 5
    assert not any(b"Bearer" in head for head in proxy.asked)
    assert PASSWORD not in (tmp_path / "log").read_text()


def test_no_proxy_goes_past_a_proxy_that_is_dead(network: Network, tmp_path: Path) -> None:
    """What NO_PROXY covers is reached directly."""
    env = {"HTTPS_PROXY": DEAD_PROXY, "NO_PROXY": f".example,{network.plane}"}
    with beating(network, tmp_path, address=network.plane, env=env) as host:
        assert wait(host, lambda: beats(host) >= 3) == 0


def test_ipv6_alone_suffices(network: Network, tmp_path: Path) -> None:
    """A host without any IPv4 address enrolls and beats."""
    network.without_ipv4()
    with beating(network, tmp_path, address=network.plane6) as host:
        assert wait(host, lambda: beats(host) >= 3) == 0


def test_a_middlebox_that_forgets_costs_one_beat(network: Network, tmp_path: Path) -> None:
    """A connection that swallows everything is given up after one beat, and the next makes a new
    one.
    """
    with beating(network, tmp_path, address=network.plane) as host:
        ports = network.connections()
        assert ports
        network.forget(ports)
        before = beats(host)
        assert wait(host, lambda: beats(host) >= before + 2) <= 1
        # The beats' own: the loop for deployments meets its own dead one when it asks next.
        assert set(ports) - set(network.connections())


def test_a_new_address_costs_one_beat(network: Network, tmp_path: Path) -> None:
    """The lease changed: the old connection can never be answered."""
    with beating(network, tmp_path, address=network.plane) as host:
        network.use(network.other_address)
        before = beats(host)
        assert wait(host, lambda: beats(host) >= before + 2) <= 1


def test_a_balancer_that_hangs_up_between_beats_costs_nothing(
    network: Network, tmp_path: Path
) -> None:
    """A connection that ended while it was idle is seen before it is used."""
    with beating(network, tmp_path, address=network.plane) as host:
        for _ in range(2):
            before = beats(host)
            host.plane.close_idle()
            assert wait(host, lambda count=before: beats(host) >= count + 1) == 0  # type: ignore[misc]


def test_a_plane_that_ends_and_comes_back_costs_one_beat(network: Network, tmp_path: Path) -> None:
    """A restart resets every connection: at most one beat meets nobody."""
    with beating(network, tmp_path, address=network.plane) as host:
        host.plane.kill()
        host.plane.start()
        before = beats(host)
        assert wait(host, lambda: beats(host) >= before + 2) <= 1
