"""One run of the activator in this process: what only waits, a full disk, faults, housekeeping,
retries, and damaged files.
"""

from __future__ import annotations

import datetime
import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstboot.activate import activator, directories, journal, keyring, staging, switch, unpack
from firstboot.base import files, trees
from firstboot.base.clock import Clock, from_rfc3339
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.cli import agent_main, firstboot_main
from firstboot.commands import unenroll
from firstboot.exchange import faults, outcomes, settings, verdicts
from tests.integration.activations import Activations
from tests.unit.test_trust import ONE as KEYS_ONE

LEAST = 600_000  # bytes that are free on the disk of `room`


class Host(Activations):
    """A tree whose activator runs here; `later` moves its clock."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, **options)
        self.layout, self.later = Layout(root), 0.0
        _began[0] = datetime.datetime.now(datetime.timezone.utc).timestamp()

    def run(self) -> int:
        return activator.run(self.layout, lambda: settings.load(self.layout))

    def put(self, name: str, **options: Any) -> Any:
        made = self.make(name, **options)
        self.offer(made)
        self.run()
        return made

    def fault(self) -> faults.Fault | None:
        return faults.read(self.layout)

    def newest(self) -> verdicts.Row:
        return verdicts.read(self.layout).history[-1]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with one deployment in force."""
    host = Host(tmp_path / "root")
    monkeypatch.setattr(Clock, "wall", lambda self: wall() + host.later)
    host.put("good")
    assert host.spec() == "name = good\n"
    return host


_began = [0.0]


def wall() -> float:
    """The clock stands still, so that a slow machine changes nothing; `Host.later` moves it."""
    return _began[0]


def ahead(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(wall() + seconds, datetime.timezone.utc)


# -- what only waits


def test_what_is_issued_ahead_waits_and_is_activated_when_it_is_due(host: Host) -> None:
    """The verdict says when; asked before, it still waits, and nothing was counted against it."""
    host.put("next", now=ahead(900.0))
    row = host.newest()
    assert (row.verdict, row.code) == ("waiting", "not_yet_valid") and row.due is not None
    assert 599.0 <= from_rfc3339(row.due) - wall() <= 601.0
    seen = verdicts.seen(host.layout).last_verdict
    assert seen is not None and seen["due"] == row.due
    for later, spec in ((590.0, "name = good\n"), (602.0, "name = next\n")):
        host.later = later
        os.utime(host.inbox / "request.json", (wall() + later, wall() + later))
        host.request()
        os.utime(host.inbox / "request.json", (wall() + later, wall() + later))
        host.run()
        assert host.spec() == spec
    assert host.said() == [("dep_good", "active", "no_unit"), ("dep_next", "active", "no_unit")]


# -- no room


@pytest.fixture
def room(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What the disk says is free, to be changed by the test."""
    free = [LEAST]
    monkeypatch.setattr(trees, "free_bytes", lambda directory: free[0])
    yield free


def again(host: Host, later: float) -> None:
    host.later += later
    host.request()
    at = wall() + host.later
    os.utime(host.inbox / "request.json", (at, at))
    host.run()


def test_what_does_not_fit_is_said_before_a_byte_is_written(
    host: Host, room: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict with the bytes that are needed, one report a payload; the bundle stays wanted; tried
    again when there is room, at pauses that grow, and then activated.
    """
    monkeypatch.setattr(unpack, "unpack", lambda *_, **__: pytest.fail("unpacked"))
    made = host.put("large", files={"spec.kv": b"a = 1\n", "data": os.urandom(20_000) * 60})
    row = host.newest()
    assert (row.verdict, row.code, row.tries) == ("failed", "no_room", 1)
    assert row.needed is not None and row.needed > 1 << 20
    assert str(row.needed) in str(row.reason) and str(LEAST) in str(row.reason)
    record = verdicts.read(host.layout)
    assert record.wanted is not None
    assert record.wanted.sha256 == made.payload["bundle"]["sha256"]
    assert os.listdir(host.state / "deployments") == ["dep_good-1"]
    pauses = []
    for _ in range(10):
        row = host.newest()
        assert row.due is not None
        pauses.append(round(from_rfc3339(row.due) - wall() - host.later))
        room[0] = row.needed or 0  # there seems to be room, and then there is none
        with monkeypatch.context() as patch:
            patch.setattr(unpack, "measure", lambda *_, **__: room[0])
            again(host, pauses[-1] - 5)
            assert host.newest().tries == row.tries  # not before it is due
            again(host, 10)
        assert host.newest().tries == (row.tries or 0) + 1
    assert sorted(pauses) == pauses and max(pauses) <= 3600 and pauses[-1] > 3590
    assert host.said()[1:] == [("dep_large", "failed", "no_room")]
    monkeypatch.undo()
    monkeypatch.setattr(Clock, "wall", lambda self: wall() + host.later)
    again(host, 4000)
    assert host.spec() == "a = 1\n" and verdicts.read(host.layout).wanted is None
    assert host.said()[-1] == ("dep_large", "active", "no_unit")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["copy", "file", "complete", "reserve"])
def test_a_disk_that_fills_up_meanwhile_is_no_room_too(
    host: Host, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    """Wherever it is met; nothing half made stays, and the retry of an operator tries at once."""

    def full(*_: Any, **__: Any) -> None:
        files.fail("write", host.state, OSError(number, "full"))

    with monkeypatch.context() as patch:
        place = {"copy": trees, "file": trees.Tree, "complete": trees, "reserve": journal}[where]
        patch.setattr(place, where, full)
        made = host.put("next")
        assert (host.newest().verdict, host.newest().code) == ("failed", "no_room")
        left = [path for path in host.state.rglob(".*") if path.name != ".deployment.json"]
        assert left == [] and host.fault() is None
    journal.ask_again(host.layout, str(host.newest().payload_sha256))
    host.run()
    assert host.spec() == "name = next\n" and made
    assert not host.layout.retry.exists()


def test_old_directories_go_before_room_is_missing(host: Host, room: list[int]) -> None:
    """All but the active one and its predecessor."""
    room[0] = 1 << 40
    for name in ("two", "three", "four"):
        host.put(name)
    assert len(os.listdir(host.state / "deployments")) == 3
    room[0] = 0
    host.put("five")
    assert sorted(os.listdir(host.state / "deployments")) == ["dep_four-4", "dep_three-3"]
    assert host.spec() == "name = four\n" and host.newest().code == "no_room"


# -- faults


def test_what_keeps_it_from_its_work_is_noted_until_it_works_again(host: Host) -> None:
    """One sentence with a hint and when the next try is due; pauses grow to an hour."""
    current = host.state / "current"
    current.unlink()
    current.write_text("somebody's")
    host.offer(host.make("next"))
    before = 0.0
    for tries in range(1, 11):
        with pytest.raises(LocalFault) as caught:
            host.run()
        fault = host.fault()
        assert fault is not None
        assert (fault.message, fault.hint, fault.tries) == (
            str(caught.value),
            caught.value.hint,
            tries,
        )
        pause = faults.pause_s(host.layout, from_rfc3339(fault.at))
        assert before <= pause <= 3600.0
        before = pause
    assert before == 3600.0
    seen = verdicts.seen(host.layout).activator
    assert seen == fault
    current.unlink()
    host.run()
    assert host.fault() is None and host.spec() == "name = next\n"


def test_a_fault_in_the_settings_is_noted_too(host: Host) -> None:
    """Also what is wrong before anything is looked at."""

    def damaged() -> settings.Settings:
        raise Corrupt("settings.json is damaged", hint="run")

    with pytest.raises(Corrupt):
        activator.run(host.layout, damaged)
    assert host.fault() is not None
    host.layout.fault.write_text("{")  # a damaged one is replaced, and makes nobody wait
    assert faults.pause_s(host.layout, wall()) == 0.0
    host.run()
    assert not host.layout.fault.exists()


@pytest.mark.parametrize("ends", ["due", "retry", "by hand", "at once"])
def test_under_its_unit_it_waits_until_the_next_try_is_due(
    host: Host, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """systemd starts it again every 30 s; a retry, or a run by hand that went well, ends the pause."""
    passed: list[float] = []

    class Pause:
        def wait(self, seconds: float) -> None:
            passed.append(seconds)
            host.later += seconds
            if len(passed) == 3 and ends == "retry":
                journal.ask_again(host.layout, "1" * 64)
            if len(passed) == 3 and ends == "by hand":
                host.layout.fault.unlink()

    monkeypatch.setattr(activator, "Event", Pause)
    monkeypatch.setattr(activator, "monotonic", lambda: host.later)
    for _ in range(0 if ends == "at once" else 2):
        with pytest.raises(LocalFault), faults.noted(host.layout, Clock()):
            raise LocalFault("no")
    monkeypatch.setattr(activator.systemd, "inside", lambda unit: unit == activator.UNIT)
    assert host.run() == 0 and host.fault() is None
    expected = {"due": 60.0, "retry": 15.0, "by hand": 15.0, "at once": 0.0}[ends]
    assert expected - 1.0 <= sum(passed) <= expected  # dates have no fraction


IN_A_SMALL_DISK = """
import os, sys
from pathlib import Path
from tests.integration.activations import Activations
from tests.unit.test_trust import ONE as KEYS_ONE
host = Activations(Path(sys.argv[1]))
host.deploy("good")
state = host.state
data = os.urandom(20_000) * 1750  # 35 MB unpacked
host.deploy("large", files={"spec.kv": b"name = large\\n", "data": data})
assert host.verdicts()[-1] == ("dep_large", "failed", "no_room"), host.verdicts()
assert host.spec() == "name = good\\n" and host.record()["wanted"]["deployment_id"] == "dep_large"
host.deploy("small")
assert host.spec() == "name = small\\n"
print(host.said())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_real_disk_that_is_too_small(tmp_path: Path) -> None:
    """30 MiB of tmpfs: said once, nothing filled, and what fits afterwards is activated."""
    root = tmp_path / "root"
    root.mkdir()
    mount = f"mount -t tmpfs -o size=30m tmpfs {root} || exit 77"
    shell = f"{mount}; exec {sys.executable} -c '{IN_A_SMALL_DISK}' {root}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("no mounts in this container")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no_room") == 1


# -- housekeeping


@pytest.mark.parametrize("where", ["old directory", "list", "outcomes", "staging"])
def test_housekeeping_never_decides(
    host: Host, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What cannot be cleared away is a warning; what was asked for is done, and a later request of
    the same run too.
    """
    for name in ("two", "three"):
        host.put(name)
    really = trees.remove

    def remove(path: Path) -> None:
        if path.name == ("dep_good-1" if where == "old directory" else ".incoming"):
            raise LocalFault("it belongs to somebody else")
        really(path)

    def fail(*_: Any) -> None:
        raise LocalFault("not today")

    if where in ("old directory", "staging"):
        monkeypatch.setattr(trees, "remove", remove)
    elif where == "outcomes":
        monkeypatch.setattr(outcomes, "prune", fail)
    else:
        monkeypatch.setattr(Path, "iterdir", lambda self: iter_fails())
    host.put("four")
    assert host.spec() == "name = four\n" and host.fault() is None


def iter_fails() -> Iterator[Path]:
    raise PermissionError(errno.EACCES, "denied")


# -- retries


ASKED_AT: dict[str, tuple[Any, str]] = {
    "looking": (keyring, "offer"),
    "preparing": (staging, "prepare"),
    "beginning": (journal, "save"),
    "switching": (directories, "point"),
    "reporting": (outcomes, "put"),
    "pruning": (directories, "prune"),
}


@pytest.mark.parametrize("moment", ASKED_AT)
def test_a_retry_that_comes_while_the_activator_runs_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Asked at any moment of a run about another deployment: when the run ends the failed one was
    tried once more, or will be.
    """
    host = Host(tmp_path / "root", activation={"health": ["/bin/sh", "-c", "exit 1"]})
    failed = host.put("bad")
    (payload,) = {row.payload_sha256 for row in verdicts.read(host.layout).history}
    assert payload is not None and host.newest().verdict == "failed"
    module, name = ASKED_AT[moment]
    really: Callable[..., Any] = getattr(module, name)
    asked: list[int] = []

    def ask(*given: Any, **named: Any) -> Any:
        if not asked:
            asked.append(len(host.said()))
            journal.ask_again(host.layout, payload)
        return really(*given, **named)

    monkeypatch.setattr(module, name, ask)
    (host.inbox / "keysets.json").write_text('{"key_sets": []}')
    if moment != "looking":
        journal.ask_again(host.layout, payload)  # so that there is a run to come in between
        asked.clear()
    host.offer(failed)
    host.run()
    assert asked
    tried = host.said()[asked[0] :]
    assert ("dep_bad", "failed", "health_check_failed") in tried or host.layout.retry.exists()


def test_a_retry_of_another_payload_stays(host: Host) -> None:
    """Only the wish that was followed is forgotten."""
    journal.ask_again(host.layout, "1" * 64)
    journal.forget_asking(host.layout, "2" * 64)
    journal.forget_asking(host.layout, None)
    assert journal.asked_again(host.layout) == "1" * 64
    journal.forget_asking(host.layout, "1" * 64)
    assert journal.asked_again(host.layout) is None


# -- nothing is assigned any more


def test_nothing_assigned_drops_what_was_awaited(host: Host) -> None:
    """And the verdict on what was assigned is history; what is active stays."""
    host.offer(host.make("next"), bundle=False)
    host.run()
    assert verdicts.read(host.layout).wanted is not None
    (host.inbox / "envelope.json").unlink()
    host.request()
    host.run()
    record = verdicts.read(host.layout)
    assert record.wanted is None and record.answered.envelope_sha256 is None
    assert verdicts.seen(host.layout).last_verdict is None
    assert host.spec() == "name = good\n"


def test_a_verdict_on_a_former_envelope_is_history(host: Host) -> None:
    """One bad envelope, then the good one again: nothing is wrong any more."""
    good = (host.inbox / "envelope.json").read_bytes()
    host.put("bad", broken="bad_signature")
    seen = verdicts.seen(host.layout).last_verdict
    assert seen is not None and seen["code"] == "bad_signature"
    (host.inbox / "envelope.json").write_bytes(good)
    host.request()
    host.run()
    seen = verdicts.seen(host.layout).last_verdict
    assert seen is not None and (seen["deployment_id"], seen["verdict"]) == ("dep_good", "active")


# -- damaged files of root's

ODD: list[Any] = [
    None,
    True,
    -1,
    2**63,
    10**400,
    "",
    "x" * 300,
    "\ud800",
    "a\r\nb\x1b[2J",
    [[None]],
    {},
    "../../etc",
]
READERS = (
    (agent_main, "deployments"),
    (agent_main, "deployments", "--json"),
    (agent_main, "status"),
    (agent_main, "status", "--json"),
    (firstboot_main, "status"),
    (firstboot_main, "trust"),
    (agent_main, "retry", "dep_bad"),
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every member, at any depth; of the rows of a list the newest alone."""
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from leaves(value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield from leaves(value[-1], (*path, -1))


def replaced(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copy = json.loads(json.dumps(value))
    above = copy
    for name in path[:-1]:
        above = above[name]
    above[path[-1]] = odd
    return copy


def journals(host: Host, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The journal of an activation that is to be rolled back, as it is in each phase."""
    found: dict[str, bytes] = {}
    really = journal.save

    def save(layout: Layout, begun: journal.Journal) -> journal.Journal:
        saved = really(layout, begun)
        found[begun.phase] = layout.journal.read_bytes()
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(journal, "save", save)
        patch.setattr(switch.journals, "save", save)
        host.put("bad")
    return found


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.minutes)])
@pytest.mark.parametrize(
    "name",
    [
        "deployments",
        "activating",
        "restoring",
        "settled",
        "fault",
        "sequence",
        "keyring",
        "retry",
        "outcome",
    ],
)
def test_no_shape_of_a_damaged_file_breaks_a_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    share: int,
) -> None:
    """Every member replaced by odd shapes: an answer or an error of ours, never a traceback.

    `share`: each member gets one in so many of the shapes, the next member the next ones.
    """
    root = tmp_path / "root"
    spec = root / "var/lib/byteor/current/spec.kv"
    host = Host(root, activation={"health": ["/bin/sh", "-c", f"! grep -q bad {spec}"]})
    (root / "run/byteor-agent/status.json").write_text("{}")
    host.put("good")
    phases = journals(host, monkeypatch)
    layout = host.layout
    (host.inbox / "keysets.json").write_text('{"key_sets": []}')
    with pytest.raises(LocalFault), faults.noted(layout, Clock()):
        raise LocalFault("a fault", hint="a hint")
    fault = layout.fault.read_bytes()
    journal.ask_again(layout, "1" * 64)
    path, good = {
        "deployments": (layout.history, layout.history.read_bytes()),
        "fault": (layout.fault, fault),
        "sequence": (layout.sequence, layout.sequence.read_bytes()),
        "keyring": (layout.keyring, layout.keyring.read_bytes()),
        "retry": (layout.retry, layout.retry.read_bytes()),
        "outcome": (layout.outcomes / "00000002.json", (layout.outcomes / "00000002.json").read_bytes()),
        **{phase: (layout.journal, data) for phase, data in phases.items()},
    }[name]  # fmt: skip
    before = {
        kept: kept.read_bytes()
        for kept in (layout.history, layout.sequence, layout.keyring)
        if kept != path
    }
    monkeypatch.setattr(switch, "MOST_TRIES", 1)  # no health check has to run for each
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # thousands of runs
    turns, activate = itertools.cycle(READERS), (agent_main, "activate")
    for nth, member in enumerate(leaves(json.loads(good))):
        for number, odd in enumerate(ODD[nth % share :: share], nth):
            path.write_text(json.dumps(replaced(json.loads(good), member, odd)))
            for kept, data in before.items():
                kept.write_bytes(data)
            reader = next(turns)
            for call, *words in (reader, activate) if number % 2 else (activate, reader):
                code = call([*words, "--root", str(root)])
                out = "".join(capsys.readouterr())
                assert code in (0, 3, 4, 5, 7, 10), (member, odd, words, out)
                assert "Traceback" not in out and "bug" not in out, (member, odd, words, out)
                if words[0] != "activate" and "--json" not in words:
                    assert "None" not in out, (member, odd, words, out)
            layout.journal.unlink(missing_ok=True)
            for aside in layout.activation.glob("*.corrupt-*"):
                aside.unlink()
            host.request()


# -- another environment


def test_what_another_control_plane_said_starts_no_ring(host: Host) -> None:
    """The former one's answer lies in the inbox when the environment changes: it is never taken,
    and the same bytes are when the agent brings them anew.
    """
    answer = host.inbox / "keysets.json"
    answer.write_text(json.dumps({"key_sets": [KEYS_ONE]}))
    host.write_settings(environment_id="env_2", key_sets=[], signing_keys=[])
    for _ in range(2):
        host.request()
        host.run()
        kept = verdicts.ring(host.layout)
        assert kept is not None
        assert (kept.place.environment_id, kept.source, kept.version) == ("env_2", "tls", 0)
    os.utime(answer, (wall() + 1, wall() + 1))
    host.request()
    host.run()
    assert verdicts.keys_version(host.layout) == 1


def test_unenroll_drops_the_answer_about_keys(host: Host) -> None:
    """The next enrollment may be into another environment."""
    answer = host.inbox / "keysets.json"
    answer.write_text(json.dumps({"key_sets": [KEYS_ONE]}))
    for path in (host.layout.identity, host.layout.agent_run):
        path.mkdir(parents=True, exist_ok=True)
    unenroll.forget(host.layout)
    assert json.loads(answer.read_text()) == {"key_sets": []}


def test_a_damaged_answer_about_keys_hides_no_envelope(host: Host) -> None:
    """Each file of the inbox is read by itself."""
    (host.inbox / "keysets.json").write_text("{}")
    os.link(host.inbox / "keysets.json", host.inbox / "again")
    host.request()
    host.run()
    assert verdicts.read(host.layout).answered.envelope_sha256 is not None
