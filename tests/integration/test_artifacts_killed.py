"""Artifacts that flow while agent and control plane are killed: each ends where it belongs, once."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time

import pytest

from firstboot.agent.artifacts import spool
from firstboot.exchange import wake
from tests.integration.artifacts import MIB, Artifacts, artifacts_host

host = artifacts_host


def storm(host: Artifacts, *, kills: int, artifacts: int, largest: int) -> None:
    """Artifacts come in while agent and plane are killed at random; then all must be where it
    belongs, once.
    """
    seed = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"TEST_SEED={seed}")
    chance = random.Random(seed)
    limit = largest * 3 // 4
    host.plane.configure(artifact_limit_bytes=limit)
    host.plane.fault(
        "artifacts", "delay", seconds=0.05, times=None
    )  # else most are through before the next kill
    sizes = [int(1024 * (largest / 1024) ** chance.random()) for _ in range(artifacts)]
    given: dict[str, int] = {}
    host.up()
    batch, killed, amid = 1 + artifacts // kills, 0, 0
    while sizes or killed < kills:
        for _ in range(min(len(sizes), batch)):
            data = chance.randbytes(sizes[-1])
            try:
                host.put(data)
            except spool.Full:
                break
            given[hashlib.sha256(data).hexdigest()] = sizes.pop()
            if chance.random() < 0.1:
                host.put(data)  # once more
        host.plane.wait_for(lambda: wake.wake(host.layout))
        _flow(host, chance.uniform(0.0, 0.2))
        if killed == kills:
            continue
        killed, amid = killed + 1, amid + bool(host.waiting())
        if chance.random() < 0.6:
            host.down(signal.SIGKILL)
            host.up()
        else:
            host.plane.kill()
            host.plane.restart()
    # A pause after 20 MiB in vain may take minutes.
    host.plane.wait_for(lambda: _flow(host, 0.1) or not host.waiting(), limit_s=600)
    assert amid >= kills // 4, f"seed {seed}: only {amid} kills hit an upload"
    refused = {sha256 for sha256, size in given.items() if size > limit}
    stored = host.stored()
    assert set(stored) == set(given) - refused, f"seed {seed}"
    assert all(hashlib.sha256(data).hexdigest() == sha256 for sha256, data in stored.items()), (
        f"seed {seed}"
    )
    kept: set[str] = {
        hashlib.sha256((host.layout.quarantine / name / "data").read_bytes()).hexdigest()
        for name in spool.ids(host.layout.quarantine)
    }
    assert kept == refused, f"seed {seed}"


def _flow(host: Artifacts, seconds: float) -> None:
    """Let it flow for so long, without the pauses after each failure."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        wake.wake(host.layout)
        time.sleep(0.05)


def test_a_few_kills(host: Artifacts) -> None:
    """Eight kills while eighty artifacts flow."""
    storm(host, kills=8, artifacts=80, largest=4 * MIB)


@pytest.mark.minutes
@pytest.mark.timeout(1200)
def test_forty_kills(host: Artifacts) -> None:
    """Forty kills while five hundred artifacts of 1 KiB to 20 MiB flow."""
    storm(host, kills=40, artifacts=500, largest=20 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills(host: Artifacts) -> None:
    """Two hundred kills while five hundred artifacts of 1 KiB to 20 MiB flow."""
    storm(host, kills=200, artifacts=500, largest=20 * MIB)
