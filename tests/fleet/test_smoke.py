"""Two hundred real agents, in threads of one process, against the reference control plane: they do
what the simulation says.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent import schedule as pauses
from firstboot.agent.heartbeat import Facts, Heartbeat
from firstboot.agent.schedule import Agenda, Schedule
from firstboot.agent.worker import Context, Crew, Worker
from firstboot.api.client import PlaneApi
from firstboot.api.transport import Transport
from firstboot.base.clock import Clock
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.handover import Handover
from tests.fleet.fleet import PERIOD_S

AGENTS = 200
SCALED_S = 4.0  # the period, instead of 30 s


def enrolled(plane: Any, number: int) -> Handover:
    with PlaneApi(plane.base_url, Transport(ca_certificates=plane.ca_pem)) as api:
        answer = api.enroll(
            Secret(plane.mint()),
            org_id=plane.org_id,
            project_id=plane.project_id,
            environment_id=plane.environment_id,
            idempotency_key=str(uuid.uuid4()),
            body=json.dumps({"name": f"edge-{number}"}).encode(),
        )
    assert answer.enrolled is not None
    return Handover(
        plane.base_url,
        answer.enrolled.agent_id,
        answer.enrolled.api_key,
        proxy=None,
        org_id=None,
        project_id=None,
        environment_id=None,
        name=None,
        enrolled_at=None,
        expires_at=None,
        scopes=(),
    )


@contextlib.contextmanager
def fleet(plane: Any, directory: Path) -> Iterator[list[Worker]]:
    """All workers, begun at once, as after a power cut of the whole site."""
    handed = [enrolled(plane, number) for number in range(AGENTS)]
    stop, crashes, workers = threading.Event(), [], []  # type: ignore[var-annotated]
    for number, one in enumerate(handed):
        layout = Layout(directory / str(number))
        layout.agent.mkdir(parents=True)
        schedule = Schedule(SCALED_S)
        api = PlaneApi(plane.base_url, Transport(ca_certificates=plane.ca_pem))
        context = Context(layout, one, api, Clock())
        crew = Crew(crashes.append, lambda: None, Agenda(), {}, stop)
        worker = Worker(f"agent-{number}", crew, context)
        beat = Heartbeat(context, schedule, Facts, lambda hints, skew: None)
        worker.add("heartbeat", beat, schedule, schedule.first_delay(crew.chance), first=True)
        workers.append(worker)
    for each in workers:
        each.start()
    try:
        yield workers
    finally:
        stop.set()
        for each in workers:
            each.wake()
        for each in workers:
            each.join(30)
            each.api.rest()
    assert not crashes


@pytest.mark.minutes
def test_two_hundred_agents_spread_and_come_back(
    control_plane: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a mass boot and after an outage no quarter of a period sees a herd; everybody is back
    within two periods.
    """
    monkeypatch.setattr(pauses, "BACKOFF_BASE_S", pauses.BACKOFF_BASE_S * SCALED_S / PERIOD_S)
    with fleet(control_plane, tmp_path) as workers:
        pause = threading.Event()
        assert not pause.wait(2 * SCALED_S)
        boot = [request["at"] for request in control_plane.requests("heartbeat")]
        first = min(boot)
        quarters = Counter(int((at - first) / (SCALED_S / 4)) for at in boot)
        # A quarter of the fleet is expected in each; noise of 200 agents is 6.
        assert all(quarters[quarter] <= AGENTS / 4 * 1.6 for quarter in range(4)), quarters
        assert (
            len({request["agent_id"] for request in control_plane.requests("heartbeat")}) == AGENTS
        )

        control_plane.fault("heartbeat", "problem", status=503, code="unavailable", times=None)
        assert not pause.wait(3 * SCALED_S)
        control_plane.clear_faults()
        before = {agent["agent_id"]: agent["heartbeats"] for agent in control_plane.agents()}

        def back() -> bool:
            return all(
                agent["heartbeats"] > before[agent["agent_id"]] for agent in control_plane.agents()
            )

        control_plane.wait_for(back, limit_s=2 * SCALED_S + 4)
        assert all(each.is_alive() for each in workers)
    during = [request for request in control_plane.requests("heartbeat") if request["faults"]]
    assert len(during) >= AGENTS
