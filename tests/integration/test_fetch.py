"""Bundles fetched from the reference control plane: cut, redirected, changed, too long, too short,
stopped in the middle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent import download
from firstboot.agent.schedule import Ask
from firstboot.api.answers import RequestRefused
from firstboot.api.stream import PIECE_BYTES
from firstboot.base.errors import LocalFault, TryAgain
from tests.integration.host import Host, on_this_machine
from tests.integration.loops import Agent, Fetch, raised

MIB = 1 << 20
SOON_S = 2.0  # what is cut short would take fifteen or more


class Fetching(Agent):
    """An agent that is to fetch one bundle of about `size` random bytes."""

    def begin(self, size: int, **options: Any) -> Fetch:
        self.made = self.plane.deploy(
            {"spec.kv": b"name = big\n", "data.bin": os.urandom(size)}, **options
        )
        self.want(self.made)
        self.loop = self.deployments(self.api())
        return self.loop

    @property
    def part(self) -> Path:
        return self.layout.inbox / "bundle.part"

    def bundle(self) -> bytes:
        return (self.layout.inbox / f"{self.made['bundle_sha256']}.bundle").read_bytes()

    def is_whole(self) -> bool:
        """Byte by byte what the plane has, and nothing left beside it."""
        left = {path.name for path in self.layout.inbox.iterdir()}
        assert left == {"envelope.json", "request.json", f"{self.made['bundle_sha256']}.bundle"}, (
            left
        )
        return (
            self.bundle()
            == (self.plane.state_dir / "bundles" / self.made["bundle_sha256"]).read_bytes()
        )

    def asked(self) -> list[dict[str, Any]]:
        return list(self.plane.requests("bundle"))


@pytest.fixture
def agent(control_plane: Any, tmp_path: Path) -> Iterator[Fetching]:
    made = Fetching(control_plane, tmp_path / "root")
    yield made
    for api in made.apis:
        api.rest()


def test_a_bundle_that_is_cut_ten_times_resumes_and_is_whole(agent: Fetching) -> None:
    """24 MiB: each attempt goes on where the last one ended, but for the piece that was cut; the
    pause stays short.
    """
    loop = agent.begin(24 * MIB)
    agent.plane.fault("bundle", "cut", at=2 * MIB, times=10)
    for _ in range(10):
        assert isinstance(raised(loop.run_once), TryAgain)
        loop.schedule.failures += 1  # as the loop's runner counts
        assert loop.schedule.failures == 1
    shown = loop.shown()["download"]
    assert 0 < shown["bytes"] < shown["size"] == agent.made["bundle_size"]
    loop.run_once()
    assert agent.is_whole() and loop.shown() == {"download": None}
    begins = [int(request["headers"]["range"][6:-1]) for request in agent.asked()[1:]]
    steps = [later - earlier for earlier, later in zip([0, *begins], begins)]
    assert len(begins) == 10 and all(
        2 * MIB - PIECE_BYTES - 1000 < step < 2 * MIB for step in steps
    ), steps
    assert all(request["headers"]["if-range"] for request in agent.asked()[1:])


def test_memory_does_not_grow_with_the_bundle(agent: Fetching) -> None:
    """16 MiB pass through less than one."""
    loop = agent.begin(16 * MIB)
    tracemalloc.start()
    try:
        loop.run_once()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert agent.is_whole()
    assert peak < 2 * MIB, peak


def test_a_part_of_an_earlier_process_is_taken_up(agent: Fetching) -> None:
    """After a restart what is there is hashed again, and only the rest is asked for."""
    loop = agent.begin(3 * MIB)
    agent.plane.fault("bundle", "cut", at=2 * MIB)
    assert isinstance(raised(loop.run_once), TryAgain)
    have = agent.part.stat().st_size
    agent.deployments(agent.api()).run_once()
    assert agent.is_whole()
    assert agent.asked()[1]["headers"]["range"] == f"bytes={have}-"


def test_what_a_power_cut_left_in_a_part_is_no_proof_against_the_plane(agent: Fetching) -> None:
    """A damaged beginning makes one whole fetch more, and is not counted as a wrong bundle."""
    loop = agent.begin(3 * MIB)
    agent.plane.fault("bundle", "cut", at=2 * MIB)
    assert isinstance(raised(loop.run_once), TryAgain)
    agent.part.write_bytes(bytes(agent.part.stat().st_size))
    there = agent.plane.state_dir / "bundles" / agent.made["bundle_sha256"]
    good, loop = there.read_bytes(), agent.deployments(agent.api())
    assert "once more" in str(raised(loop.run_once))
    there.write_bytes(bytes(len(good)))
    assert "once more" in str(raised(loop.run_once))
    there.write_bytes(good)
    loop.run_once()
    assert agent.is_whole()


def test_a_plane_that_ignores_ranges_is_begun_again(agent: Fetching) -> None:
    """A 200 to a Range replaces what is there."""
    loop = agent.begin(2 * MIB)
    agent.plane.configure(bundle_ranges=False)
    agent.plane.fault("bundle", "cut", at=MIB)
    assert isinstance(raised(loop.run_once), TryAgain)
    loop.run_once()
    assert agent.is_whole()


def test_a_bundle_whose_tag_changed_is_begun_again(agent: Fetching) -> None:
    """If-Range makes the plane send all of what it has now."""
    loop = agent.begin(2 * MIB)
    agent.plane.fault("bundle", "cut", at=MIB)
    assert isinstance(raised(loop.run_once), TryAgain)
    record = agent.layout.inbox / "bundle.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "etag": '"another"'}))
    agent.part.write_bytes(b"of another")
    loop.run_once()
    assert agent.is_whole()


def test_a_part_that_the_plane_cannot_continue_is_begun_again(agent: Fetching) -> None:
    """416 removes the part; the next attempt asks for the whole."""
    loop = agent.begin(2 * MIB)
    agent.plane.fault("bundle", "cut", at=MIB)
    assert isinstance(raised(loop.run_once), TryAgain)
    agent.plane.fault("bundle", "problem", status=416, code="range_not_satisfiable")
    assert isinstance(raised(loop.run_once), TryAgain)
    assert agent.part.stat().st_size == 0
    loop.run_once()
    assert agent.is_whole() and "range" not in agent.asked()[-1]["headers"]


def test_the_object_store_sees_no_credential_and_nobody_its_address(
    agent: Fetching, capsys: pytest.CaptureFixture[str]
) -> None:
    """One redirect is followed, cut and resumed; the plane records a violation should a key arrive
    there.
    """
    agent.plane.configure(bundle_redirect="store")
    loop = agent.begin(2 * MIB)
    agent.plane.fault("store", "cut", at=MIB)
    error = raised(loop.run_once)
    assert isinstance(error, TryAgain)
    loop.run_once()
    assert agent.is_whole()
    there = agent.plane.requests(origin="store")
    assert len(there) == 2 and all(request["credential"] is None for request in there)
    assert there[1]["headers"]["range"]
    texts = [
        str(error),
        *(path.read_text(errors="replace") for path in agent.layout.root.rglob("*.json")),
    ]
    texts += list(capsys.readouterr())
    assert not any("signature=" in text or "/objects/" in text for text in texts)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (("problem", {"status": 403, "code": "bad_signature"}), "403"),
        (("html", {"status": 404}), "404"),
        (("problem", {"status": 401, "code": "key_expired"}), "401"),
        (("redirect", {}), "302"),
    ],
    ids=["expired address", "lost object", "another's 401", "another redirect"],
)
def test_what_the_object_store_says_is_not_the_planes_word(
    agent: Fetching, fault: Any, said: str
) -> None:
    """Its refusals pass: the plane is asked for a fresh address; none of them is about our key."""
    agent.plane.configure(bundle_redirect="store")
    loop = agent.begin(MIB)
    agent.plane.fault("store", fault[0], **fault[1])
    error = raised(loop.run_once)
    assert type(error) is TryAgain and said in str(error)
    loop.run_once()
    assert agent.is_whole()


def test_a_second_redirect_is_not_followed(agent: Fetching) -> None:
    """One is what the contract has."""
    agent.plane.configure(bundle_redirect="twice")
    loop = agent.begin(MIB)
    error = raised(loop.run_once)
    assert type(error) is TryAgain and "302" in str(error)
    assert len(agent.plane.requests(origin="store")) == 1


@pytest.mark.parametrize(("variant", "more"), [("smaller", 1), ("larger", -1)])
def test_a_bundle_of_another_size_is_fetched_twice_and_handed_on(
    agent: Fetching, variant: str, more: int
) -> None:
    """Longer: one byte more than was signed is kept, no more; shorter: what there is. The activator
    refuses it.
    """
    loop = agent.begin(MIB, broken="bundle_size", variant=variant)
    signed = agent.made["bundle_size"] - more
    agent.activator.wanted = {**(agent.activator.wanted or {}), "size": signed}
    error = raised(loop.run_once)
    assert isinstance(error, TryAgain) and "once more" in str(error)
    assert not list(agent.layout.inbox.glob("*.bundle"))
    asked = agent.activator.asked
    loop.run_once()
    assert len(agent.bundle()) == signed + more
    assert agent.activator.asked == asked + 1 and len(agent.asked()) == 2


def test_a_far_too_long_bundle_fills_no_disk(agent: Fetching) -> None:
    """Of 8 MiB in place of 1,000 bytes, 1,001 are kept."""
    loop = agent.begin(8 * MIB)
    agent.activator.wanted = {**(agent.activator.wanted or {}), "size": 1000}
    assert isinstance(raised(loop.run_once), TryAgain)
    loop.run_once()
    assert len(agent.bundle()) == 1001


def test_wrong_bytes_are_fetched_once_more_and_then_handed_on(agent: Fetching) -> None:
    """A mirror's accident heals itself; what stays wrong is the activator's to refuse."""
    loop = agent.begin(MIB)
    there = agent.plane.state_dir / "bundles" / agent.made["bundle_sha256"]
    good = there.read_bytes()
    there.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert isinstance(raised(loop.run_once), TryAgain)
    there.write_bytes(good)
    loop.run_once()
    assert agent.is_whole()
    agent.activator.wanted = None
    agent.inbox.request()
    loop.run_once()
    assert not list(agent.layout.inbox.glob("*.bundle*"))


def test_without_room_nothing_is_fetched(agent: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said with numbers before the first byte; the disk's owner makes room, and it comes."""
    loop = agent.begin(MIB)
    monkeypatch.setattr(download, "RESERVE_BYTES", 1 << 60)
    error = raised(loop.run_once)
    assert (
        isinstance(error, LocalFault) and "MiB are free" in str(error) and "free" in str(error.hint)
    )
    assert not agent.asked()
    monkeypatch.undo()
    loop.run_once()
    assert agent.is_whole()


def test_a_disk_that_fills_up_keeps_what_came(
    agent: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the network's fault, and said so; with room it goes on where it was."""
    loop = agent.begin(2 * MIB)
    write = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        if offset > MIB:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(download.os, "pwrite", full)
    error = raised(loop.run_once)
    assert isinstance(error, LocalFault) and "no space left" in str(error) and error.hint
    monkeypatch.undo()
    have = agent.part.stat().st_size
    assert have > MIB
    loop.run_once()
    assert agent.is_whole() and agent.asked()[1]["headers"]["range"] == f"bytes={have}-"


def test_what_nobody_wants_any_more_is_removed(agent: Fetching) -> None:
    """Another deployment, or none: neither part nor record stays, and the other one comes whole."""
    loop = agent.begin(2 * MIB)
    agent.plane.fault("bundle", "cut", at=MIB)
    assert isinstance(raised(loop.run_once), TryAgain)
    agent.made = agent.plane.deploy({"spec.kv": b"name = other\n"})
    agent.want(agent.made)
    loop.run_once()
    assert agent.is_whole()
    agent.plane.fault("latest", "problem", status=404, code="no_deployment")
    loop.run_once()
    assert {path.name for path in agent.layout.inbox.iterdir()} == {"request.json"}


def test_a_long_download_gives_way_to_what_is_newer(agent: Fetching) -> None:
    """It ends within a piece once the control thread wants another bundle, or none; what came is
    kept where the same bytes are wanted again.
    """
    loop = agent.begin(2 * MIB)
    loop.deployments.run_once()
    wanted = loop.download._wanted
    assert wanted is not None
    same = dataclasses.replace(wanted, deployment_id="dep_new")
    pieces = 0

    def alive() -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 3:
            loop.download.want(same)

    loop.download.alive = alive
    loop.asked.clear()
    assert loop.download.run_once() is True and loop.asked == [Ask.ANEW]
    have = agent.part.stat().st_size
    assert pieces == 3 and 0 < have < MIB
    loop.run_once()
    assert agent.is_whole() and agent.asked()[-1]["headers"]["range"] == f"bytes={have}-"
    loop.download.want(None)
    assert loop.download.run_once() is False and not list(agent.layout.inbox.glob("*.bundle*"))


def test_the_same_bundle_under_another_deployment_goes_on(agent: Fetching) -> None:
    """A rollback names an old bundle: what came of it is not fetched twice."""
    loop = agent.begin(2 * MIB)
    agent.plane.fault("bundle", "cut", at=MIB)
    assert isinstance(raised(loop.run_once), TryAgain)
    agent.plane.fault("bundle", "problem", status=404, code="no_such_deployment")
    assert isinstance(raised(loop.run_once), RequestRefused)
    have = agent.part.stat().st_size
    loop.run_once()
    assert agent.is_whole() and agent.asked()[-1]["headers"]["range"] == f"bytes={have}-"


# -- real processes, real activator


@contextlib.contextmanager
def running(host: Host) -> Iterator[subprocess.Popen[str]]:
    process = host.agent()
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    host.defaults(heartbeat_interval_s=5, activation={"window_s": 0})
    host.token(host.mint())
    assert host.run().code == 0
    return host


def status(host: Host) -> dict[str, Any]:
    path = host.path("run/byteor-agent/status.json")
    return dict(json.loads(path.read_text())) if path.exists() else {}


def active(host: Host) -> str | None:
    deployment = status(host).get("deployment") or {}
    return deployment.get("deployment_id") if deployment.get("state") == "active" else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_agent_that_is_stopped_in_the_middle_goes_on_there(host: Host, number: int) -> None:
    """SIGTERM ends it at once; the next one shows the progress, asks for the rest, and
    it is activated.
    """
    data = os.urandom(8 * MIB)
    made = host.plane.deploy({"spec.kv": b"a = 1\n", "data.bin": data})
    host.plane.fault("bundle", "drip", count=MIB // 2, every_s=1.0, times=None)
    part = host.path("var/lib/byteor/agent/inbox/bundle.part")
    with running(host) as process:
        host.plane.wait_for(lambda: part.exists() and part.stat().st_size > MIB // 4)
        shown = host.call("byteor-agent", "status")
        assert "downloading" in shown.out and f"{made['deployment_id']}, " in shown.out
        began = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=60)
        assert time.monotonic() - began < on_this_machine(SOON_S)
        assert process.returncode == (0 if number == signal.SIGTERM else -number)
    have = part.stat().st_size
    host.plane.clear_faults()
    with running(host):
        host.plane.wait_for(lambda: active(host) == made["deployment_id"])
    assert int(host.plane.requests("bundle")[1]["headers"]["range"][6:-1]) >= min(have, MIB // 4)
    assert host.path("var/lib/byteor/current/data.bin").read_bytes() == data


def test_a_stop_in_the_middle_of_an_activation_is_finished_by_the_next_start(
    host: Host, tmp_path: Path
) -> None:
    """Agent and child are gone at once; the next agent has the activation finished,
    and reports it.
    """
    began, go = tmp_path / "began", tmp_path / "go"
    script = f"touch {began}; test -e {go} || exec sleep 60"
    host.defaults(
        heartbeat_interval_s=5, activation={"command": ["/bin/sh", "-c", script], "window_s": 0}
    )
    assert host.run().code == 0
    made = host.plane.deploy({"spec.kv": b"a = 1\n"})
    with running(host) as process:
        host.plane.wait_for(began.exists)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() or [
            "0"
        ]
        stopped = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0 and time.monotonic() - stopped < on_this_machine(SOON_S)
    host.plane.wait_for(lambda: not Path(f"/proc/{child}").exists())
    assert host.path("var/lib/byteor/activation/journal.json").exists() and not host.plane.reports()
    go.touch()
    with running(host):
        host.plane.wait_for(lambda: host.plane.reports())
    (report,) = host.plane.reports()
    assert (report["deployment_id"], report["status"]) == (made["deployment_id"], "active")


@pytest.mark.parametrize("broken", ["bundle_digest", "bundle_size", "bad_signature"])
def test_what_the_activator_refuses_is_final_and_the_next_one_comes(
    host: Host, broken: str
) -> None:
    """Said in status and beat with its code, asked for no more than twice, and no obstacle to a
    good one.
    """
    host.plane.deploy({"spec.kv": b"a = 1\n"}, broken=broken)
    with running(host):

        def told() -> bool:
            beats = [json.loads(request["body"]) for request in host.plane.requests("heartbeat")]
            return any(
                problem["code"] == "deployment_refused"
                for beat in beats
                for problem in beat["problems"]
            )

        def verdict() -> Any:
            found = host.call("byteor-agent", "status", "--json")
            return (
                (json.loads(found.out)["last_verdict"] or {}).get("code")
                if found.code == 0
                else None
            )

        host.plane.wait_for(lambda: verdict() == broken)
        host.hurry()
        host.plane.wait_for(told)
        assert len(host.plane.requests("bundle")) == (0 if broken == "bad_signature" else 2)
        if (
            broken != "bad_signature"
        ):  # the plane's hint names a deployment that no verdict can name: followed once a minute
            made = host.plane.deploy({"spec.kv": b"a = 2\n"})
            host.hurry()
            host.plane.wait_for(lambda: active(host) == made["deployment_id"])
