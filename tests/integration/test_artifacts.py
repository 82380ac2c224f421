"""Artifacts from the command line to the plane: durable, once, without secrets; whatever is killed,
refused, full or away.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pty
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent.artifacts import packing, spool
from firstboot.agent.artifacts.spool import About
from firstboot.base.layout import Layout
from firstboot.exchange import wake
from tests.integration.host import Done, Host
from tests.integration.spawn import BIN
from tests.unit.test_packing import HIDDEN, PLACES, everything, fill, members

MIB = 1 << 20
SCOPES = [
    "agent:heartbeat",
    "agent:deployment_read",
    "agent:deployment_report",
    "agent:signing_keys_read",
]


class Artifacts(Host):
    """An enrolled host, with an agent that is started and killed at will."""

    def __init__(self, root: Path, plane: Any) -> None:
        super().__init__(root, plane)
        self.files = root.parent / "files"
        self.files.mkdir()
        self.layout = Layout(root)
        self.agent: subprocess.Popen[str] | None = None
        self.defaults(heartbeat_interval_s=5)
        self.token(self.mint())
        assert self.run().code == 0

    def up(self, *, new: bool = False) -> subprocess.Popen[str]:
        self.agent = self.start("byteor-agent", "run", new=new)
        return self.agent

    def down(self, number: int = signal.SIGTERM) -> str:
        assert self.agent is not None
        self.agent.send_signal(number)
        _, err = self.agent.communicate(timeout=20)
        self.agent = None
        assert "Traceback" not in err and "unexpected" not in err, err
        return err

    def file(self, name: str, data: bytes | str) -> Path:
        path = self.files / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def upload(self, path: Path, kind: str = "snapshot", *options: str) -> Done:
        return self.call("byteor-agent", "upload", str(path), "--kind", kind, *options)

    def put(self, data: bytes, kind: str = "snapshot") -> str:
        """What `upload` does, without a process of its own."""
        held = packing.hold(data)
        try:
            return spool.add(self.layout, held, About(kind, "x", 1e9)).id
        finally:
            os.close(held)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.call("byteor-agent", "status", "--json").out))

    def waiting(self) -> list[str]:
        return spool.ids(self.layout.spool)

    def stored(self) -> dict[str, bytes]:
        """What the plane keeps, by SHA-256, each there once and as long as it says."""
        rows = self.plane.artifacts()
        found = {
            row["sha256"]: (self.plane.state_dir / "artifacts" / row["artifact_id"]).read_bytes()
            for row in rows
        }
        assert len(found) == len(rows)
        return found


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Iterator[Artifacts]:
    host = Artifacts(tmp_path / "root", control_plane)
    yield host
    if host.agent is not None:
        host.down(signal.SIGKILL)


def test_an_upload_is_durable_without_an_agent_and_goes_when_there_is_one(host: Artifacts) -> None:
    """Spooled while the agent and the plane are away; uploaded byte for byte, with its metadata,
    soon after both are back.
    """
    host.plane.stop()
    data = os.urandom(300_000)
    done = host.upload(host.file("shot.bin", data))
    assert done.code == 0 and host.waiting() == [done.out.strip()]
    host.up()
    host.plane.restart()
    host.plane.wait_for(lambda: not host.waiting(), limit_s=30)
    (row,) = host.plane.artifacts()
    assert list(host.stored().values()) == [data]
    assert row["metadata"]["kind"] == "snapshot" and row["metadata"]["deployment_id"] is None
    again = host.upload(host.file("other.bin", data))
    assert again.code == 0 and again.out == done.out and row["artifact_id"] in again.err
    assert host.waiting() == []


def test_a_running_agent_is_woken_and_wait_says_what_came_of_it(host: Artifacts) -> None:
    """Far sooner than its period; one line on stderr, the id alone on stdout; exit 5 with the
    reason for a refusal.
    """
    path = host.layout.settings
    path.write_text(json.dumps({**json.loads(path.read_text()), "heartbeat_interval_s": 3600}))
    agent = host.up()
    host.plane.wait_for(lambda: host.layout.agent_status.exists())
    began = time.monotonic()
    done = host.upload(host.file("a.txt", "a"), "diagnostic", "--wait")
    assert done.code == 0 and time.monotonic() - began < 20
    assert (
        done.out.count("\n") == 1
        and f"uploaded as {host.plane.artifacts()[0]['artifact_id']}" in done.err
    )
    host.plane.configure(artifact_limit_bytes=10)
    refused = host.upload(host.file("b.txt", "b" * 11), "diagnostic", "--wait")
    name = refused.out.strip()
    assert refused.code == 5 and "413" in refused.err and f"retry {name}" in refused.err
    reason = json.loads((host.layout.quarantine / name / "reason.json").read_text())
    assert (reason["status"], reason["code"]) == (413, "artifact_too_large")
    page = host.call("byteor-agent", "status").out
    assert f"byteor-agent retry {name}" in page and "1 quarantined" in page
    assert host.status()["spool"]["quarantine"][0]["id"] == name
    assert (
        host.upload(host.file("b2.txt", "b" * 11), "diagnostic").code == 5
    )  # the same content: already refused
    host.plane.configure(artifact_limit_bytes=64 * MIB)
    assert host.call("byteor-agent", "retry", name).code == 0
    host.plane.wait_for(lambda: len(host.plane.artifacts()) == 2 and not host.waiting())
    assert spool.ids(host.layout.quarantine) == []
    assert host.call("byteor-agent", "retry", name).code == 4
    assert agent.poll() is None


def test_verify_uploads_on_request(host: Artifacts) -> None:
    """The guide's fourth check, with a small diagnostic; a plane that refuses it fails the
    check.
    """
    host.up()
    host.plane.wait_for(lambda: host.plane.requests("heartbeat"), limit_s=20)
    done = host.call("byteor-firstboot", "verify", "--upload-test", "--json")
    check = json.loads(done.out)["checks"][3]
    assert check["result"] == "ok" and host.plane.artifacts()[0]["artifact_id"] in check["seen"], (
        done
    )
    host.plane.scopes(host.plane.agents()[0]["agent_id"], SCOPES)
    done = host.call("byteor-firstboot", "verify", "--upload-test", "--json")
    check = json.loads(done.out)["checks"][3]
    assert (
        done.code == 10 and check["result"] == "failed" and "agent:artifact_upload" in check["seen"]
    )


def test_a_missing_scope_loses_nothing_and_flows_when_granted(host: Artifacts) -> None:
    """403: kept, the scope named in status and heartbeat, the beats go on; granted: all are there,
    in order.
    """
    agent_id = host.plane.agents()[0]["agent_id"]
    host.plane.scopes(agent_id, SCOPES)
    host.up()
    names = [host.put(bytes([n]) * 100) for n in range(3)]
    wake.wake(host.layout)

    def said() -> bool:
        beat = host.plane.agents()[0]["last_heartbeat"] or {}
        named = any(
            "agent:artifact_upload" in problem["detail"] for problem in beat.get("problems", ())
        )
        return named and beat["spool"] == {"pending": 3, "quarantined": 0}

    host.plane.wait_for(said, limit_s=30)
    shown = host.status()
    assert (
        "agent:artifact_upload" in shown["loops"]["artifacts"]["problem"]
        and shown["status"] == "degraded"
    )
    assert host.waiting() == names and host.plane.artifacts() == []
    waited = host.upload(host.file("one.bin", b"more"), "snapshot", "--wait")
    assert (
        waited.code == 5
        and "agent:artifact_upload" in waited.err
        and "stays in the spool" in waited.err
    )
    host.plane.scopes(agent_id, [*SCOPES, "agent:artifact_upload"])
    host.plane.wait_for(lambda: not host.waiting(), limit_s=60)
    assert [row["size"] for row in host.plane.artifacts()] == [100, 100, 100, 4]
    first = [
        request["metadata"]["sha256"]
        for request in host.plane.requests("artifacts")
        if request["status"] == 201
    ]
    assert first[:3] == [hashlib.sha256(bytes([n]) * 100).hexdigest() for n in range(3)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("drop", {"when": "after"}),
        ("drop", {"when": "before", "reset": True}),
        ("cut", {"at": 30, "when": "after"}),
        ("garbage", {}),
        ("problem", {"status": 429, "headers": {"Retry-After": "1"}}),
    ],
)
def test_an_answer_that_is_lost_is_one_artifact(
    host: Artifacts, kind: str, options: dict[str, Any]
) -> None:
    """Before or after the plane stored it: sent again, there once, not in quarantine."""
    data = os.urandom(2 * MIB)
    host.put(data)
    host.plane.fault("artifacts", kind, **options)
    host.up()
    host.plane.wait_for(lambda: not host.waiting(), limit_s=60)
    assert list(host.stored().values()) == [data] and len(host.plane.requests("artifacts")) == 2
    assert spool.ids(host.layout.quarantine) == []


@pytest.mark.parametrize(("status", "settings"), [(403, {}), (413, {"artifact_limit_bytes": 1000})])
def test_an_answer_that_comes_while_we_send_is_read(
    host: Artifacts, status: int, settings: dict[str, Any]
) -> None:
    """The plane refuses 30 MiB after the headers and reads no more: its word counts, not the broken
    pipe.
    """
    if status == 403:
        host.plane.scopes(host.plane.agents()[0]["agent_id"], SCOPES)
    host.plane.configure(drain_refused=False, **settings)
    host.put(os.urandom(30 * MIB))
    host.up()
    host.plane.wait_for(
        lambda: (host.status()["loops"].get("artifacts") or {}).get("last_attempt_at"), limit_s=30
    )
    host.plane.wait_for(
        lambda: host.plane.requests("artifacts") and _settled(host, status), limit_s=30
    )


def _settled(host: Artifacts, status: int) -> bool:
    shown = host.status()
    refused = str((shown["loops"]["artifacts"]).get("problem"))
    return shown["spool"]["quarantined"] == 1 if status == 413 else "403" in refused


@pytest.mark.parametrize(("answer", "status"), [("problem", 503), ("html", 413)])
def test_sixty_three_mib_are_not_sent_again_and_again(
    host: Artifacts, answer: str, status: int
) -> None:
    """However often the agent is woken: a 503, or a 413 of a proxy, is followed by a pause."""
    host.plane.fault("artifacts", answer, status=status, times=None)
    host.put(os.urandom(63 * MIB))
    host.up()
    host.plane.wait_for(lambda: host.plane.requests("artifacts"), limit_s=30)
    for number in range(20):
        host.put(b"small %d" % number)
        wake.wake(host.layout, signal.SIGUSR2)
        time.sleep(0.2)
    sizes = [int(one["headers"]["content-length"]) for one in host.plane.requests("artifacts")]
    assert len([size for size in sizes if size > MIB]) == 1
    assert str(status) in json.dumps(host.status())


# -- what is given to `upload`


def test_what_cannot_be_an_artifact_is_said(host: Artifacts) -> None:
    """A FIFO, a link, a device, a socket, a directory, nothing, 0 bytes, 64 MiB + 1: one sentence,
    exit 7, nothing spooled.
    """
    fifo, link, sock = host.files / "fifo", host.files / "link", host.files / "sock"
    os.mkfifo(fifo)
    link.symlink_to(host.file("real", "x"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock))
    large = host.file("large", b"")
    os.truncate(large, 64 * MIB + 1)
    cases = {
        fifo: "is a FIFO", link: "is a symbolic link", sock: "is a socket", Path("/dev/zero"): "is a device",
        host.files: "is a directory", host.files / "none": "no such file", host.file("empty", b""): "is empty",
        large: "larger than 64 MiB",
    }  # fmt: skip
    for path, said in cases.items():
        done = host.upload(path)
        assert (
            done.code == 7 and done.err.count("error:") == 1 and said in done.err and done.out == ""
        ), (path, done)
    assert host.waiting() == [] and host.plane.requests("artifacts") == []
    assert host.call("byteor-agent", "upload", str(large), "--kind", "core-dump").code == 2
    os.truncate(large, 64 * MIB)
    assert host.upload(large).code == 0


def test_a_file_that_is_written_to_is_refused(host: Artifacts) -> None:
    """A log that grows while it is read: said, and nothing of it is kept."""
    path = host.file("live.log", b"x" * (40 * MIB))
    code = f"f = open({str(path)!r}, 'ab', 0)\nwhile True: f.write(b'more')"
    with subprocess.Popen(["python3", "-c", code]) as writer:
        try:
            host.plane.wait_for(lambda: path.stat().st_size > 40 * MIB)
            done = host.upload(path)
        finally:
            writer.kill()
    assert done.code == 7 and "changed while it was read" in done.err, done
    assert host.waiting() == []


def test_a_text_loses_its_secrets_and_a_snapshot_stays_as_it_is(host: Artifacts) -> None:
    """A diagnostic in UTF-8 is redacted, and says so; anything else is sent byte for byte."""
    text = f"start\nBYTEOR_AGENT_API_KEY={HIDDEN}\n"
    binary = os.urandom(50_000) + text.encode()
    done = host.upload(host.file("a.log", text), "diagnostic")
    assert "replaced in a.log: value" in done.err and HIDDEN not in done.err
    for kind in ("snapshot", "diagnostic"):
        host.upload(host.file("a.bin", binary + kind.encode()), kind)
    host.upload(host.file("bundle.tar.gz", gzip.compress(text.encode())), "incident-bundle")
    host.up()
    host.plane.wait_for(lambda: len(host.plane.artifacts()) == 4, limit_s=30)
    first, *rest = host.stored().values()
    assert first == b"start\nBYTEOR_AGENT_API_KEY=<secret>\n"
    assert (
        rest[:2] == [binary + b"snapshot", binary + b"diagnostic"]
        and gzip.decompress(rest[2]) == text.encode()
    )


def test_secrets_in_every_place_of_a_bundle_stay_here(host: Artifacts) -> None:
    """The runtime key, bare and in every place; after the upload none is in what the plane
    received, nor beside it.
    """
    directory = host.files / "incident"
    for number, (name, content) in enumerate(PLACES):
        fill(directory / str(number), {name: content})
    assert host.call("byteor-firstboot", "unseal").code == 0
    key = json.loads(host.layout.handover.read_text())["api_key"]
    fill(
        directory,
        {
            "spec.kv": "a = 1\n",
            "environment.json": {"BYTEOR_AGENT_API_KEY": key},
            "bare.log": f"\n {key} \n",
        },
    )
    (directory / "link").symlink_to(host.layout.handover)
    done = host.upload(directory, "incident-bundle")
    assert done.code == 0 and HIDDEN not in done.err and key not in done.err
    assert "no spec_validation.json" in done.err and "link is a symbolic link" in done.err
    assert host.upload(directory, "incident-bundle").out == done.out  # packed the same again
    host.up()
    host.plane.wait_for(lambda: host.plane.artifacts(), limit_s=30)
    (bundle,) = host.stored().values()
    received = (
        everything(bundle)
        + json.dumps(host.plane.requests()).encode()
        + json.dumps(host.plane.artifacts()).encode()
    )
    assert HIDDEN.encode() not in received and key.encode() not in received
    assert (
        members(bundle)["spec.kv"] == b"a = 1\n"
        and members(bundle)["bare.log"] == b"\n <secret> \n"
    )
    assert len(json.loads(members(bundle)["redactions.json"])["replaced"]) >= len(PLACES)
    assert (
        host.plane.artifacts()[0]["metadata"]["spec_hash"]
        == "sha256:" + hashlib.sha256(b"a = 1\n").hexdigest()
    )


def test_a_full_spool_refuses_and_keeps(host: Artifacts) -> None:
    """A thousand wait: the next is refused with what to do, each of the thousand is still there."""
    first = host.put(b"first")
    for number in range(2, spool.MOST_ENTRIES + 1):
        shutil.copytree(
            host.layout.spool / first, host.layout.spool / f"{number:08d}-{number:016x}"
        )
    done = host.upload(host.file("a", "one too many"))
    assert done.code == 7 and "the spool is full" in done.err and "hint:" in done.err, done
    assert len(host.waiting()) == spool.MOST_ENTRIES


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_refuses_and_what_is_there_goes(host: Artifacts) -> None:
    """A disk without room: exit 7 and a hint, nothing half done; what was there before is uploaded,
    and makes room.
    """
    directory = host.layout.agent
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], check=True)
    try:
        assert host.upload(host.file("a", os.urandom(MIB))).code == 0
        done = host.upload(host.file("b", os.urandom(MIB)))
        assert done.code == 7 and done.err.count("error:") == 1 and "free some space" in done.err, (
            done
        )
        with (
            open(directory / "ballast", "wb", buffering=0) as ballast,
            pytest.raises(OSError, match="No space"),
        ):
            while True:
                ballast.write(b"x" * 4096)
        host.up()
        host.plane.wait_for(lambda: not host.waiting(), limit_s=30)
        assert len(host.stored()) == 1
        os.unlink(directory / "ballast")
        assert host.upload(host.files / "b", "snapshot", "--wait").code == 0
        assert len(host.plane.requests("artifacts")) == 2
        host.down()
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_what_is_damaged_on_this_disk_never_reaches_the_plane(host: Artifacts) -> None:
    """Flipped in the spool, at the same length: the request is not completed, the artifact is kept
    in quarantine.
    """
    name = host.put(b"a" * (3 * MIB))
    with open(host.layout.spool / name / "data", "r+b") as stream:
        stream.seek(2 * MIB)
        stream.write(b"b")
    host.put(b"good")
    host.up()
    host.plane.wait_for(lambda: not host.waiting(), limit_s=30)
    assert list(host.stored().values()) == [b"good"] and spool.ids(host.layout.quarantine) == [name]
    assert (
        json.loads((host.layout.quarantine / name / "reason.json").read_text())["code"] == "damaged"
    )


def test_the_activators_diagnostics_flow(host: Artifacts) -> None:
    """What stands beside an outcome is uploaded, redacted, with the deployment that it is about."""
    made = host.plane.deploy()
    outcomes = host.path("var/lib/byteor/activation/outcomes")
    outcomes.mkdir(parents=True)
    report = {
        "report_id": "6a6f2f1e-9e0b-4d1c-8e52-0d7a4f5b6c7d", "status": "failed", "sequence": made["sequence"],
        "spec_hash": made["spec_hash"], "reason": "health", "occurred_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    (outcomes / "00000001.txt").write_text(f"health check failed\npassword: {HIDDEN}\n")
    (outcomes / "00000001.json").write_text(
        json.dumps({"v": 1, "deployment_id": made["deployment_id"], "report": report})
    )
    host.up()
    host.plane.wait_for(lambda: host.plane.artifacts(), limit_s=30)
    (row,) = host.plane.artifacts()
    assert list(host.stored().values()) == [b"health check failed\npassword: <secret>\n"]
    assert (row["kind"], row["metadata"]["deployment_id"]) == ("diagnostic", made["deployment_id"])


# -- who may, and how it looks


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_root_reads_and_the_agents_user_writes(tmp_path: Path) -> None:
    """On a host: root's own file goes in, the spool is byteor-agent's; that user may, another gets
    a refusal.
    """
    (tmp_path / "passwd").write_text(
        Path("/etc/passwd").read_text() + "byteor-agent:x:61999:61999::/:/usr/sbin/nologin\n"
    )
    (tmp_path / "secret.bin").write_bytes(b"\0root's")
    (tmp_path / "secret.bin").chmod(0o600)
    (tmp_path / "open.bin").write_bytes(b"\0anybody's")
    for path in [tmp_path, *tmp_path.parents][:4]:
        path.chmod(path.stat().st_mode | 0o711)
    script = f"""
        set -e
        setpriv --reuid 61999 --regid 61999 --clear-groups {BIN}/python -c "" || exit 99
        mount --bind {tmp_path}/passwd /etc/passwd
        mkdir -p /var/lib/byteor
        mount -t tmpfs tmpfs /var/lib/byteor
        mkdir -m 0700 /var/lib/byteor/agent
        chown 61999:61999 /var/lib/byteor/agent
        upload="{BIN}/byteor-agent upload --kind snapshot {tmp_path}"
        $upload/secret.bin
        setpriv --reuid 61999 --regid 61999 --clear-groups $upload/open.bin
        setpriv --reuid 61998 --regid 61998 --clear-groups $upload/open.bin || echo exit $?
        find /var/lib/byteor/agent -printf '%U %m %y %P\\n'
        cat /var/lib/byteor/agent/spool/*/data
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if done.returncode == 99 or "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(
            f"no mount namespaces here, or an interpreter for root alone: {done.stderr.strip()}"
        )
    assert done.returncode == 0, done.stderr
    assert "exit 7" in done.stdout and "only root and byteor-agent" in done.stderr
    owners = re.findall(r"^(\d+) (\d+) (.) ", done.stdout, re.M)
    assert len(owners) == 10 and set(owners) == {("61999", "700", "d"), ("61999", "600", "f")}
    assert "root's" in done.stdout and "anybody's" in done.stdout


def test_a_terminal_shows_a_bar_and_an_interrupt_leaves_it_spooled(host: Artifacts) -> None:
    """Where people look, how far it is; Ctrl-C ends the waiting, not the upload."""
    host.plane.fault("artifacts", "delay", seconds=1.5, times=None)
    host.plane.stop()
    host.up()
    data = os.urandom(30 * MIB)
    command = [
        str(BIN / "byteor-agent"),
        "upload",
        str(host.file("a", data)),
        "--kind",
        "snapshot",
        "--wait",
    ]
    command += ["--root", str(host.root)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True)
    seen = b""
    while b"waiting" not in seen:
        seen += os.read(ours, 1000)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and host.waiting() == [out.strip()]
    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    host.plane.restart()
    try:
        while True:
            seen += os.read(ours, 1000)
    except OSError:  # the other end is closed: it has ended
        os.close(ours)
    assert second.communicate(timeout=20)[0] == out and second.returncode == 0
    assert (
        b"stays in the spool" in seen and b"already in the spool" in seen and b"uploaded as" in seen
    )
    assert re.search(rb"\[#* *\] \d+\.\d of 30\.0 MiB", seen), seen
    assert list(host.stored().values()) == [data]


def test_nothing_is_waited_for_when_no_agent_comes(
    host: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--wait` on a host whose agent is down ends with exit 7 and what to do; the artifact
    stays.
    """
    from firstboot.base.errors import LocalFault, TryAgain
    from firstboot.commands import upload

    name = host.put(b"a")
    added = spool.Added(name, spool.NEW, "0" * 64)
    monkeypatch.setattr(upload, "AGENT_BACK_S", 0.5)
    with pytest.raises(LocalFault, match="not running"):
        upload.wait_for(host.layout, added, before=None)
    host.plane.stop()
    host.up()
    host.plane.wait_for(lambda: host.layout.agent_status.exists())
    with pytest.raises(TryAgain, match="not uploaded within 1 s"):
        upload.wait_for(host.layout, added, before=None, limit_s=1.0)
    assert host.waiting() == [name]


def _peak_kib(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_memory_does_not_grow_with_the_artifact(host: Artifacts) -> None:
    """64 MiB leave the agent's peak where 1 MiB left it."""
    agent = host.up(new=True)
    host.put(os.urandom(MIB))
    host.plane.wait_for(lambda: not host.waiting(), limit_s=30)
    before = _peak_kib(agent.pid)
    host.put(os.urandom(64 * MIB))
    wake.wake(host.layout)
    host.plane.wait_for(lambda: not host.waiting(), limit_s=60)
    assert _peak_kib(agent.pid) - before < 4 * 1024
    assert len(host.stored()) == 2


# -- kills


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
        host.plane.wait_for(lambda: wake.wake(host.layout), limit_s=30)
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
