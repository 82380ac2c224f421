"""The upload loop's decisions: order, what is sent again and what never, whose fault a failure is,
disks that fail.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, Union

import pytest

from firstboot.agent.artifacts import memory, packing, spool
from firstboot.agent.artifacts.sender import Sender
from firstboot.agent.artifacts.spool import About
from firstboot.agent.problems import of_the_spool
from firstboot.agent.worker import Context
from firstboot.api.answers import KeyRefused, NotThePlane, RequestRefused
from firstboot.api.client import Answer
from firstboot.api.messages import HeartbeatReply, Problem
from firstboot.api.multipart import ArtifactMetadata, ArtifactReply
from firstboot.api.transport import Unreachable
from firstboot.base import files, trees
from firstboot.base.clock import Clock
from firstboot.base.errors import ByteorError, LocalFault, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.handover import Handover


class ByHand(Clock):
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def said(status: int, code: str = "x", *, json: bool = True) -> Answer:
    problem = Problem(code, None, f"because {code}") if json and status >= 400 else None
    artifact = ArtifactReply("art_1", status == 200) if status in (200, 201) and json else None
    return Answer(status, json, False, "application/json", problem, None, None, artifact=artifact)


Script = Union[Answer, ByteorError]


class Plane:
    """Answers by content, the last of a list for ever, else 201; keeps what was sent, in order."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.script: dict[bytes, list[Script]] = {}
        self.during: Callable[[], object] = lambda: None

    def upload_artifact(
        self,
        agent_id: str,
        key: Secret,
        metadata: ArtifactMetadata,
        file: int,
        *,
        each: Callable[[int], None],
    ) -> Answer:
        data = os.pread(file, 1 << 20, 0)
        self.sent.append(data)
        each(metadata.size)
        self.during()
        answers = self.script.get(data) or [said(201)]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, ByteorError):
            raise answer
        return answer

    def rest(self) -> None:
        pass


class Bench:
    """A spool with a loop at it."""

    def __init__(self, root: Path) -> None:
        (root / "var/lib/byteor").mkdir(parents=True)
        (root / "run/byteor-agent").mkdir(parents=True)
        self.layout, self.plane, self.clock, self.alive = Layout(root), Plane(), ByHand(), 0
        self.loop = self.another()

    def another(self, agent_id: str = "agt_1") -> Sender:
        """The loop of the next agent process."""
        handed = Handover(
            "https://x", agent_id, Secret("k" * 20), None, None, None, None, None, None, None, ()
        )
        api: Any = self.plane

        def alive() -> None:
            self.alive += 1

        return Sender(Context(self.layout, handed, api, self.clock), alive)

    def put(self, *contents: bytes) -> list[str]:
        names = []
        for data in contents:
            held = packing.hold(data)
            names.append(spool.add(self.layout, held, About("snapshot", "x", 1e9)).id)
            os.close(held)
        return names

    def run(self) -> ByteorError | None:
        try:
            self.loop.run_once()
        except ByteorError as error:
            return error
        return None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_all_that_is_there_goes_oldest_first(bench: Bench) -> None:
    """One attempt empties the spool; one with nothing to send says that it asked nothing."""
    assert bench.loop.run_once() is False and not bench.loop.nudged()
    bench.put(b"1", b"2", b"3")
    assert bench.loop.nudged() and bench.loop.run_once() is True
    assert bench.plane.sent == [b"1", b"2", b"3"] and bench.alive == 6
    assert bench.loop.shown() == {"pending": 0, "quarantined": 0, "bytes": 0, "quarantine": []}
    assert bench.loop.problems() == [] and not bench.loop.hinted(HeartbeatReply())


@pytest.mark.parametrize("status", [413, 415, 422])
def test_refused_for_good_is_kept_and_never_sent_again(bench: Bench, status: int) -> None:
    """In quarantine with the reason; the others go on; the next agent does not send it either."""
    bench.put(b"1", b"2", b"3")
    bench.plane.script[b"2"] = [said(status, "no")]
    assert bench.run() is None
    bench.loop = bench.another()
    assert bench.run() is None
    assert bench.plane.sent == [b"1", b"2", b"3"]
    (row,) = bench.loop.shown()["quarantine"]
    assert (row["status"], row["code"], row["detail"]) == (status, "no", "no: because no")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (said(403), RequestRefused),
        (said(401), KeyRefused),
        (said(400), RequestRefused),
        (said(404, "unknown_agent"), KeyRefused),
        (said(429), TryAgain),
        (said(503), TryAgain),
        (Answer(201, True, False, "", None, None, None, complaint="no id"), TryAgain),
        (said(201, json=False), NotThePlane),
        (Answer(204, False, True, "", None, None, None), TryAgain),
        (Unreachable("no"), TryAgain),
        (TryAgain("cut"), TryAgain),
    ],
)
def test_what_is_not_a_word_on_this_artifact_keeps_it(
    bench: Bench, answer: Script, error: type
) -> None:
    """Raised for the loop; everything stays in the spool, and goes when it is over."""
    names = bench.put(b"1", b"2")
    bench.plane.script[b"1"] = [answer, said(201)]
    raised = bench.run()
    assert type(raised) is error or isinstance(raised, error)
    assert spool.ids(bench.layout.spool) == names and bench.plane.sent == [b"1"]
    assert bench.run() is None
    assert bench.plane.sent[0] == b"1" and sorted(bench.plane.sent[1:]) == [b"1", b"2"]


def test_a_missing_scope_is_named(bench: Bench) -> None:
    """Whatever the plane says."""
    bench.put(b"1")
    bench.plane.script[b"1"] = [said(403)]
    assert "agent:artifact_upload" in str(bench.run())


def test_one_that_fails_by_itself_holds_nobody_up(bench: Bench) -> None:
    """Failed twice while another passes: it waits, is a problem, comes last when it is due, and
    passes in the end.
    """
    large, *_ = bench.put(b"large", b"1", b"2")
    bench.plane.script[b"large"] = [TryAgain("cut")]
    assert isinstance(bench.run(), TryAgain)
    assert bench.run() is None
    assert bench.plane.sent == [b"large", b"1", b"2", b"large"]
    assert not bench.loop.nudged()
    (problem,) = bench.loop.problems()
    assert (
        problem.code == "artifact_failing" and large in problem.detail and "cut" in problem.detail
    )
    bench.put(b"3")
    assert bench.loop.nudged() and bench.run() is None  # not due: not tried
    assert bench.plane.sent[4:] == [b"3"]
    bench.clock.now += 31.0
    bench.put(b"4")
    assert bench.run() is None
    assert bench.plane.sent[5:] == [b"4", b"large"]
    bench.clock.now += 61.0
    bench.plane.script[b"large"] = [said(201)]
    assert bench.run() is None
    assert spool.ids(bench.layout.spool) == [] and bench.loop.problems() == []


def test_a_plane_that_is_away_puts_nobody_last(bench: Bench) -> None:
    """All fail: one is tried each time, none is postponed, and the loop's own pause applies."""
    bench.put(b"1", b"2", b"3")
    for data in (b"1", b"2", b"3"):
        bench.plane.script[data] = [said(503)]
    for _ in range(5):
        before = len(bench.plane.sent)
        assert isinstance(bench.run(), TryAgain)
        assert len(bench.plane.sent) - before == 1
    assert bench.loop.problems() == []
    bench.plane.script.clear()
    bench.plane.sent.clear()
    assert bench.run() is None
    assert sorted(bench.plane.sent) == [b"1", b"2", b"3"]


FAULTY = [
    said(403, json=False),
    said(400),
    said(409),
    said(503),
    TryAgain("cut"),
]


@pytest.mark.parametrize("answer", FAULTY)
@pytest.mark.parametrize("many", [1, 2, 5])
def test_what_is_always_refused_holds_nobody_up(bench: Bench, answer: Script, many: int) -> None:
    """One or several at the head that a proxy or the plane never takes: what stands behind them
    goes, they wait.
    """
    bad = bench.put(*(b"bad %d" % number for number in range(many)))
    bench.put(b"1", b"2")
    for number in range(many):
        bench.plane.script[b"bad %d" % number] = [answer]
    for _ in range(many):
        before = len(bench.plane.sent)
        assert bench.run() is not None
        assert len(bench.plane.sent) == before + 1
    assert bench.run() is None
    assert (
        bench.plane.sent[many : many + 2] == [b"1", b"2"] and spool.ids(bench.layout.spool) == bad
    )
    assert [problem.code for problem in bench.loop.problems()] == ["artifact_failing"] * many
    assert not bench.loop.nudged()
    bench.plane.sent.clear()
    bench.clock.now += 3600.0
    bench.put(b"3")
    assert (
        bench.run() is None and len(bench.plane.sent) == 2
    )  # one of them at a time, after what is new


LARGE = bytes(63 << 20)  # takes no memory until it is read


@pytest.mark.parametrize(
    "answer",
    [said(503), said(413, json=False), said(401), said(403), TryAgain("cut")],
)
def test_what_was_sent_in_vain_is_paid_for(bench: Bench, answer: Script) -> None:
    """63 MiB: at most three times in a quarter of an hour, in the end once an hour; what is small
    goes on where it can.

    The loop is asked every five seconds: no schedule of a worker makes it louder.
    """
    bench.put(LARGE)
    bench.plane.script[LARGE[: 1 << 20]] = [answer]
    sent_at: list[float] = []
    for step, until in ((5.0, 900.0), (300.0, 86400.0)):
        while bench.clock.now - 1000.0 < until:
            before = len(bench.plane.sent)
            raised = bench.run()
            if len(bench.plane.sent) > before:
                sent_at.append(bench.clock.now)
            assert raised is not None or bench.loop.problems()
            assert bench.loop.nudged() is False
            bench.clock.now += step
        assert step > 5 or len(sent_at) <= 3
    pauses = [later - earlier for earlier, later in zip(sent_at, sent_at[1:])]
    assert min(pauses[-5:]) >= 1800 and max(pauses) <= 3900 and 22 <= len(sent_at) <= 60
    bench.put(b"small")
    assert bench.loop.nudged()
    for _ in range(2):  # the large one may be due just now, and is the older one
        bench.run()
    assert b"small" in bench.plane.sent
    bench.plane.script.clear()
    bench.clock.now += 3600.0
    assert bench.run() is None and spool.ids(bench.layout.spool) == []
    assert bench.loop.problems() == []


def test_what_is_too_large_for_something_on_the_way_waits_alone(bench: Bench) -> None:
    """A 413 that is no word of the control plane: the others go at once, it is kept and said."""
    (name,) = bench.put(b"1")
    bench.put(b"2")
    bench.plane.script[b"1"] = [said(413, json=False)]
    assert bench.run() is None
    assert bench.plane.sent == [b"1", b"2"] and spool.ids(bench.layout.spool) == [name]
    (problem,) = bench.loop.problems()
    assert problem.code == "artifact_failing" and "413" in problem.detail and name in problem.detail
    assert problem.hint


def test_a_413_of_something_on_the_way_is_met_once_in_an_attempt(bench: Bench) -> None:
    """Neither the large ones nor a thousand small ones are sent back to back."""
    small = [b"%d" % number for number in range(5)]
    bench.put(LARGE, LARGE[:-1], LARGE[:-2], *small)
    for data in (LARGE[: 1 << 20], *small):
        bench.plane.script[data] = [said(413, json=False)]
    for sent in (2, 3):
        before = len(bench.plane.sent)
        assert bench.run() is not None
        assert len(bench.plane.sent) - before <= sent
    assert [len(data) for data in bench.plane.sent].count(1 << 20) == 1


def test_a_retry_after_is_obeyed(bench: Bench) -> None:
    """By what is large, too."""
    bench.put(LARGE)
    bench.plane.script[LARGE[: 1 << 20]] = [TryAgain("busy", retry_after=3000.0)]
    bench.run()
    bench.clock.now += 2990.0
    bench.run()
    assert len(bench.plane.sent) == 1


@pytest.mark.parametrize("fault", ["meta", "quarantine"])
def test_a_fault_of_this_host_at_one_holds_nobody_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """One that the agent may not read, or not move, is said; the others go."""
    first, _ = bench.put(b"1", b"2")
    bench.plane.script[b"1"] = [said(413)]
    load = spool.load

    def unreadable(path: Path) -> Any:
        if path.name == first:
            raise LocalFault("cannot read: permission denied")
        return load(path)

    def stuck(layout: Layout, entry_id: str, reason: Any) -> None:
        raise LocalFault("cannot move aside: permission denied")

    with monkeypatch.context() as patched:
        if fault == "meta":
            patched.setattr(spool, "load", unreadable)
        else:
            patched.setattr(spool, "quarantine", stuck)
        raised = bench.run()
    assert spool.ids(bench.layout.spool) == [first] and bench.plane.sent[-1] == b"2"
    said_of = (
        [problem.detail for problem in bench.loop.problems()] if fault == "meta" else [str(raised)]
    )
    assert "permission denied" in said_of[0]
    bench.clock.now += 31.0
    assert bench.run() is None
    assert bench.plane.sent == ([b"2", b"1"] if fault == "meta" else [b"1", b"2"])
    assert bench.loop.shown()["quarantined"] == 1


@pytest.mark.parametrize("answer", [said(429), said(403), Unreachable("no", hint=None)])
def test_slower_and_away_are_never_an_artifacts_fault(bench: Bench, answer: Script) -> None:
    """After a 429, without a connection, or without the scope: the oldest is tried again, and no
    other.
    """
    bench.put(b"1", b"2")
    bench.plane.script[b"1"] = [answer]
    for turn in range(1, 5):
        assert bench.run() is not None
        assert bench.plane.sent == [b"1"] * turn


def test_a_crash_before_the_removal_sends_nothing_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plane has it, this process ends: the next one only removes it."""
    bench.put(b"1")

    def crash(layout: Layout, entry_id: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(spool, "drop", crash)
        with pytest.raises(KeyboardInterrupt):
            bench.loop.run_once()
    bench.loop = bench.another()
    assert bench.run() is None
    assert bench.plane.sent == [b"1"] and spool.ids(bench.layout.spool) == []


@pytest.mark.parametrize("status", [201, 413])
def test_a_disk_that_fails_makes_nothing_travel_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Full or read-only after the answer: said, kept in mind, and done when the disk works
    again.
    """
    bench.put(b"1")
    bench.plane.script[b"1"] = [said(status)]

    def full(*arguments: Any, **keywords: Any) -> None:
        raise LocalFault("cannot write: no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", full)
        patched.setattr(trees, "remove", full)
        for _ in range(3):
            assert isinstance(bench.run(), LocalFault)
    assert bench.run() is None
    assert bench.plane.sent == [b"1"]
    assert spool.census(bench.layout) == spool.Census(0, int(status == 413), int(status == 413))


@pytest.mark.parametrize("damage", ["meta.json", "data", "longer"])
def test_what_is_damaged_is_kept_and_holds_nobody_up(bench: Bench, damage: str) -> None:
    """Lost or changed on this disk: never sent, in quarantine, the rest goes."""
    name, _ = bench.put(b"1", b"2")
    path = bench.layout.spool / name / damage.replace("longer", "data")
    if damage == "longer":
        path.write_bytes(b"11")
    else:
        path.unlink()
    assert bench.run() is None
    assert bench.plane.sent == [b"2"]
    (row,) = bench.loop.shown()["quarantine"]
    assert row["id"] == name and row["code"] == "damaged"


def test_progress_is_shown_and_a_full_run_does_not_matter(bench: Bench) -> None:
    """`upload --wait` reads how far a large one is; where /run takes nothing, the upload goes
    on.
    """
    name, _ = bench.put(b"1" * (1 << 20), b"2")
    seen = []
    bench.plane.during = lambda: seen.append(memory.progress(bench.layout))
    assert bench.run() is None
    assert seen[0] == memory.Progress(name, 1 << 20, 1 << 20)
    assert memory.progress(bench.layout) is None and not bench.layout.upload_progress.exists()
    bench.layout.agent_run.rmdir()
    bench.put(b"3" * (1 << 20))
    assert bench.run() is None
    assert len(bench.plane.sent) == 3


def test_a_full_spool_gives_way_to_a_bundle(bench: Bench) -> None:
    """Between two uploads, so that a deployment does not wait for a thousand artifacts."""
    for name in (b"1", b"2", b"3"):
        bench.put(name)
    waits = [True, False]
    bench.loop._gives_way = lambda: waits.pop(0)
    assert bench.run() is None and bench.plane.sent == [b"1"]
    assert bench.run() is None and bench.plane.sent == [b"1", b"2", b"3"]


def test_a_spool_that_is_full_is_a_problem(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks learns that new artifacts are refused."""
    bench.put(b"1")
    monkeypatch.setattr(spool, "MOST_ENTRIES", 1)
    assert [problem.code for problem in of_the_spool(bench.loop.shown())] == ["spool_full"]


def test_another_identity_inherits_nothing_by_itself(bench: Bench) -> None:
    """What waited is kept and sent only on an operator's word; what the former plane has is
    uploaded to this one again.
    """
    bench.put(b"sent")
    assert bench.run() is None
    (kept,) = bench.put(b"waits")
    bench.loop = bench.another("agt_2")
    assert bench.run() is None and bench.plane.sent == [b"sent"]
    assert (
        json.loads((bench.layout.quarantine / kept / "reason.json").read_text())["code"]
        == "another_identity"
    )
    bench.put(b"sent")
    assert spool.release(bench.layout, kept) and bench.run() is None
    assert sorted(bench.plane.sent) == [b"sent", b"sent", b"waits"]
    bench.loop = bench.another("agt_2")
    bench.put(b"more")
    assert bench.run() is None and bench.plane.sent[-1] == b"more"
