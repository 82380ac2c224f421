"""Reports: in order, until accepted, once after a crash; what is damaged or refused is said and
holds up nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent import reports as reports_module
from firstboot.agent.artifacts import spool
from firstboot.agent.reports import SHOWN_S, Reports
from firstboot.agent.worker import Context
from firstboot.api.answers import NotThePlane, RequestRefused
from firstboot.api.client import Answer
from firstboot.api.messages import Problem as Said
from firstboot.base import files
from firstboot.base.errors import LocalFault, NoToken, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.commands import unenroll
from tests.unit.test_deployments_loop import HANDED, Moment

SPEC_HASH = "sha256:" + "0" * 64


class Plane:
    """Answers each report by its status, 200 where none is said."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.answers: dict[str, Any] = {}

    def report(self, agent_id: str, key: Secret, deployment_id: str, body: bytes) -> Answer:
        self.told.append(deployment_id)
        status, is_json = self.answers.get(deployment_id, (200, True))
        return Answer(
            status,
            is_json,
            False,
            "",
            Said("x", None, None) if status >= 400 and is_json else None,
            None,
            None,
        )


class Scene:
    def __init__(self, root: Path) -> None:
        self.layout, self.clock, self.plane, self.spooled = Layout(root), Moment(), Plane(), 0
        (root / "var/lib/byteor/agent").mkdir(parents=True)
        self.layout.outcomes.mkdir(parents=True)
        self.start()

    def start(self, **handed: Any) -> None:
        self.more: list[bool] = []

        def spooled() -> None:
            self.spooled += 1

        plane: Any = self.plane
        context = Context(self.layout, replace(HANDED, **handed), plane, self.clock)
        self.loop = Reports(context, spooled, lambda: self.more.append(True))

    def run(self) -> None:
        """As the worker does while more waits behind a report."""
        self.more = [True]
        while self.more:
            self.more.clear()
            self.loop.run_once()

    def outcome(self, number: int, **changes: Any) -> Path:
        report = {
            "report_id": str(uuid.uuid4()), "status": "active", "sequence": number, "spec_hash": SPEC_HASH, "reason": None,
            "occurred_at": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        document = {"v": 1, "deployment_id": f"dep_{number}", "report": report, **changes}
        path = self.layout.outcomes / f"{number:08d}.json"
        path.write_text(json.dumps(document))
        return path

    def delivered(self) -> int:
        return int(json.loads((self.layout.agent / "reports.json").read_text())["delivered"])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_all_are_told_in_order_and_once(scene: Scene) -> None:
    """By number and not by name or time; after a restart only what is new; nothing to tell is no
    request.
    """
    assert scene.loop.run_once() is False and not scene.loop.nudged()
    for number in (10, 2, 1):
        scene.outcome(number)
    assert scene.loop.nudged() and scene.loop.run_once() is True
    assert scene.plane.told == ["dep_1"] and scene.more  # one in each attempt: none delays a beat
    scene.run()
    assert scene.plane.told == ["dep_1", "dep_2", "dep_10"] and scene.delivered() == 10
    scene.start()
    assert scene.loop.run_once() is False
    scene.outcome(11)
    scene.loop.run_once()
    assert scene.plane.told[3:] == ["dep_11"]


def test_what_is_not_accepted_holds_up_the_later_ones(scene: Scene) -> None:
    """The order is the plane's only way to tell the last state."""
    for number in (1, 2, 3):
        scene.outcome(number)
    scene.plane.answers["dep_2"] = (503, True)
    with pytest.raises(TryAgain):
        scene.run()
    assert scene.delivered() == 1
    scene.plane.answers.clear()
    scene.run()
    assert scene.plane.told == ["dep_1", "dep_2", "dep_2", "dep_3"]


@pytest.mark.parametrize(
    ("answer", "error"), [((403, True), RequestRefused), ((404, False), NotThePlane)]
)
def test_a_missing_scope_and_a_page_drop_nothing(scene: Scene, answer: Any, error: type) -> None:
    """A scope may be granted; a proxy's 404 is not the plane's word."""
    scene.outcome(1)
    scene.plane.answers["dep_1"] = answer
    with pytest.raises(error):
        scene.run()
    assert scene.loop.nudged() and scene.loop.problems() == []


def test_a_dropped_report_is_shown_for_a_day_also_after_a_restart(scene: Scene) -> None:
    """Or until the next one is accepted."""
    scene.outcome(1)
    scene.plane.answers["dep_1"] = (409, True)
    scene.run()
    scene.start()
    scene.run()
    (found,) = scene.loop.problems()
    assert found.code == "report_dropped" and "dep_1" in found.detail
    scene.clock.ahead += SHOWN_S + 1
    assert scene.loop.problems() == []
    scene.clock.ahead = 0.0
    scene.outcome(2)
    scene.run()
    assert scene.loop.problems() == []


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", '{"v": 1}', '{"v": 1, "deployment_id": "../x", "report": REPORT}',
        '{"v": 1, "deployment_id": "d", "report": []}',
        '{"v": 1, "deployment_id": "d", "report": {"report_id": "1"}}', "x" * (2 << 20),
        '{"v": 1, "deployment_id": "d", "report": ' + "[" * 100000,
    ],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_outcome_is_said_and_passed_over(scene: Scene, content: str) -> None:
    """The next one is told; nothing is told of the damaged one, and nothing crashes again and
    again.
    """
    good = json.loads(scene.outcome(2).read_text())["report"]
    (scene.layout.outcomes / "00000001.json").write_text(
        content.replace("REPORT", json.dumps(good))
    )
    scene.plane.answers["dep_2"] = (503, True)
    with pytest.raises(TryAgain):
        scene.run()
    assert [problem.code for problem in scene.loop.problems()] == ["report_dropped"]
    scene.plane.answers.clear()
    scene.run()
    assert scene.plane.told == ["dep_2", "dep_2"] and scene.delivered() == 2


def test_a_link_in_place_of_an_outcome_is_not_followed(scene: Scene, tmp_path: Path) -> None:
    """Nothing of another file is told to anybody."""
    scene.outcome(2).rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", scene.layout.outcomes / "00000001.json")
    scene.run()
    assert scene.plane.told == []


def test_outcomes_that_begin_again_are_told(scene: Scene) -> None:
    """Somebody wiped the activator's directory: a repeat is harmless, a gap is not."""
    scene.outcome(7)
    scene.run()
    (scene.layout.outcomes / "00000007.json").unlink()
    scene.outcome(1)
    scene.run()
    assert scene.plane.told == ["dep_7", "dep_1"] and scene.delivered() == 1


@pytest.mark.parametrize(
    "content",
    ["{", '{"v": 1, "delivered": "x"}', '{"v": 1, "delivered": true, "dropped": {"at": 1}}'],
)
def test_a_damaged_memory_repeats_and_loses_nothing(scene: Scene, content: str) -> None:
    """The report_id makes it harmless."""
    (scene.layout.agent / "reports.json").write_text(content)
    scene.outcome(1)
    scene.run()
    assert scene.plane.told == ["dep_1"] and scene.delivered() == 1


def test_a_diagnostic_is_in_the_spool_before_the_report_is_told(scene: Scene) -> None:
    """Once, redacted, whatever happens to the report; a repeat after a crash adds none."""
    scene.outcome(1)
    (scene.layout.outcomes / "00000001.txt").write_text(
        "Authorization: Bearer abcdefghijklmnop\nit failed\n"
    )
    scene.plane.answers["dep_1"] = (503, True)
    for _ in range(2):
        with pytest.raises(TryAgain):
            scene.run()
    assert scene.spooled
    entries = [spool.load(scene.layout.spool / name) for name in spool.ids(scene.layout.spool)]
    assert len(entries) == 1 and entries[0] is not None
    assert (entries[0].metadata.deployment_id, entries[0].metadata.spec_hash) == (
        "dep_1",
        SPEC_HASH,
    )
    assert (
        b"it failed" in entries[0].data.read_bytes()
        and b"abcdefghijklmnop" not in entries[0].data.read_bytes()
    )


def test_a_spool_that_is_busy_does_not_hold_up_the_report(scene: Scene) -> None:
    """An `upload` copies 64 MiB meanwhile: it is waited for no longer than two seconds."""
    scene.outcome(1)
    (scene.layout.outcomes / "00000001.txt").write_text("it failed\n")
    spool.prepare(scene.layout)
    busy = LocalFault("busy")
    began = time.monotonic()
    with files.locked(scene.layout.spool_lock, wait_s=0.0, busy=lambda: busy):
        scene.run()
    assert scene.plane.told == ["dep_1"] and time.monotonic() - began < 10.0


def test_a_full_spool_does_not_hold_up_the_report(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What became of the deployment matters more than the text beside it."""
    scene.outcome(1)
    (scene.layout.outcomes / "00000001.txt").write_text("it failed\n")

    def full(*arguments: Any, **keywords: Any) -> None:
        raise LocalFault("the spool is full")

    monkeypatch.setattr(reports_module.spool, "add_text", full)
    scene.run()
    assert scene.plane.told == ["dep_1"] and not scene.spooled


def test_an_upload_that_stands_still_does_not_hold_up_the_report(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the spool's lock for as long as it likes (Ctrl-Z); reports wait a second or two."""
    monkeypatch.setattr(reports_module, "SPOOL_WAIT_S", 0.1)
    scene.outcome(1).with_suffix(".txt").write_text("the cause")
    spool.prepare(scene.layout)
    with files.locked(scene.layout.spool_lock, wait_s=0.0, busy=lambda: TryAgain("busy")):
        scene.loop.run_once()
    assert scene.plane.told == ["dep_1"] and scene.delivered() == 1 and not scene.spooled


@pytest.mark.parametrize("told", [False, True])
def test_what_happened_elsewhere_is_not_told_here(scene: Scene, told: bool) -> None:
    """Neither report nor diagnostic, delivered or not, also after an unenrollment between the two;
    a new identity of the same environment tells what is left.
    """
    scene.loop.run_once()
    scene.outcome(1)
    scene.outcome(2).with_suffix(".txt").write_text("journal lines")
    if told:
        scene.run()
    before = list(scene.plane.told)
    for path in (scene.layout.identity, scene.layout.agent_run):
        path.mkdir(parents=True)
    unenroll.forget(scene.layout)
    scene.start(environment_id="env_2")
    scene.run()
    assert scene.plane.told == before and (told or scene.spooled == 0)
    scene.outcome(3)
    scene.start(environment_id="env_2", agent_id="agt_2")
    scene.run()
    assert scene.plane.told == [*before, "dep_3"]


def test_an_unenrollment_that_was_cut_can_be_repeated(tmp_path: Path) -> None:
    """The identity goes first, the settings last; then there is nothing to remove."""
    layout = Layout(tmp_path)
    for path in (layout.identity, layout.agent_run, layout.inbox):
        path.mkdir(parents=True)
    for path in (layout.settings, layout.sealing_key, layout.intent):
        path.write_text("{}")
    arguments = argparse.Namespace(layout=layout)
    assert unenroll.unenroll_command(arguments) == 0
    assert not any(path.exists() for path in (layout.settings, layout.sealing_key, layout.intent))
    with pytest.raises(NoToken):
        unenroll.unenroll_command(arguments)
