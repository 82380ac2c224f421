"""The deployments loop's decisions, by the clock: when the activator is asked, asked again, or
never again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent.deployments import Deployments
from firstboot.agent.download import Download
from firstboot.agent.schedule import Ask, Schedule
from firstboot.agent.submit import SILENT_S, Inbox
from firstboot.agent.worker import Context
from firstboot.api.answers import KeyRefused
from firstboot.api.bundles import Coming
from firstboot.api.client import Answer
from firstboot.api.messages import HeartbeatReply
from firstboot.api.messages import Problem as Said
from firstboot.base import trees
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import ByteorError, Corrupt, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.handover import Handover
from firstboot.exchange.verdicts import Wanted
from tests.integration.loops import Decides, nothing, ring

HANDED = Handover(
    "https://plane", "agt_1", Secret("k" * 20), proxy=None, org_id=None, project_id=None, environment_id=None, name=None,
    enrolled_at=None, expires_at=None, scopes=(),
)  # fmt: skip
WAITING = {
    "verdict": "waiting",
    "code": "clock_not_trusted",
    "deployment_id": "dep_1",
    "sequence": 1,
    "keys_version": 1,
}
UNKNOWN_KEY = {"verdict": "refused", "code": "unknown_key", "keys_version": 1}
REFUSED = {
    "verdict": "refused",
    "code": "expired",
    "deployment_id": "dep_1",
    "sequence": 1,
    "keys_version": 1,
}


class Moment(Clock):
    """Moved by hand; the wall clock may be set beside."""

    def __init__(self) -> None:
        self.now, self.ahead = 5000.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_800_000_000.0 + self.now + self.ahead


class Plane:
    """Answers `latest` with what the test says; its clock is right."""

    def __init__(self, clock: Moment) -> None:
        self.clock, self.tags = clock, []  # type: ignore[var-annotated]
        self.status, self.body, self.tag, self.code = 200, b'{"envelope": 1}', '"one"', None  # type: ignore[var-annotated]

    def latest(self, agent_id: str, key: Secret, *, tag: str | None) -> Answer:
        self.tags.append(tag)
        status = 304 if tag is not None and tag == self.tag and self.status == 200 else self.status
        body = self.body if status == 200 else b""
        problem = Said(self.code, None, None) if status >= 400 else None
        date = 1_800_000_000.0 + self.clock.now
        return Answer(status, bool(body) or status >= 400, not body and status < 400, "application/json", problem, None, date,
                      tag=self.tag if status == 200 else None, body=body)  # fmt: skip


class Scene:
    def __init__(self, root: Path) -> None:
        self.layout, self.clock = Layout(root), Moment()
        (root / "var/lib/byteor/agent").mkdir(parents=True)
        self.plane, self.activator = Plane(self.clock), Decides(self.layout)
        self.keys_wanted: list[float] = []
        self.start()

    def start(self) -> None:
        """Another process on the same disk."""
        self.inbox = Inbox(self.layout, self.activator, self.clock)
        self.wakes: list[Ask] = []
        plane: Any = self.plane
        context = Context(self.layout, HANDED, plane, self.clock)
        self.download = Download(
            context, Schedule(60.0), nothing, nothing, self.wakes.append, brought=nothing
        )
        self.loop = Deployments(context, self.inbox, self.download, self.want_keys)

    def want_keys(self) -> None:
        self.keys_wanted.append(self.clock.now)

    def run(self, *, minutes: float = 0.0) -> None:
        """Each minute, as the loop's runner does."""
        until = self.clock.now + minutes * 60.0
        self.loop.run_once()
        while self.clock.now < until:
            self.clock.now += 60.0
            self.loop.run_once()

    def envelope(self) -> bytes | None:
        path = self.layout.inbox / "envelope.json"
        return path.read_bytes() if path.exists() else None

    def ring(self, version: int) -> None:
        ring(self.layout, version)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_an_envelope_is_handed_over_once_and_its_tag_is_sent_from_then_on(scene: Scene) -> None:
    """Byte by byte as it came; unchanged answers ask nobody; a restart remembers."""
    scene.activator.verdicts = [REFUSED]
    scene.run(minutes=3)
    assert scene.envelope() == b'{"envelope": 1}' and scene.activator.asked == 1
    scene.start()
    scene.run(minutes=3)
    assert scene.activator.asked == 1
    assert scene.plane.tags[0] is None and set(scene.plane.tags[1:]) == {'"one"'}
    scene.plane.body, scene.plane.tag = b'{"envelope": 2}', '"two"'
    scene.run()
    assert scene.envelope() == b'{"envelope": 2}' and scene.activator.asked == 2


@pytest.mark.parametrize("lost", ["envelope", "tag", "both"])
def test_a_tag_without_its_envelope_is_not_sent(scene: Scene, lost: str) -> None:
    """Else the plane would say "unchanged" about what is not here."""
    scene.run()
    inbox, latest = scene.layout.inbox / "envelope.json", scene.layout.agent / "latest.json"
    if lost != "tag":
        inbox.write_bytes(b"{}") if lost == "both" else inbox.unlink()
    if lost != "envelope":
        latest.write_text("{")
    scene.start()
    scene.run()
    assert scene.plane.tags[-1] is None and scene.envelope() == b'{"envelope": 1}'


def test_a_plane_without_tags_costs_no_writing(scene: Scene) -> None:
    """The same bytes again are the same envelope."""
    scene.plane.tag = None
    scene.run()
    before = (scene.layout.inbox / "envelope.json").stat()
    scene.run(minutes=5)
    after = (scene.layout.inbox / "envelope.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
    ) and scene.activator.asked == 1


def test_what_nothing_came_of_is_asked_again(scene: Scene) -> None:
    """Answered, and neither wanted nor judged nor in progress: a journal was lost, and the next run
    makes up for it.
    """
    scene.activator.forgetful = True
    scene.run(minutes=3)
    assert 3 <= scene.activator.asked <= 4
    scene.activator.forgetful = False
    scene.run(minutes=1)
    asked = scene.activator.asked
    scene.run(minutes=5)
    assert scene.activator.asked == asked


@pytest.mark.parametrize(("status", "code"), [(204, None), (404, "no_deployment")])
def test_what_is_assigned_no_longer_is_withdrawn(
    scene: Scene, status: int, code: str | None
) -> None:
    """The activator is told once, so that it drops what it awaited; what comes back is looked at
    again.
    """
    scene.activator.verdicts = [WAITING]
    scene.run()
    good = scene.plane.status
    scene.plane.status, scene.plane.code = status, code
    scene.run(minutes=30)
    assert scene.envelope() is None and scene.activator.asked == 2 and not scene.loop.problems()
    scene.plane.status = good
    scene.run()
    assert scene.plane.tags[-1] is None and scene.envelope() is not None


def test_a_404_of_another_kind_withdraws_nothing(scene: Scene) -> None:
    """Neither a page's nor one about something else."""
    scene.run()
    scene.plane.status, scene.plane.code = 404, "not_found"
    with pytest.raises(ByteorError):
        scene.run()
    assert scene.envelope() is not None


def test_an_activator_that_is_silent_is_asked_once_a_minute_and_said(scene: Scene) -> None:
    """Each time anew, so that the path unit sees it; the problem goes with the answer."""
    scene.activator.silent = True
    asked = []
    for _ in range(60):
        scene.run()
        asked.append(scene.activator.asked)
        scene.clock.now += 20.0
    assert asked[-1] == 20 and asked[:4] == [1, 1, 1, 2]
    (found,) = scene.loop.problems()
    assert found.code == "activator_silent" and found.hint and "byteor-activate" in found.hint
    scene.start()  # a restart is no answer
    scene.run()
    scene.clock.now += SILENT_S
    scene.run()
    assert [problem.code for problem in scene.loop.problems()] == ["activator_silent"]
    scene.activator.answer()
    scene.run()
    asked_then = scene.activator.asked
    scene.run(minutes=10)
    assert scene.loop.problems() == [] and scene.activator.asked == asked_then


def test_a_final_verdict_is_never_asked_about_again(scene: Scene) -> None:
    """Not in a day, not after a restart."""
    scene.activator.verdicts = [REFUSED]
    scene.run(minutes=600)
    scene.start()
    scene.run(minutes=600)
    assert scene.activator.asked == 1 and not scene.keys_wanted


def test_what_waits_for_the_clock_is_asked_about_every_ten_minutes(scene: Scene) -> None:
    """And said meanwhile, with what to do."""
    scene.activator.verdicts = [WAITING]
    scene.clock.ahead = 4000.0
    scene.run(minutes=30)
    assert scene.activator.asked == 4
    assert scene.activator.offset == -4000.0
    (found,) = scene.loop.problems()
    assert found.code == "deployment_waiting" and "dep_1" in found.detail and found.hint


def test_what_is_issued_ahead_is_asked_about_when_it_is_due(scene: Scene) -> None:
    """Not before, and once a minute from then on; the problem says when."""
    due = rfc3339(scene.clock.wall() + 3600.0)
    scene.activator.verdicts = [{**WAITING, "code": "not_yet_valid", "due": due}]
    scene.run(minutes=59)
    assert scene.activator.asked == 1
    (found,) = scene.loop.problems()
    assert found.code == "deployment_waiting" and due in found.detail
    scene.run(minutes=3)
    assert scene.activator.asked >= 3
    scene.activator.verdicts.append(REFUSED)
    scene.run(minutes=1)
    assert scene.loop.problems() == []


def test_what_lacks_room_is_asked_about_when_it_is_due_and_fits(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bundle stays, and nobody is asked for nothing."""
    free = [1000]
    monkeypatch.setattr(trees, "free_bytes", lambda directory: free[0])
    due = rfc3339(scene.clock.wall() + 600.0)
    scene.activator.wanted = {
        "deployment_id": "dep_1", "sequence": 1, "sha256": "1" * 64, "size": 4,
    }  # fmt: skip
    scene.activator.verdicts = [
        {**WAITING, "verdict": "failed", "code": "no_room", "due": due, "needed": 5000, "tries": 1}
    ]
    scene.layout.inbox.mkdir(parents=True)
    (scene.layout.inbox / f"{'1' * 64}.bundle").write_bytes(b"data")
    scene.run(minutes=60)
    asked = scene.activator.asked
    assert asked <= 2 and (scene.layout.inbox / f"{'1' * 64}.bundle").exists()
    free[0] = 5000
    scene.run(minutes=1)
    assert scene.activator.asked > asked


def test_a_retry_that_the_activator_overlooked_is_asked_about(scene: Scene) -> None:
    """It came when the activator was at its end: the newest request is older than the wish."""
    scene.activator.verdicts = [REFUSED]
    scene.run(minutes=3)
    assert scene.activator.asked == 1
    scene.layout.retry.write_text("{}")
    later = (scene.layout.inbox / "request.json").stat().st_mtime + 1
    os.utime(scene.layout.retry, (later, later))
    scene.run(minutes=1)
    assert scene.activator.asked >= 2
    os.utime(scene.layout.retry, (0, 0))  # seen by a run since: it waits for something
    asked = scene.activator.asked
    scene.run(minutes=9)
    assert scene.activator.asked == asked


def test_a_fault_of_the_activators_paces_the_asking(scene: Scene) -> None:
    """It said why it does not answer and when it is to be tried again: no silence is a problem."""
    scene.activator.silent = True
    scene.run()
    scene.layout.activation.mkdir(parents=True, exist_ok=True)
    due = rfc3339(scene.clock.wall() + 1800.0)
    fault = {"v": 1, "message": "no", "hint": None, "at": due, "due": due, "tries": 7}
    scene.layout.fault.write_text(json.dumps(fault))
    scene.run(minutes=29)
    assert scene.activator.asked == 1 and scene.loop.problems() == []
    scene.run(minutes=3)
    assert scene.activator.asked >= 2


def test_a_clock_that_was_set_ends_the_waiting_at_once(scene: Scene) -> None:
    """The offset is of the moment of asking, whenever the plane's date was heard."""
    scene.activator.verdicts = [WAITING]
    scene.clock.ahead = 4000.0
    scene.run(minutes=2)
    scene.clock.ahead = 0.0
    scene.activator.verdicts.append(REFUSED)
    scene.run()
    assert scene.activator.asked == 2 and scene.activator.offset == 0.0
    assert scene.loop.problems() == []


def test_an_unknown_key_makes_the_key_sets_loop_look_ever_more_rarely(scene: Scene) -> None:
    """At once, after one minute, two, four: the plane's hints tell as well; the activator is asked
    when the ring changed.
    """
    scene.ring(1)
    scene.activator.verdicts = [UNKNOWN_KEY]
    scene.run()  # its answer wakes the loop
    begin = scene.clock.now
    scene.run(minutes=20)
    assert [at - begin for at in scene.keys_wanted] == [0, 60, 180, 420, 900]
    assert scene.activator.asked == 1
    scene.ring(2)
    scene.activator.verdicts.append({**UNKNOWN_KEY, "keys_version": 2})
    scene.run(minutes=3)
    assert scene.activator.asked == 2


def test_another_envelope_begins_the_asking_for_keys_anew(scene: Scene) -> None:
    """The pause was the other one's."""
    scene.ring(1)
    scene.activator.verdicts = [UNKNOWN_KEY]
    scene.run(minutes=20)
    scene.plane.body, scene.plane.tag = b'{"envelope": 2}', '"two"'
    scene.keys_wanted.clear()
    scene.run()
    scene.run()
    assert scene.keys_wanted == [scene.clock.now]


def test_hints_count_while_they_are_news(scene: Scene) -> None:
    """Not what is here, not what was hinted when we last looked, not nothing."""
    scene.activator.verdicts = [REFUSED]
    scene.run()
    assert not scene.loop.hinted(HeartbeatReply())
    assert not scene.loop.hinted(HeartbeatReply(deployment_id="dep_1", deployment_sequence=1))
    news = HeartbeatReply(deployment_id="dep_1", deployment_sequence=2)
    assert scene.loop.hinted(news) and scene.loop.hinted(news)
    scene.run()
    assert not scene.loop.hinted(news)
    assert scene.loop.hinted(HeartbeatReply(deployment_id="dep_2", deployment_sequence=3))


def test_damaged_decisions_remove_nothing(scene: Scene) -> None:
    """Guessing would throw away what is wanted."""
    scene.run()
    part = scene.layout.inbox / "bundle.part"
    part.write_bytes(b"half")
    (scene.layout.activation / "deployments.json").write_text("{")
    scene.activator.silent = True
    for _ in range(3):
        with pytest.raises(Corrupt):
            scene.run()
    assert part.read_bytes() == b"half"
    scene.clock.now += 60.0
    asked = scene.activator.asked
    with pytest.raises(Corrupt):
        scene.run()
    assert scene.activator.asked == asked + 1  # who sets it aside is asked to look, once a minute


def test_a_failed_look_still_tidies_and_asks(scene: Scene) -> None:
    """With the plane away, what the activator was not asked yet is asked."""
    scene.activator.silent = True
    scene.run()
    scene.plane.status = 503
    scene.clock.now += 60.0
    with pytest.raises(TryAgain):
        scene.run()
    assert scene.activator.asked == 2


def test_an_interrupted_activation_is_finished_where_nobody_else_does(scene: Scene) -> None:
    """A child of ours is started at most once a minute; a path unit sees the journal itself."""
    scene.layout.activation.mkdir(parents=True)
    (scene.layout.activation / "journal.json").write_text("{}")
    scene.plane.status = 204
    scene.run(minutes=1)
    assert scene.activator.asked == 0
    scene.activator.finishes = False
    scene.activator.silent = True  # it has no request to answer
    for _ in range(7):
        scene.run()
        scene.clock.now += 10.0
    assert scene.activator.asked == 2


def test_the_request_names_its_envelope_by_being_answered(scene: Scene) -> None:
    """A crash between the envelope and the request: the next process asks."""
    scene.layout.inbox.mkdir(parents=True)
    (scene.layout.inbox / "envelope.json").write_bytes(scene.plane.body)
    digest = hashlib.sha256(scene.plane.body).hexdigest()
    (scene.layout.agent / "latest.json").write_text(
        json.dumps({"v": 1, "etag": '"one"', "envelope_sha256": digest})
    )
    scene.run()
    assert scene.plane.tags == ['"one"'] and scene.activator.asked == 1


def test_no_clock_is_vouched_for_without_tls(scene: Scene) -> None:
    """Over plain http on loopback the plane's date proves nothing."""
    scene.inbox = Inbox(scene.layout, scene.activator, scene.clock, over_tls=False)
    scene.inbox.heard(scene.clock.wall())
    documents: dict[str, Any] = {}
    scene.inbox.request()
    documents.update(json.loads((scene.layout.inbox / "request.json").read_text()))
    assert documents["clock_offset_s"] is None


@pytest.mark.parametrize("tag", [None, '"t"'])
def test_a_bundle_that_is_always_cut_and_never_continued_is_a_failure(
    scene: Scene, tag: str | None
) -> None:
    """Much that came makes the next attempt soon only where that one gets further."""

    class Cut:
        def pieces(self, ceiling: int) -> Iterator[bytes]:
            yield bytes(2 << 20)
            raise TryAgain("cut")

    @contextmanager
    def bundle(*who: object, have: int, tag: object, **keywords: object) -> Iterator[Coming]:
        yield Coming(Cut(), have if tag else 0, None, answer_tag)  # type: ignore[arg-type]

    answer_tag, download = tag, scene.download
    plane: Any = scene.plane
    plane.bundle, plane.rest = bundle, nothing
    scene.layout.inbox.mkdir()
    download.want(Wanted("dep_1", 1, "0" * 64, 64 << 20))
    for attempt in range(3):
        download.schedule.failures += 1
        with pytest.raises(TryAgain, match="cut"):
            download.run_once()
        assert download.schedule.failures == (0 if tag else attempt + 1)


@pytest.mark.parametrize("how", ["gone", "linked"])
def test_an_envelope_that_is_not_found_is_fetched_again(scene: Scene, how: str) -> None:
    """Once a minute while it stays so, and said; not at full speed, which each answer wakes."""
    scene.activator.verdicts = [REFUSED]
    scene.run()
    envelope, other = scene.layout.inbox / "envelope.json", scene.layout.inbox / "backup"
    if how == "gone":
        envelope.unlink()
    else:
        os.link(envelope, other)
        scene.activator.blind = True
    scene.inbox.request()  # for key sets, say
    asked = scene.activator.asked
    for _ in range(20):
        scene.loop.run_once()
    assert scene.activator.asked == asked
    (found,) = scene.loop.problems()
    assert found.code == "envelope_lost" and found.hint
    scene.run(minutes=3)
    assert scene.envelope() == b'{"envelope": 1}' and envelope.stat().st_nlink == 1
    assert scene.activator.asked - asked <= 4 and scene.plane.tags.count(None) <= 5
    scene.activator.blind = False
    scene.run(minutes=2)
    asked = scene.activator.asked
    scene.run(minutes=5)
    assert scene.activator.asked == asked and scene.loop.problems() == []


@pytest.mark.parametrize("damaged", [False, True])
def test_the_control_planes_answer_comes_before_a_damage_here(scene: Scene, damaged: bool) -> None:
    """When to come again is its word; what is wrong on this host is logged."""
    scene.layout.activation.mkdir(parents=True)
    if damaged:
        scene.layout.history.write_text("{")
    scene.plane.status = 503
    with pytest.raises(TryAgain):
        scene.run()
    scene.plane.status = 401
    with pytest.raises(KeyRefused):
        scene.run()
