"""`byteor-agent upload`: what it takes, what it refuses, who may, and how it looks."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from firstboot.agent.artifacts import spool
from tests.integration.artifacts import MIB, Artifacts, artifacts_host
from tests.integration.spawn import BIN
from tests.unit.test_packing import HIDDEN, PLACES, everything, fill, members

host = artifacts_host


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
    host.plane.wait_for(lambda: len(host.plane.artifacts()) == 4)
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
    host.plane.wait_for(lambda: host.plane.artifacts())
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
        host.plane.wait_for(lambda: not host.waiting())
        assert len(host.stored()) == 1
        os.unlink(directory / "ballast")
        assert host.upload(host.files / "b", "snapshot", "--wait").code == 0
        assert len(host.plane.requests("artifacts")) == 2
        host.down()
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


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
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and host.waiting() == [out.strip()]
    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    host.plane.restart()
    try:
        while True:
            seen += os.read(ours, 1000)
    except OSError:  # the other end is closed: it has ended
        os.close(ours)
    assert second.communicate(timeout=60)[0] == out and second.returncode == 0
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
