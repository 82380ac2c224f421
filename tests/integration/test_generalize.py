"""Make a host safe to image: each leftover is found, ours goes, and an identity in use stays."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from firstboot.provision.erase import systemjournal
from tests.integration.host import Done, Host, enrolled
from tests.integration.spawn import BIN

IDENTITY = "var/lib/byteor/identity"
TOKEN = "bet_0123456789abcdefghij"
BLOCK = f"#cloud-config\n#byteor-firstboot:\n#  enrollment_token: {TOKEN}\n{{}}\n"
# An enrollment whose answer was lost
INTENT = {
    "v": 1, "key": "8c1d9d1e-9a34-4b8f-8c1e-2f3f0a4c5d6e", "body": "{}", "name": "edge-lost",
    "token_mark": "0" * 16, "token_length": 24, "host": {}, "unanswered": True,
}  # fmt: skip
# Path -> content; what the command itself removes
OURS: dict[str, str | bytes] = {
    f"{IDENTITY}/credentials.sealed": "sealed",
    f"{IDENTITY}/sealing.key": bytes(32),  # of a host before
    f"{IDENTITY}/sealing.cred": "{}",
    f"{IDENTITY}/intent.json": "{}",
    f"{IDENTITY}/marks.json": "{}",
    f"{IDENTITY}/erasure.json": '{"v": 2}',
    f"{IDENTITY}/progress.json": "{}",
    f"{IDENTITY}/intent.json.corrupt-1": "{",
    f"{IDENTITY}/.marks.json.tmp": "{}",
    f"{IDENTITY}/set-aside/1/sealing.key": bytes(32),
    "var/lib/byteor/settings.json": "{}",
    "var/lib/byteor/agent/state.json": "{}",
    "var/lib/byteor/agent/spool/.00000001-0123456789abcdef.new/data": "x",
    "var/lib/byteor/agent/quarantine/00000001-0123456789abcdef/data": "x",
    "var/lib/byteor/agent/inbox/envelope.json": "{}",
    "var/lib/byteor/activation/keyring.json": "{}",
    "var/lib/byteor/activation/outcomes/1.json": "{}",
    "var/lib/byteor/deployments/dep_1-1/spec.kv": "a=1",
    "var/lib/byteor/something/of/a/later/version": "x",
    "run/byteor-agent/status.json": "{}",
    "run/byteor-agent/handover.json": "{}",
    "run/byteor-firstboot/settings.yaml": f"enrollment_token: {TOKEN}\n",
    "etc/byteor/enrollment-token": TOKEN,
}
# What it names only
ALIKE: dict[str, str | bytes] = {
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n",
    "var/lib/systemd/credential.secret": bytes(64),
    "var/lib/systemd/random-seed": bytes(512),
    "boot/efi/loader/random-seed": bytes(32),
    "etc/ssh/ssh_host_ed25519_key": "key",
    "var/lib/cloud/instances/iid-1/datasource": "DataSourceNone",
    "var/lib/cloud/data/instance-id": "iid-1\n",
    # Tokens, where the eraser looks, as the reader reads them
    "var/lib/cloud/seed/nocloud/user-data": BLOCK,
    "var/lib/cloud/seed/nocloud-net/user-data": gzip.compress(BLOCK.encode()),
    "var/lib/cloud/instances/iid-1/obj.pkl": pickle.dumps({"userdata_raw": BLOCK}),
    "var/log/cloud-init.log": f"WARNING: broken line enrollment_token: {TOKEN}",
    "var/log/cloud-init-output.log.1": f'{{"byteor": {{"enrollment_token": "{TOKEN}"}}}}',
    "var/log/journal/0123/system.journal": f"\0MESSAGE=enrollment_token: {TOKEN}\0".encode(),
    "boot/user-data": BLOCK,
    "etc/byteor/firstboot.yaml": f"enrollment_token: {TOKEN}\n",
    # systemd's credentials, which the unit is given (contract 4.2)
    "etc/credstore/byteor.enrollment-token": TOKEN,
    "usr/lib/credstore/byteor.firstboot": f"enrollment_token: {TOKEN}\n",
    "etc/credstore.encrypted/byteor.enrollment-token": "sealed by systemd-creds",
}


@pytest.fixture
def image(tmp_path: Path) -> Host:
    """A tree with our directories and locks, in which nothing is left."""
    host = Host(tmp_path / "root", None)
    host.write("etc/machine-id", "")
    host.write("etc/byteor/firstboot.yaml", "api_base_url: https://api.example\n")
    for name in ("identity", "agent/spool", "agent/quarantine", "agent/inbox", "deployments"):
        host.path(f"var/lib/byteor/{name}").mkdir(parents=True)
    for name in ("identity/lock", "identity/run.lock", "agent/lock", "agent/spool/lock"):
        host.write(f"var/lib/byteor/{name}", "")
    host.path(IDENTITY).chmod(0o700)
    return host


def left(host: Host) -> list[str]:
    """Return what ``--check`` finds, as paths in the tree."""
    done = host.call("byteor-firstboot", "generalize", "--check", "--json")
    rows = json.loads(done.out)["left"]
    assert done.code == (10 if rows else 0), done
    return [row["path"].lstrip("/") for row in rows]


def generalize(host: Host, *words: str) -> Done:
    return host.call("byteor-firstboot", "generalize", *words)


def test_nothing_is_found_where_nothing_is_left(image: Host) -> None:
    """Our directories, locks, defaults, a seed without a token and an erased token may be there."""
    image.write("etc/machine-id", "uninitialized\n")
    image.write("var/lib/cloud/seed/nocloud/user-data", BLOCK.replace(TOKEN, "x" * 24))
    image.write("var/log/cloud-init.log", "enrollment_token: ${enrollment_token}")
    assert left(image) == []
    assert "safe to image" in generalize(image, "--check").out


@pytest.mark.parametrize("name", [*OURS, *ALIKE])
def test_each_leftover_is_found(image: Host, name: str) -> None:
    """By ``--check``, which changes nothing; what is ours is gone after generalize."""
    image.write(name, {**OURS, **ALIKE}[name])
    found = left(image)
    assert any(name == path or name.startswith(f"{path}/") for path in found), found
    assert image.path(name).exists()
    done = generalize(image)
    assert done.code == 0, done
    assert image.path(name).exists() == (name in ALIKE)
    assert left(image) == ([] if name in OURS else found)
    assert (name in ALIKE) == (f"! /{found[0]}: " in done.out), done


def test_a_token_without_its_name_is_found_where_another_file_names_it(image: Host) -> None:
    """As in the log of a script that printed it."""
    image.write("var/log/cloud-init-output.log", f"+ echo {TOKEN}\n")
    assert left(image) == []
    image.write("var/lib/cloud/seed/nocloud/user-data", BLOCK)
    assert "var/log/cloud-init-output.log" in left(image)


@pytest.mark.parametrize("result", ["remains", "kept"])
def test_a_copy_that_is_left_stays_named(image: Host, result: str) -> None:
    """As the receipt has it, whatever form the token has there, until the file is gone."""
    copy = image.write("srv/notes", "a token")
    row = {"path": "/srv/notes", "encodings": {}, "result": result}
    image.write(f"{IDENTITY}/erasure.json", json.dumps({"v": 2, "copies": [row]}))
    image.write(f"{IDENTITY}/marks.json", "{}")
    assert left(image) == ["srv/notes"]
    for _ in range(2):
        assert "! /srv/notes: enrollment token" in generalize(image).out
        assert left(image) == ["srv/notes"]
    copy.unlink()
    assert left(image) == [f"{IDENTITY}/erasure.json", f"{IDENTITY}/marks.json"]
    assert generalize(image).code == 0 and left(image) == []


def test_a_journal_that_kept_a_token_stays_named(image: Host) -> None:
    """As long as the image has one: the receipt ends the row."""
    row = {"path": systemjournal.NAME, "encodings": {}, "result": "kept"}
    image.write(f"{IDENTITY}/erasure.json", json.dumps({"v": 2, "copies": [row]}))
    journal = image.write("var/log/journal/0/system.journal", "compressed")
    assert generalize(image).code == 0 and left(image) == [systemjournal.NAME]
    shutil.rmtree(journal.parents[1])
    assert generalize(image).code == 0 and left(image) == []


def test_a_copy_on_a_disk_that_is_away_stays_named(image: Host) -> None:
    """Its absence is no evidence."""
    row = {"path": "/mnt/notes", "encodings": {}, "result": "remains", "mount_point": "/mnt"}
    image.write(f"{IDENTITY}/erasure.json", json.dumps({"v": 2, "copies": [row]}))
    assert generalize(image).code == 0 and left(image) == ["mnt/notes"]


def unseen(host: Host) -> list[str]:
    """Return the reasons of what ``--check`` could not look at."""
    rows = json.loads(generalize(host, "--check", "--json").out)["left"]
    assert "safe" not in generalize(host, "--check").out
    return [row["what"] for row in rows if row["what"] not in ("machine-id", "enrollment token")]


def test_what_cannot_be_looked_at_is_not_safe(image: Host) -> None:
    """A link of others' making, a file that is too large."""
    image.write("srv/seed/user-data", BLOCK).parent.chmod(0o777)
    image.path("var/lib/cloud").mkdir()
    image.path("var/lib/cloud/seed").symlink_to("/srv/seed")
    assert left(image) == ["var/lib/cloud/seed"]
    assert ["not looked at: a link to a directory" in why for why in unseen(image)] == [True]
    image.path("var/lib/cloud/seed").unlink()
    log = image.write("var/log/journal/0/system.journal", "")
    os.truncate(log, (64 << 20) + 1)
    assert left(image) == ["var/log/journal/0/system.journal"]
    assert [why.startswith("not looked at: ") for why in unseen(image)] == [True]


@pytest.mark.parametrize("spoil", ["mode", "content"])
def test_settings_that_no_host_can_use_are_not_safe(image: Host, spoil: str) -> None:
    """They name files to look at, and every host of the image would end with 4."""
    settings = image.write("etc/byteor/firstboot.yaml", "erase: {paths: [/srv/user-data]}\n")
    if spoil == "mode":
        settings.chmod(0o666)
    else:
        settings.write_bytes(b"!<arch>\ndebian-binary \xff")
    assert left(image) == ["etc/byteor/firstboot.yaml"]
    assert [why.startswith("no host can use it: ") for why in unseen(image)] == [True]


def test_files_named_by_the_image_are_looked_at(image: Host) -> None:
    """Those of erase.paths."""
    image.write("etc/byteor/firstboot.yaml", "erase: {paths: [/srv/user-data]}\n")
    image.write("srv/user-data", BLOCK)
    assert left(image) == ["srv/user-data"]


def test_links_of_the_agents_directory_lead_nowhere(image: Host, tmp_path: Path) -> None:
    """The agent can make one: it goes, and not what it leads to, inside the tree or outside."""
    outside = tmp_path / "outside"
    for directory in (outside, image.path("srv")):
        (directory / "00000001-0123456789abcdef").mkdir(parents=True)
    for name, target in (("inbox", str(outside)), ("quarantine", "/srv")):
        link = image.path(f"var/lib/byteor/agent/{name}")
        link.rmdir()
        link.symlink_to(target)
    links = ["var/lib/byteor/agent/inbox", "var/lib/byteor/agent/quarantine"]
    assert left(image) == [*links, "srv"]  # what it leads to is named: artifacts on another disk
    done = generalize(image)
    assert done.code == 0 and "! /srv: where /var/lib/byteor/agent/quarantine leads" in done.out
    assert left(image) == []
    assert [*outside.iterdir()] != [] and [*image.path("srv").iterdir()] != []


# -- an enrolled host


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    return enrolled(tmp_path / "root", control_plane, heartbeat_interval_s=5)


def agent_id(host: Host) -> str:
    return str(host.plane.agents()[-1]["agent_id"])


def test_an_enrolled_host_becomes_one_that_never_was(host: Host) -> None:
    """It names the agent that stays, and a fresh token then enrolls another."""
    first = agent_id(host)
    done = generalize(host)
    assert done.code == 0 and f"agent {first} " in done.out, done
    assert left(host) == ["etc/machine-id"]
    assert host.path("etc/byteor/firstboot.yaml").exists()
    assert host.run().code == 3
    host.token(host.mint())
    assert host.run().code == 0
    assert agent_id(host) != first


def test_secrets_are_overwritten_before_they_go(host: Host) -> None:
    """Each read through a descriptor of before holds zeros: freed blocks keep nothing."""
    host.write(f"{IDENTITY}/set-aside/1/sealing.key", b"k" * 32, 0o400)
    host.write("run/byteor-firstboot/settings.yaml", BLOCK, 0o600)
    host.token(TOKEN)
    names = ("credentials.sealed", "sealing.key", "marks.json", "set-aside/1/sealing.key")
    paths = [f"{IDENTITY}/{name}" for name in names]
    paths += ["run/byteor-firstboot/settings.yaml", "etc/byteor/enrollment-token"]
    with ExitStack() as stack:
        held = [stack.enter_context(host.path(path).open("rb")) for path in paths]
        assert generalize(host).code == 0
        for path, stream in zip(paths, held):
            data = stream.read()
            assert data and not data.strip(b"\0"), path


def test_json_names_the_same(host: Host) -> None:
    """One document, for image builders; the agent also before its identity goes."""
    first = agent_id(host)
    done = generalize(host, "--json")
    found = json.loads(done.out)
    assert first in found["agent"] and found["removed"] > 3 and found["begun"] is None
    assert found["agent"] in done.err
    assert [row["path"] for row in found["left"]] == ["/etc/machine-id"]


@pytest.fixture
def unchangeable(tmp_path: Path, control_plane: Any) -> Iterator[tuple[Host, Path]]:
    """Enroll with a token of which a note in an immutable file stays."""
    host = Host(tmp_path / "root", control_plane)
    host.defaults(erase={"paths": ["/opt/notes"]})
    token = host.mint()
    host.token(token)
    path = host.write("opt/notes", f"a line\nnote {token}\n")
    if subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False).returncode:
        pytest.skip("needs root and a file system with the immutable attribute")
    try:
        assert host.run().code == 9
        yield host, path
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


def test_a_copy_that_remains_is_named_until_it_is_erased(unchangeable: tuple[Host, Path]) -> None:
    """The marks that stay tell `erase` the token, on a host that has no identity any more."""
    host, path = unchangeable
    assert generalize(host).code == 0 and not host.enrolled()
    assert left(host) == ["etc/machine-id", "opt/notes"]
    assert host.call("byteor-firstboot", "erase").code == 9
    assert left(host) == ["etc/machine-id", "opt/notes"]
    subprocess.run(["chattr", "-i", str(path)], check=True)
    assert host.call("byteor-firstboot", "erase").code == 0
    assert "bet_" not in path.read_text()
    assert generalize(host).code == 0 and left(host) == ["etc/machine-id"]


def test_a_token_file_of_the_callers_stays_named(tmp_path: Path, control_plane: Any) -> None:
    """Until it is gone: the receipt alone tells of it."""
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    path = host.write("opt/token", host.mint(), 0o600)
    assert host.run("--token-file", str(path)).code == 0
    assert generalize(host).code == 0 and left(host) == ["etc/machine-id", "opt/token"]
    path.unlink()
    assert generalize(host).code == 0 and left(host) == ["etc/machine-id"]


def test_artifacts_that_wait_are_not_thrown_away(host: Host, tmp_path: Path) -> None:
    """Unless that is said."""
    (tmp_path / "a").write_text("what happened")
    done = host.call("byteor-agent", "upload", str(tmp_path / "a"), "--kind", "diagnostic")
    assert done.code == 0, done
    before = host.sealed()
    done = generalize(host)
    assert done.code == 7 and "1 artifacts wait" in done.err and host.sealed() == before
    assert generalize(host, "--force").code == 0
    assert left(host) == ["etc/machine-id"]


def test_a_host_in_service_is_asked_for(host: Host) -> None:
    """Without a terminal only ``--yes`` takes it out of service; the agent is stopped."""
    agent = host.agent()
    try:
        assert host.plane.wait_for(lambda: host.plane.requests("heartbeat"))
        done = generalize(host)
        assert done.code == 7 and "--yes" in done.err and host.enrolled()
        assert generalize(host, "--yes").code == 0
        assert agent.wait(timeout=20) in (0, -signal.SIGTERM)
    finally:
        agent.kill()
        agent.communicate()
    assert left(host) == ["etc/machine-id"]


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_no_and_end_of_input_are_no_success(image: Host, answer: str) -> None:
    """On a terminal: the question is on stderr, nothing goes, and what follows `&&` is not run."""
    intent = image.write(f"{IDENTITY}/intent.json", json.dumps(INTENT), 0o600)
    ours, theirs = pty.openpty()
    try:
        process = image.start(
            "byteor-firstboot", "generalize", "--json", stdin=theirs, start_new_session=True
        )
        os.write(ours, answer.encode() or b"\x04")
        out, err = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (process.returncode, out) == (7, ""), err
    assert "[y/N]" in err and "nothing is removed" in err and intent.exists()


def test_an_enrollment_without_an_answer_is_named(image: Host) -> None:
    """The agent that it may have made is in no other place; --yes as where an agent runs."""
    image.write(f"{IDENTITY}/intent.json", json.dumps(INTENT), 0o600)
    done = generalize(image)
    assert done.code == 7 and "--yes" in done.err and "edge-lost" in done.err
    done = generalize(image, "--yes", "--json")
    assert done.code == 0 and "edge-lost" in done.err
    assert "edge-lost" in json.loads(done.out)["begun"]
    assert left(image) == []


def test_a_spool_that_is_a_mount_point_is_emptied(image: Host) -> None:
    """As an operator's larger disk is."""
    spool = image.path("var/lib/byteor/agent/spool")
    script = (
        f"mount -t tmpfs none {spool} && mkdir {spool}/.x.new && touch {spool}/.x.new/data &&"
        f" byteor-firstboot generalize --root {image.root} && ls -A {spool}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={"PATH": f"{BIN}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("directories\n"), done


def test_unenroll_names_it_too(image: Host) -> None:
    """It wipes the intent as well."""
    image.write(f"{IDENTITY}/intent.json", json.dumps(INTENT), 0o600)
    image.write(f"{IDENTITY}/credentials.sealed", "sealed", 0o600)
    done = image.call("byteor-firstboot", "unenroll")
    assert done.code == 0 and "enrollment as edge-lost was never answered" in done.out


# -- what cloud-init clean calls


def aside(host: Host) -> None:
    host.write(f"{IDENTITY}/set-aside/1/credentials.sealed", "of before", 0o600)


def test_clean_prints_no_document(image: Host) -> None:
    assert generalize(image, "--stale", "--json").code == 2


def test_clean_keeps_an_identity_that_opens_here(host: Host) -> None:
    """And its settings, marks and receipt; what was set aside goes."""
    aside(host)
    before = {path for path in host.path("var/lib/byteor").rglob("*") if "aside" not in str(path)}
    done = generalize(host, "--stale")
    assert done.code == 0 and f"stays enrolled as agent {agent_id(host)}" in done.out
    assert {*host.path("var/lib/byteor").rglob("*")} == before
    assert host.call("byteor-firstboot", "unseal").code == 0


@pytest.mark.parametrize("state", ["foreign", "unreadable"])
def test_clean_removes_an_identity_that_is_not_this_hosts(host: Host, state: str) -> None:
    """With its key; a spent token stays known, so that it is not presented again."""
    aside(host)
    if state == "foreign":
        host.write("etc/machine-id", "f" * 32 + "\n")
    else:
        host.write(f"{IDENTITY}/sealing.key", bytes(32), 0o400)
    done = generalize(host, "--stale")
    assert done.code == 0 and "enrolled" not in done.out, done
    names = {path.name for path in host.path(IDENTITY).iterdir()}
    assert not names & {"credentials.sealed", "sealing.key", "set-aside"}
    assert "marks.json" in names


def test_clean_removes_nothing_when_it_cannot_tell(host: Host) -> None:
    """A key with a wrong mode is a local fault, and no proof."""
    aside(host)
    key, before = host.path(f"{IDENTITY}/sealing.key"), host.sealed()
    key.chmod(0o644)
    assert generalize(host, "--stale").code == 7
    assert host.sealed() == before and key.exists() and host.path(f"{IDENTITY}/set-aside").exists()


def test_clean_leaves_an_enrollment_that_is_under_way(host: Host) -> None:
    """Its intent repeats the same request: without it a second agent would come."""
    for name in ("credentials.sealed", "sealing.key"):
        host.path(f"{IDENTITY}/{name}").unlink()
    intent = host.write(f"{IDENTITY}/intent.json", "{}", 0o600)
    assert generalize(host, "--stale").code == 0 and intent.exists()
