"""Make first boot fail in each way, and read from `status` alone what to do; wait and check."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from firstboot import cli
from firstboot.api import answers
from firstboot.api.answers import KeyRefused
from firstboot.api.client import Answer
from firstboot.base import log
from firstboot.base.clock import Clock
from firstboot.base.errors import LocalFault, TryAgain
from firstboot.base.layout import Layout
from firstboot.commands import history, services, unenroll
from firstboot.commands import status as commands_status
from firstboot.commands.status import describe
from firstboot.provision import preflight, progress
from firstboot.provision.run import FirstBoot, Options, run
from firstboot.provision.sources import Inputs
from tests.integration.host import Done, Host
from tests.integration.spawn import BIN

PROGRESS = "var/lib/byteor/identity/progress.json"


def status(host: Host, *words: str, **keywords: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        host.call("byteor-firstboot", "status", "--json", *words, **keywords).out
    )
    return found


@contextmanager
def at_work(host: Host, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A `run` that has met its first trouble."""
    process = host.start("byteor-firstboot", "run", *words)
    try:
        host.plane.wait_for(host.path(PROGRESS).exists)
        yield process
    finally:
        process.kill()
        process.communicate()


TRANSIENT = {  # the others stand in the table of failures
    "refused": ({"api_base_url": "https://127.0.0.1:9"}, None, "connection refused", "firewall"),
    "503": ({}, ("problem", {"status": 503, "code": "busy"}), "503", "retried automatically"),
}


@pytest.mark.parametrize("case", TRANSIENT)
def test_status_tells_what_first_boot_waits_for(host: Host, case: str) -> None:
    """The last error in full, its hint, since when, how often, what comes next."""
    settings, fault, said, hint = TRANSIENT[case]
    host.defaults(**settings)
    host.token(host.mint())
    if fault is not None:
        host.plane.fault("enroll", fault[0], times=99, **fault[1])
    with at_work(host):
        shown = status(host)
        page = host.call("byteor-firstboot", "status").out
    state = "enrolling" if fault is not None else "token_waiting"
    assert shown["state"] == state and said in shown["problem"], shown
    assert hint in shown["hint"], shown
    told = shown["progress"]
    assert told["attempts"] >= 1 and told["next_attempt_at"] and told["refusal"] is None
    flat = " ".join(page.split())
    assert said in flat and hint in flat and "attempt" in flat and "no run is at work" not in flat
    assert all(len(line) <= 100 for line in page.splitlines() if "/" not in line), page
    # The process was killed: nobody goes on until somebody starts it.
    shown = status(host)
    assert shown["problem"].startswith("no run is at work; the last one met: ")
    assert f"byteor-firstboot run --root {host.root}" in shown["hint"]


def test_what_is_written_while_a_run_waits_is_used_at_once(host: Host) -> None:
    """Not at the end of a minute; nothing is tried for a file that says the same."""
    host.defaults()
    host.token(host.mint())
    host.plane.fault(
        "enroll",
        "status",
        times=9,
        status=404,
        body='{"message": "no Route matched"}',
        content_type="application/json",
    )
    with at_work(host) as process:
        host.plane.wait_for(host.enrollments)
        host.defaults()
        time.sleep(3.0)  # several looks at its sources
        assert len(host.enrollments()) == 1
        host.plane.clear_faults()
        host.defaults(name="edge-8")
        assert process.wait(60) == 0
    assert [agent["name"] for agent in host.plane.agents()] == ["edge-node-01"]  # its intent stands


def test_retry_after_is_kept_whatever_is_written(host: Host) -> None:
    """Only another address is another control plane."""
    host.defaults()
    host.token(host.mint())
    wait = {"Retry-After": "600"}
    host.plane.fault("enroll", "problem", times=9, status=429, code="busy", headers=wait)
    with at_work(host) as process:
        host.plane.wait_for(host.enrollments)
        host.defaults(name="edge-8", heartbeat_interval_s=60)
        time.sleep(4.0)  # several looks at its sources
        assert len(host.enrollments()) == 1 and process.poll() is None
        host.plane.clear_faults()
        host.defaults(api_base_url=host.plane.base_url.replace("127.0.0.1", "localhost"))
        assert process.wait(60) == 0
    assert len(host.plane.agents()) == 1


REFUSALS = [
    (401, "token_expired", "has expired: mint a new one"),
    (403, "wrong_environment", "mint a new one"),
    (404, "no_such_environment", "check org_id, project_id and environment_id"),
    (409, "name_taken", "choose another, or delete that agent"),
    (410, "token_used", "was used: mint a new one"),
    (422, "bad_name", "check the configured name"),
]


@pytest.mark.parametrize(("code", "word", "hint"), REFUSALS)
def test_status_keeps_what_the_control_plane_refused(
    host: Host, code: int, word: str, hint: str
) -> None:
    """Status, code and its own hint; a wrong id or a taken name is no reason for a new token."""
    host.defaults(name="edge-7")
    host.token(host.mint())
    host.plane.fault("enroll", "problem", times=1, status=code, code=word)
    assert host.run().code == 5
    again = host.run()  # of the same boot: not presented
    assert again.code == 5 and word in again.err and len(host.enrollments()) == 1
    shown = status(host)
    refusal = shown["progress"]["refusal"]
    assert shown["state"] == "refused" and f"{code} ({word}" in shown["problem"], shown
    assert hint in shown["hint"] and shown["hint"] in again.err
    assert (refusal["status"], refusal["code"]) == (code, word) and "token_mark" not in refusal
    if code in (404, 409, 422):
        assert "mint" not in shown["hint"] and "byteor-firstboot run --again" in shown["hint"]
    # Another token is another story; and the end of it.
    host.token(host.mint())
    shown = status(host)
    assert shown["state"] == "token_waiting" and shown["progress"] is None
    assert shown["problem"] == "no run is at work"
    assert host.run().code == 0
    assert not host.path(PROGRESS).exists() and status(host)["progress"] is None


def test_a_fault_of_this_host_is_kept_for_status(host: Host) -> None:
    """Exit 7, whatever it is: here the clock, before this package was built."""
    host.defaults()
    host.token(host.mint())
    code = (
        "import os, sys; os.environ.pop('PYTHONPATH', None);"
        "from firstboot import cli; from firstboot.base import clock;"
        "clock.time.time = lambda: 1e8; sys.exit(cli.firstboot_main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "--root", str(host.root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done
    shown = status(host)
    assert shown["state"] == "token_waiting" and "before this package was built" in shown["problem"]
    assert "set the clock" in shown["hint"]
    assert host.run().code == 0 and status(host)["problem"] is None


def test_the_journal_says_when_a_trouble_begins_grows_and_ends(host: Host) -> None:
    """One line for each of its attempts 1, 2, 4 and so on, and one when it is over."""
    host.defaults()
    host.token(host.mint())
    host.plane.fault("enroll", "problem", times=3, status=503, code="busy")
    done = host.run()
    assert done.code == 0, done
    lines = done.err.splitlines()
    troubles = [line for line in lines if "503" in line and "attempt=" in line]
    assert [line.split("attempt=")[1].split()[0] for line in troubles] == ["1", "2"], done.err
    assert "hint=" in troubles[0]
    assert len([line for line in lines if "presenting the token" in line]) == 1
    assert [line for line in lines if "first boot goes on" in line and "after_attempts=3" in line]


def test_systemd_is_told_in_a_few_words(host: Host, tmp_path: Path) -> None:
    """``STATUS=`` of `systemctl status`; never with the token in it."""
    heard: list[str] = []
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "notify"))

    def hear() -> None:
        while True:
            heard.append(server.recv(4096).decode())

    threading.Thread(target=hear, daemon=True).start()
    host.defaults()
    token, environ = host.mint(), {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    host.token(token)
    body = json.dumps({"code": "no_scope", "detail": f"not with {token}"})
    kind = "application/problem+json"
    host.plane.fault("enroll", "status", times=1, status=403, body=body, content_type=kind)
    assert host.run(env=environ).code == 5
    assert token not in host.path(PROGRESS).read_text()
    host.plane.fault("enroll", "problem", times=1, status=503, code="busy")
    assert host.run("--again", env=environ).code == 0
    host.plane.wait_for(lambda: "STATUS=enrolled" in heard)
    told = [line for line in heard if "under way" not in line]
    assert told[0].startswith("STATUS=refused: ") and "403" in told[0]
    assert told[1].startswith("STATUS=attempt 1, next in ") and "503" in told[1]
    assert told[2] == "STATUS=enrolled"
    assert all(len(line) < 200 and token not in line for line in heard)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"v": 1}', '{"v": 1, "doing": 7}'])
def test_a_damaged_file_is_as_if_there_were_none(host: Host, content: str) -> None:
    """It is for display alone, and written anew."""
    host.defaults()
    host.token(host.mint())
    host.write(PROGRESS, content, 0o600)
    host.path("var/lib/byteor/identity").chmod(0o700)
    assert status(host)["progress"] is None
    assert host.run().code == 0 and not host.path(PROGRESS).exists()


def test_a_look_at_the_lock_writes_nothing(host: Host) -> None:
    """No file is made, and a run that holds it is seen."""
    layout = Layout(host.root)
    assert not progress.at_work(layout) and not layout.identity.exists()
    host.defaults(api_base_url="https://127.0.0.1:9")
    host.token(host.mint())
    with at_work(host):
        assert progress.at_work(layout)
    assert not progress.at_work(layout)


# -- --wait and --check


def check(host: Host, *words: str, program: str = "byteor-firstboot") -> Done:
    return host.call(program, "status", *words)


def test_check_ends_as_run_would(host: Host) -> None:
    """3 without a token, 4 for settings, 10 while under way, 5 when refused, 8 for a clone."""
    assert check(host, "--check").code == 3
    host.write("etc/byteor/firstboot.yaml", "[")
    assert check(host, "--check").code == 4
    host.defaults()
    host.token(host.mint())
    done = check(host, "--check")
    assert done.code == 10 and "no run is at work" in done.err, done
    host.plane.fault("enroll", "problem", times=1, status=404, code="no_such_environment")
    assert host.run().code == 5
    done = check(host, "--check")
    assert done.code == 5 and "--again" in done.err
    assert host.run("--again").code == 0
    done = check(host, "--check")
    assert done.code == 10 and "not run since boot" in done.err, done
    assert check(host, "--check", program="byteor-agent").code == 10
    host.write("etc/machine-id", "f" * 32 + "\n")
    assert check(host, "--check").code == 8


def test_wait_ends_at_once_where_waiting_would_not_help(host: Host) -> None:
    """Refused, invalid and foreign; but not without a token, which may come late."""
    host.write("etc/byteor/firstboot.yaml", "[")
    assert check(host, "--wait").code == 4
    host.defaults()
    done = check(host, "--wait", "0.1", "--json")
    assert done.code == 6 and json.loads(done.out)["state"] == "no_token", done
    assert "not online after 0 s" in done.err and "hint: " in done.err
    done = check(host, "--wait", "0.1", "--json", program="byteor-agent")
    assert done.code == 6 and json.loads(done.out)["state"] == "never_ran"
    host.token(host.mint())
    host.plane.fault("enroll", "problem", times=1, status=401, code="token_unknown")
    assert host.run().code == 5
    assert check(host, "--wait").code == 5


def test_a_terminal_shows_what_is_waited_for(host: Host) -> None:
    """One line that is written over, and gone at the end; nothing of it where stderr is a file."""
    host.defaults()
    ours, theirs = pty.openpty()
    words = ("byteor-firstboot", "status", "--wait", "1", "--root", str(host.root))
    command = [str(BIN / words[0]), *words[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    said = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 6 and said.startswith("\rwaiting: no enrollment token"), said
    assert "\r \r" in re.sub(" +", " ", said) and b"waiting" not in done.stdout
    assert "waiting" not in check(host, "--wait", "1").err


def test_a_host_that_is_not_enrolled_has_a_document_too(host: Host) -> None:
    """JSON in every state; the exit code stays 3."""
    done = check(host, "--json", program="byteor-agent")
    assert done.code == 3 and json.loads(done.out)["state"] == "never_ran"
    done = check(host, "--check", program="byteor-agent")
    assert done.code == 3 and done.out == ""


def test_both_wait_until_the_agent_beats(host: Host) -> None:
    """They wait on files; a revoked key ends the wait at once, with its refusal."""
    host.defaults(heartbeat_interval_s=5)
    host.token(host.mint())
    waiting = [
        host.start(program, "status", "--wait", "60")
        for program in ("byteor-firstboot", "byteor-agent")
    ]
    assert host.run().code == 0
    agent = host.start("byteor-agent", "run")
    try:
        for process in waiting:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, out + err
        for program in ("byteor-firstboot", "byteor-agent"):
            assert check(host, "--check", program=program).code == 0
        host.plane.revoke(host.plane.agents()[0]["agent_id"])
        host.plane.wait_for(lambda: check(host, "--check").code == 5)
        done = check(host, "--wait")
        assert done.code == 0 or "key_revoked" in done.err
    finally:
        agent.terminate()
        agent.communicate(timeout=60)
        for process in waiting:
            process.kill()
            process.communicate()


def test_without_root_the_hint_is_to_be_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to open the identity's directory to this user; and there is nothing to wait for."""

    def denied(*arguments: Any, **keywords: Any) -> None:
        raise LocalFault("cannot read it: permission denied", hint="give user id 65534 access")

    monkeypatch.setattr(commands_status, "look", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    document, stop = describe(Layout(), Inputs(), clock=Clock())
    assert document["state"] == "unknown" and document["hint"] == "run as root"
    assert stop is not None and stop.exit_code == 7


# -- reenroll, unenroll, the audit trail


def test_a_bare_token_goes_where_the_identity_points(host: Host, tmp_path: Path) -> None:
    """Address, ids, CA and proxy of the identity, whatever a source says now; the old agent is named."""
    host.user_data(host.comment_block(host.mint()))
    assert host.run().code == 0
    first = host.plane.agents()[0]["agent_id"]
    answer = host.path("var/lib/byteor/agent/inbox/keysets.json")
    answer.parent.mkdir(parents=True)
    answer.write_text('{"key_sets": ["old"]}')
    remembered = [host.path(f"var/lib/byteor/agent/{name}.json") for name in ("latest", "keysets")]
    for path in remembered:
        path.write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.1)
        wrong = f"https://127.0.0.1:{elsewhere.getsockname()[1]}"
        host.write(
            "etc/byteor/firstboot.yaml", json.dumps({"api_base_url": wrong, "org_id": "other"})
        )
        host.user_data(host.comment_block(host.mint(), api_base_url=wrong))
        environ = {"BYTEOR_API_BASE_URL": wrong}
        words = ("byteor-firstboot", "reenroll", "--token-file", "-")
        done = host.call(*words, text=host.mint(), env=environ)
        assert done.code == 0, done
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    assert f"agent {first} is superseded: delete it at the control plane" in done.err
    # What the former agent was told starts nothing of the new one's.
    assert json.loads(answer.read_text()) == {"key_sets": []}
    assert not any(path.exists() for path in remembered)
    agents = {agent["agent_id"] for agent in host.plane.agents()}
    shown = status(host)
    assert len(agents) == 2 and shown["agent_id"] in agents - {first}
    assert shown["plane"] == host.plane.base_url
    # What came from user data stays what no later boot takes from the image's file.
    host.user_data("#cloud-config\n")
    assert host.run().code == 0 and status(host)["plane"] == host.plane.base_url
    settings = json.loads(host.path("var/lib/byteor/settings.json").read_text())
    assert settings["ca_certificates"] == host.plane.ca_pem
    assert settings["environment_id"] == host.plane.environment_id


def test_a_bare_token_without_an_identity_says_what_is_missing(host: Host) -> None:
    """It names no control plane; the hint has the place for all of it."""
    done = host.call("byteor-firstboot", "reenroll", "--token-file", "-", text=host.mint())
    assert done.code == 4 and "settings are missing" in done.err
    assert "/run/byteor-firstboot/settings.yaml" in done.err


def test_a_refused_key_leads_to_the_command() -> None:
    """As it is typed, with the way to give a token."""
    answer = Answer(401, True, False, "application/problem+json", None, None, None)
    with pytest.raises(KeyRefused) as caught:
        answers.check(answer, doing="heartbeat", scope="agent:heartbeat")
    assert "byteor-firstboot reenroll --token-file -" in (caught.value.hint or "")


def test_unenroll_stops_the_agent_and_names_it(host: Host) -> None:
    """Nothing that opens stays; marks do, so that the spent token is not presented again."""
    host.user_data(host.comment_block(host.mint()))
    spent = host.path("var/lib/cloud/instance")
    assert spent.is_symlink()
    block = host.path("var/lib/cloud/seed/nocloud/user-data").read_bytes()
    assert host.run().code == 0
    agent_id = host.plane.agents()[0]["agent_id"]
    agent = host.start("byteor-agent", "run")
    try:
        host.plane.wait_for(host.path("run/byteor-agent/status.json").exists)
        done = host.call("byteor-firstboot", "unenroll")
        assert done.code == 0 and f"agent {agent_id} (" in done.out, done
        assert "stays in the agent list until it is deleted there" in done.out
        assert agent.wait(timeout=20) == 0
    finally:
        agent.kill()
        agent.communicate()
    identity = host.path("var/lib/byteor/identity")
    assert sorted(path.name for path in identity.iterdir()) == [
        "erasure.json", "lock", "marks.json", "run.lock",
    ]  # fmt: skip
    assert not host.path("var/lib/byteor/settings.json").exists()
    assert host.call("byteor-firstboot", "unenroll").code == 3
    host.user_data(block)
    presented = len(host.enrollments())
    assert host.run().code == 5 and len(host.enrollments()) == presented
    host.user_data(host.comment_block(host.mint()))
    assert host.run().code == 0


def test_unenroll_waits_for_a_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reenrolls would seal a new identity behind its back."""
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    host.plane.fault("enroll", "problem", times=99, status=503, code="busy")
    monkeypatch.setattr(unenroll, "WAIT_S", 0.1)
    process = host.start("byteor-firstboot", "reenroll", "--token-file", "-", stdin=subprocess.PIPE)
    try:
        assert process.stdin is not None
        process.stdin.write(host.mint())
        process.stdin.close()
        process.stdin = None
        host.plane.wait_for(host.path(PROGRESS).exists)
        with pytest.raises(TryAgain, match="a run is at work"):
            unenroll.unenroll_command(argparse.Namespace(layout=Layout(host.root)))
    finally:
        process.kill()
        process.communicate()
    assert host.enrolled()


@pytest.mark.parametrize("journal", [True, False])
def test_what_root_changes_leaves_one_line(
    journal: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On stderr where that is the journal, else by syslog; with the caller behind sudo."""
    sent: list[str] = []
    monkeypatch.setattr(log.syslog, "syslog", lambda priority, text: sent.append(text))
    monkeypatch.setenv("SUDO_UID", "1000")
    facts = os.fstat(sys.stderr.fileno())
    stream = f"{facts.st_dev}:{facts.st_ino}" if journal else "1:2"
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    log.audit(Layout(), "trust --reset")
    log.audit(Layout(Path("/tmp")), "trust --reset")
    said = capfd.readouterr().err.splitlines() if journal else sent
    wanted = f"audit: trust --reset uid={os.getuid()} sudo_uid=1000"
    assert len(said) == 1 and wanted in said[0]
    assert bool(sent) is not journal


AUDITED = [
    (cli.firstboot_main, ["trust", "--reset"], "trust --reset"),
    (cli.firstboot_main, ["erase"], "erase"),
    (cli.firstboot_main, ["erase", "--refused"], "erase --refused"),
    (cli.firstboot_main, ["reenroll"], "reenroll"),  # exit 3: the try is what counts
    (cli.agent_main, ["retry", "00000001-0123456789abcdef"], "retry 00000001-0123456789abcdef"),
    (cli.agent_main, ["retry", "dep_1"], "retry dep_1-1"),
    (cli.firstboot_main, ["unenroll"], "unenroll"),
    (cli.firstboot_main, ["generalize", "--force", "--yes"], "generalize --force"),
    (cli.firstboot_main, ["status"], None),
    (cli.firstboot_main, ["trust"], None),
    (cli.firstboot_main, ["generalize", "--check"], None),
    (cli.agent_main, ["deployments"], None),
]


def test_every_command_that_changes_a_host_is_audited(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each, in the words of the command; none for a look."""
    said: list[str] = []
    monkeypatch.setattr(log, "audit", lambda layout, action: said.append(action))
    monkeypatch.setattr(history, "retry_deployment", lambda layout, named: f"{named}-1")
    monkeypatch.setattr(services, "activate_command", lambda arguments: 0)
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    host.path(f"var/lib/byteor/agent/quarantine/{AUDITED[4][1][1]}").mkdir(parents=True)
    for program, words, wanted in AUDITED:
        program([*words[:1], "--root", str(host.root), *words[1:]])
        assert said == ([wanted] if wanted is not None else []), words
        said.clear()


# -- without the agent's unit


def test_a_missing_unit_is_said_before_the_token_goes_and_keeps_nothing_from_being_erased(
    host: Host, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Enrolled, marked and erased all the same; exit 7, and `status` says what is missing."""
    host.defaults()
    host.token(host.mint())
    layout = Layout(host.root)
    asked: list[int] = []

    def missing(layout: Layout) -> None:
        asked.append(len(host.enrollments()))
        raise LocalFault("byteor-agent.service is not installed", hint="install it")

    def no_unit(self: Any, *, restart: bool) -> None:
        raise LocalFault("systemd does not start byteor-agent.service", hint="install it")

    monkeypatch.setattr(preflight, "check_agent", missing)
    monkeypatch.setattr(FirstBoot, "_start_agent", no_unit)
    with pytest.raises(LocalFault, match="does not start"):
        run(layout, Inputs(), Options())
    assert asked == [0] and "is not installed" in capfd.readouterr().err
    assert host.enrolled() and not host.path("etc/byteor/enrollment-token").exists()
    assert not layout.intent.exists()
    document, _ = describe(layout, Inputs(), clock=Clock())
    assert document["state"] == "enrolled" and "does not start" in document["problem"]


@pytest.mark.parametrize("said", ["not-found", "loaded", None])
def test_preflight_asks_systemd_for_the_agents_unit(
    said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a plain answer that there is none counts: "could not ask" is not "it is missing"."""

    def command(*words: str, **keywords: Any) -> str:
        if said is None:
            raise LocalFault("systemd does not answer")
        return f"LoadState={said}\n"

    monkeypatch.setattr(preflight.systemd, "command", command)
    monkeypatch.setattr(preflight.systemd, "booted", lambda: True)
    if said == "not-found":
        with pytest.raises(LocalFault, match="is not installed"):
            preflight.check_agent(Layout())
    else:
        preflight.check_agent(Layout())
