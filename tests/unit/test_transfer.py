"""The transfer worker: what is sent gives way to a bundle that is wanted, and goes on after it."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

from firstboot.agent.health import ARTIFACTS, DOWNLOAD
from firstboot.agent.schedule import Agenda, Ask, End, Schedule
from firstboot.agent.transfer import Transfer
from firstboot.agent.worker import Context, Crew
from firstboot.base.layout import Layout
from firstboot.exchange.handover import Handover
from tests.integration.loops import nothing
from tests.unit.test_deployments_loop import HANDED, Moment

PLACE = {"org_id": "org_1", "project_id": "prj_1", "environment_id": "env_1"}


def transfer(root: Path, handed: Handover) -> tuple[Transfer, Agenda]:
    api: Any = None
    clock, agenda = Moment(), Agenda()
    crew = Crew(lambda _: None, nothing, agenda, {}, threading.Event())
    context = Context(Layout(root), handed, api, clock)
    return Transfer(crew, context, Schedule(30.0), 7.0, nothing), agenda


def test_a_bundle_goes_between_two_uploads(tmp_path: Path) -> None:
    """Asked for by the control worker; the rest of the spool is due at once after it."""
    worker, agenda = transfer(tmp_path, dataclasses.replace(HANDED, **PLACE))
    began = agenda.take("transfer", 5007.0)[0]
    assert began is not None and began.name == ARTIFACTS
    assert not worker._bundle_waits()
    worker._want(Ask.ANEW)
    assert worker._bundle_waits()
    chance = worker._crew.chance
    agenda.end(began, chance, 5008.0, End())
    names = []
    for now in (5008.0, 5009.0):
        task = agenda.take("transfer", now)[0]
        assert task is not None
        names.append(task.name)
        agenda.end(task, chance, now, End())
    assert names == [DOWNLOAD, ARTIFACTS]


def test_without_a_place_nothing_is_downloaded(tmp_path: Path) -> None:
    """No deployment can be verified: uploads go on alone."""
    worker, agenda = transfer(tmp_path, HANDED)
    assert worker.download is None and list(agenda.tasks) == [ARTIFACTS]
    assert not worker._bundle_waits()
