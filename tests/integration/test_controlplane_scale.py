"""A thousand hosts at once: the reference control plane stays correct, one agent per token."""

from __future__ import annotations

import asyncio
import resource
import ssl
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.controlplane import ControlPlane
from tests.controlplane.plain import USER_AGENT, PlainHost


async def _enroll(http: httpx.AsyncClient, path: str, token: str, key: str) -> dict[str, Any]:
    """Enroll as a host does whose replies get lost: the same key again until there is an answer."""
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
    while True:
        try:
            reply = await http.post(path, json={"hostname": "edge"}, headers=headers)
        except httpx.TransportError:
            continue
        if reply.status_code in (200, 201):
            return dict(reply.json())
        assert reply.json()["code"] in ("in_progress", "unavailable"), reply.text


async def _life(http: httpx.AsyncClient, host: PlainHost, token: str, beats: int) -> dict[str, Any]:
    """Two attempts of the same enrollment race, then heartbeats that may fail and are followed by others."""
    key = str(uuid.uuid4())
    one, other = await asyncio.gather(
        *(_enroll(http, host.agents_path, token, key) for _ in range(2))
    )
    assert one == other
    bearer = {"Authorization": f"Bearer {one['api_key']}"}
    accepted = sequence = 0
    while accepted < beats:
        sequence += 1
        body = {**host.beat_body(), "sequence": sequence}
        try:
            reply = await http.post(
                f"/api/v1/agents/{one['agent_id']}/heartbeat", json=body, headers=bearer
            )
        except httpx.TransportError:
            continue
        accepted += reply.status_code == 200
    return {**one, "sequence": sequence}


async def _fleet(plane: ControlPlane, tokens: list[str], beats: int) -> list[dict[str, Any]]:
    """All lives at once, each with connections of its own, as hosts have."""
    context = ssl.create_default_context(cafile=str(plane.ca_path))
    host = PlainHost(plane)

    async def alone(token: str) -> dict[str, Any]:
        async with httpx.AsyncClient(
            base_url=plane.base_url,
            verify=context,
            trust_env=False,
            timeout=100,
            headers={"User-Agent": USER_AGENT},
        ) as http:
            return await _life(http, host, token, beats)

    lives = list(await asyncio.gather(*(alone(token) for token in tokens)))
    host.http.close()
    return lives


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    """Two connections for each of a thousand hosts need more descriptors than a shell's default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _enroll_and_beat(plane: ControlPlane, count: int) -> None:
    tokens = [plane.mint() for _ in range(count)]
    plane.fault("enroll", "drop", when="after", probability=0.05, seed=1)
    plane.fault("enroll", "problem", probability=0.05, seed=2)
    plane.fault("heartbeat", "problem", probability=0.05, seed=3)
    lives = asyncio.run(_fleet(plane, tokens, beats=2))
    agents = {agent["agent_id"]: agent for agent in plane.agents()}
    assert len(agents) == len(lives) == count
    assert set(agents) == {life["agent_id"] for life in lives}
    assert len({life["api_key"] for life in lives}) == count
    names = sorted(agent["name"] for agent in agents.values())
    assert names == sorted(["edge"] + [f"edge-{number}" for number in range(2, count + 1)])
    for life in lives:
        agent = agents[life["agent_id"]]
        assert (agent["heartbeats"], agent["last_sequence"]) == (2, life["sequence"])
    hits = Counter(fault["kind"] for fault in plane.faults() if fault["hits"])
    assert hits == {"drop": 1, "problem": 2}


def test_a_hundred_hosts_at_once(control_plane: ControlPlane) -> None:
    """Through lost replies, refusals and two racing attempts each, every token becomes exactly one
    agent.
    """
    _enroll_and_beat(control_plane, 100)


@pytest.mark.slow
def test_a_thousand_hosts_at_once(control_plane: ControlPlane) -> None:
    """The same with a thousand."""
    _enroll_and_beat(control_plane, 1000)


def test_hosts_that_share_one_token(control_plane: ControlPlane) -> None:
    """Fifty clones with one token and keys of their own: one agent, and 410 for the others."""
    token = control_plane.mint()

    async def clones() -> list[int]:
        context = ssl.create_default_context(cafile=str(control_plane.ca_path))
        headers = {"User-Agent": USER_AGENT, "Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            base_url=control_plane.base_url,
            verify=context,
            trust_env=False,
            headers=headers,
            timeout=60,
        ) as http:
            path = PlainHost(control_plane, http).agents_path  # type: ignore[arg-type]
            replies = await asyncio.gather(
                *(
                    http.post(path, json={}, headers={"Idempotency-Key": str(uuid.uuid4())})
                    for _ in range(50)
                )
            )
        return [reply.status_code for reply in replies]

    assert Counter(asyncio.run(clones())) == {201: 1, 410: 49}
    assert len(control_plane.agents()) == 1
