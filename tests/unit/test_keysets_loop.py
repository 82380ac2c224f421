"""The key sets loop: daily whatever the reboots, at once where it matters, quiet where nothing is
new.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent.keysets import PERIOD_S, RETRY_S, SPREAD_S, URGENT_S, KeySets
from firstboot.agent.schedule import Schedule
from firstboot.agent.submit import Inbox
from firstboot.agent.worker import Context
from firstboot.api.client import Answer
from firstboot.api.messages import HeartbeatReply
from firstboot.base.clock import rfc3339
from firstboot.base.errors import TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from tests.integration.loops import Decides, ring
from tests.unit.test_deployments_loop import HANDED, Moment


class Plane:
    def __init__(self) -> None:
        self.sets, self.status, self.asked = 1, 200, []  # type: ignore[var-annotated]

    def signing_keys(self, agent_id: str, key: Secret, *, since: int) -> Answer:
        self.asked.append(since)
        body = json.dumps({"key_sets": [{}] * self.sets}).encode()
        sets = self.sets if self.status == 200 else None
        return Answer(
            self.status, True, False, "application/json", None, None, None, key_sets=sets, body=body
        )


class Adopts(Decides):
    """An activator that takes what it is offered, and then has `version`."""

    version: int | None = None

    def start(self, *, anew: bool) -> None:
        super().start(anew=anew)
        if self.version is not None:
            ring(self.layout, self.version)


class Scene:
    def __init__(self, root: Path) -> None:
        self.layout, self.clock, self.plane = Layout(root), Moment(), Plane()
        (root / "var/lib/byteor/agent").mkdir(parents=True)
        self.activator, self.schedule = Adopts(self.layout), Schedule(PERIOD_S)
        plane: Any = self.plane
        context = Context(self.layout, HANDED, plane, self.clock)
        inbox = Inbox(self.layout, self.activator, self.clock)
        self.loop = KeySets(context, self.schedule, inbox)

    def delays(self) -> list[float]:
        return [self.loop.first_delay(random.Random(seed), splay_s=7.0) for seed in range(50)]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_every_complete_answer_goes_to_the_activator(scene: Scene) -> None:
    """The bytes as they came; an empty list too, which clears what an earlier one had refused."""
    scene.activator.version = 1
    scene.loop.run_once()
    assert json.loads((scene.layout.inbox / "keysets.json").read_text()) == {"key_sets": [{}]}
    assert scene.activator.asked == 1 and scene.plane.asked == [0]
    scene.plane.sets = 0
    scene.loop.run_once()
    assert json.loads((scene.layout.inbox / "keysets.json").read_text()) == {"key_sets": []}
    assert scene.activator.asked == 2 and scene.plane.asked == [0, 1]


def test_it_looks_with_the_first_beat_where_there_is_no_set(scene: Scene) -> None:
    """No ring, and a ring that only pins: nothing can be deployed without keys."""
    assert set(scene.delays()) == {7.0}
    ring(scene.layout, 0)
    assert set(scene.delays()) == {7.0}


@pytest.mark.parametrize(
    ("ago", "due"),
    [(3600.0, PERIOD_S - 3600.0), (PERIOD_S, 0.0), (9 * PERIOD_S, 0.0), (-4000.0, 0.0)],
)
def test_a_day_is_counted_across_reboots(scene: Scene, ago: float, due: float) -> None:
    """A host that reboots each day refreshes daily; hosts that were off are spread; a clock that
    jumped delays nothing.
    """
    ring(scene.layout, 3)
    looked = {"v": 1, "looked_at": rfc3339(scene.clock.wall() - ago)}
    (scene.layout.agent / "keysets.json").write_text(json.dumps(looked))
    delays = scene.delays()
    assert all(due + 6 <= delay <= due + 8 + SPREAD_S for delay in delays)
    assert max(delays) - min(delays) > SPREAD_S / 2


@pytest.mark.parametrize(
    "content", ["{", '{"v": 1}', '{"v": 1, "looked_at": 7}', '{"v": 1, "looked_at": "9999-99-99"}']
)
def test_a_damaged_memory_of_the_last_look_means_look(scene: Scene, content: str) -> None:
    """Never an error."""
    ring(scene.layout, 3)
    (scene.layout.agent / "keysets.json").write_text(content)
    assert set(scene.delays()) == {7.0}


@pytest.mark.parametrize(("version", "period"), [(0, URGENT_S), (3, RETRY_S)])
def test_a_refresh_that_failed_is_tried_again_soon_and_keeps_what_is_there(
    scene: Scene, version: int, period: float
) -> None:
    """By minutes and not by days; with the next success it is daily again."""
    ring(scene.layout, version)
    before = (scene.layout.activation / "keyring.json").read_bytes()
    scene.plane.status = 202
    with pytest.raises(TryAgain):
        scene.loop.run_once()
    assert scene.schedule.period_s == period
    assert (scene.layout.activation / "keyring.json").read_bytes() == before
    assert not (scene.layout.agent / "keysets.json").exists()
    scene.plane.status = 200
    scene.loop.run_once()
    assert scene.schedule.period_s == PERIOD_S


def test_a_hint_counts_until_it_was_looked_at(scene: Scene) -> None:
    """A plane that hints for ever at a set that this host refuses makes it look once."""
    ring(scene.layout, 2)
    assert not scene.loop.hinted(HeartbeatReply()) and not scene.loop.hinted(
        HeartbeatReply(signing_keys_version=2)
    )
    news = HeartbeatReply(signing_keys_version=3)
    assert scene.loop.hinted(news)
    scene.loop.run_once()  # refused: the ring stays
    assert not scene.loop.hinted(news)
    assert scene.loop.hinted(HeartbeatReply(signing_keys_version=4))
    ring(scene.layout, 0)  # trust --reset
    assert scene.loop.hinted(news)


def test_a_reset_is_seen_when_the_agent_is_told(scene: Scene) -> None:
    """Only then: each activation tells the agent, and need not cost a request."""
    ring(scene.layout, 2)
    scene.loop.run_once()
    assert not scene.loop.nudged()
    ring(scene.layout, 0)
    assert scene.loop.nudged()
    scene.activator.version = 2
    scene.loop.run_once()
    assert scene.plane.asked == [2, 0] and not scene.loop.nudged()


def test_a_reset_soon_after_the_first_key_set_is_seen(scene: Scene) -> None:
    """The agent looked when there was none; an activation told it since that there is one."""
    ring(scene.layout, 0)
    scene.loop.run_once()
    ring(scene.layout, 1)
    assert not scene.loop.nudged()
    ring(scene.layout, 0)  # trust --reset
    assert scene.loop.nudged()
    assert not scene.loop.nudged()  # an answer that is refused tells it too: not asked again
