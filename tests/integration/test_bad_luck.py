"""Bad luck: lost replies, refusals, outages, kills, full disks. Each ends with one agent, or says
what to do.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from firstboot.api.connection import ProxyRefused
from firstboot.base.clock import Clock
from firstboot.base.errors import Refused, TryAgain
from firstboot.base.layout import Layout
from firstboot.commands.status import describe
from firstboot.provision import run as first_boot
from firstboot.provision import waiting
from firstboot.provision.sources import Inputs
from tests.boot.scan import scan_tree
from tests.integration.host import Host
from tests.integration.spawn import BIN

SLACK_S = 20.0  # of a busy machine, beyond a limit of seconds; a request has 60 s otherwise


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Iterator[Host]:
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    yield host


def test_a_proxy_that_refuses_the_password_is_asked_ever_more_seldom(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lock a directory account: at most some ten attempts in the first half hour."""
    waited: list[float] = []

    class Largest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    monkeypatch.setattr(waiting.Pause, "wait", lambda pause, length, **_: waited.append(length))
    monkeypatch.setattr(waiting, "rng", Largest)
    run = first_boot.FirstBoot(Layout(host.root), Inputs(), first_boot.Options())
    for _ in range(9):
        run._wait(ProxyRefused("407"))
    run._wait(TryAgain("503"))
    assert waited == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0, 600.0, 1.0]


# -- answers: contract 2.1, row by row

REFUSALS = [
    (400, "invalid_request"),
    (401, "token_unknown"),
    (403, "scope_missing"),
    (404, "environment_unknown"),
    (409, "name_taken"),
    (409, "token_used"),
    (410, "token_used"),
    (413, "too_large"),
    (422, "invalid_request"),
]


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_a_refusal_is_exit_5_once_a_boot(host: Host, status: int, code: str) -> None:
    """One line and a hint; the token kept and not presented again in this boot; --again presents it
    with a new key.
    """
    host.defaults(name="edge-1")
    token = host.mint()
    host.token(token)
    host.plane.fault("enroll", "problem", status=status, code=code)
    done = host.run()
    assert done.code == 5, done
    assert done.err.count("error:") == 1 and done.err.count("hint:") == 1
    assert str(status) in done.err and token not in done.err
    assert host.run().code == 5
    assert len(host.enrollments()) == 1
    assert host.path("etc/byteor/enrollment-token").read_text().strip() == token
    assert host.run("--again").code == 0
    keys = [request["headers"]["idempotency-key"] for request in host.enrollments()]
    assert len(keys) == len(set(keys)) == 2


@pytest.mark.parametrize("status", [400, 422])
def test_a_plane_that_does_not_know_hostname_is_asked_once_without(host: Host, status: int) -> None:
    """After a 400 or 422 to the host name: one more request with an empty body and another key."""
    host.token(host.mint())
    host.plane.fault("enroll", "problem", status=status, code="invalid_request")
    assert host.run().code == 0
    bodies = [request["body"] for request in host.enrollments()]
    assert ["hostname" in str(body) for body in bodies] == [True, False]
    assert len({request["headers"]["idempotency-key"] for request in host.enrollments()}) == 2


TRANSIENT = [
    ("problem", {"status": 408, "code": "x"}),
    ("problem", {"status": 409, "code": "in_progress"}),
    ("problem", {"status": 425, "code": "x"}),
    ("problem", {"status": 429, "code": "rate_limited", "headers": {"Retry-After": "1"}}),
    ("problem", {"status": 500, "code": "x"}),
    ("problem", {"status": 503, "code": "x"}),
    ("problem", {"status": 418, "code": "x"}),
    ("status", {"status": 403, "body": "<html>blocked</html>", "content_type": "text/html"}),
    ("status", {"status": 401, "body": "", "content_type": "text/plain"}),
    ("html", {"status": 200}),
    ("redirect", {}),
    ("garbage", {}),
    ("wrong_length", {}),
    ("huge", {}),
    ("drop", {"when": "before"}),
    ("drop", {"when": "after"}),
    ("drop", {"when": "after", "reset": True}),
    ("cut", {"at": 0, "when": "after"}),
    ("cut", {"at": 150, "when": "after"}),
    ("tls", {"mode": "expired"}),
    ("tls", {"mode": "wrong_name"}),
    ("tls", {"mode": "unknown_ca"}),
    ("tls", {"mode": "not_yet_valid"}),
]


@pytest.mark.parametrize(("kind", "options"), TRANSIENT, ids=lambda value: str(value)[:60])
def test_a_transient_answer_is_tried_again_until_one_agent(
    host: Host, kind: str, options: dict[str, Any]
) -> None:
    """Whatever stands between: the run goes on by itself, says why, and ends with one usable agent
    and one key.
    """
    token = host.mint()
    host.token(token)
    host.plane.fault("connection" if kind == "tls" else "enroll", kind, **options)
    done = host.run("--give-up-after", "40")
    assert done.code == 0, done
    assert "warning" in done.err
    assert len(host.plane.agents()) == 1
    assert len({request["headers"]["idempotency-key"] for request in host.enrollments()}) == 1
    assert not scan_tree(host.root, token)


@pytest.mark.parametrize("at", [1, 16, 40, 90, 160, 200, 260, 330])
def test_a_reply_cut_anywhere_is_not_half_believed(host: Host, at: int) -> None:
    """Cut after any byte, after the commit: the same key again, one agent."""
    host.token(host.mint())
    host.plane.fault("enroll", "cut", when="after", at=at)
    assert host.run("--give-up-after", "40").code == 0
    assert len(host.plane.agents()) == 1


def test_a_limit_is_kept_and_costs_nothing(host: Host) -> None:
    """A plane that is away: exit 6 within the limit, the token kept and fresh, and the next run
    enrolls.
    """
    token = host.mint()
    host.token(token)
    host.plane.stop()
    done = host.run("--give-up-after", "2")
    assert done.code == 6, done
    host.plane.restart()
    assert host.run().code == 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [("hang", {}), ("drip", {"count": 1, "every_s": 0.5}), ("delay", {"seconds": 12.0})],
)
def test_a_limit_holds_inside_a_request(host: Host, kind: str, options: dict[str, Any]) -> None:
    """An answer that does not end: exit 6 when the time is over, and not a minute later."""
    host.token(host.mint())
    host.plane.fault("enroll", kind, times=None, **options)
    started = time.monotonic()
    assert host.run("--give-up-after", "2").code == 6
    assert time.monotonic() - started < 2 + SLACK_S
    host.plane.clear_faults()
    assert host.run().code == 0 and len(host.plane.agents()) == 1


def test_a_longer_retry_after_than_the_limit_ends_at_once(host: Host) -> None:
    """Nothing is asked sooner than it was allowed, and nobody waits for what will not come."""
    host.token(host.mint())
    host.plane.fault("enroll", "problem", status=429, headers={"Retry-After": "3000"})
    assert host.run("--give-up-after", "60").code == 6
    assert len(host.enrollments()) == 1


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&-", "0<&- 1>&- 2>&-"])
def test_a_closed_standard_file_does_not_stop_a_boot(host: Host, closed: str) -> None:
    """Seen: `run 2>&-` ended without a word, and not enrolled."""
    host.token(host.mint())
    command = f"exec {BIN}/byteor-firstboot run --root {host.root} {closed}"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert len(host.plane.agents()) == 1
    assert host.run().code == 0


class Waits:
    """In place of `Pause.wait`: the pauses of a run, without waiting for them."""

    def __init__(self, each: Callable[[int], None] = lambda count: None) -> None:
        self.pauses: list[float] = []
        self.each = each

    def __call__(self, length: float, **given: Any) -> None:
        self.pauses.append(length)
        self.each(len(self.pauses))


GATEWAYS = {
    "kong-404": (404, {"message": "no Route matched with those values"}),
    "aws-403": (403, {"message": "Forbidden"}),
    "aws-404": (404, {"message": "Not Found"}),
    "a login's 401": (401, {"error": "login_required"}),
    "empty-object-403": (403, {}),
    "a 410 of a cache": (410, {"status": 410, "title": "Gone"}),
    "a list": (403, ["Forbidden"]),
}


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_gateways_own_json_never_refuses_a_token(
    host: Host, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again after 1, 3 and 6 minutes, then hourly; shown from the first answer on."""
    status, body = GATEWAYS[name]
    host.token(host.mint())
    layout, told = Layout(host.root), []

    def each(count: int) -> None:
        shown = describe(layout, Inputs(), clock=Clock())[0]
        told.append(shown["problem"])
        assert shown["state"] == "enrolling" and shown["token"] == "fresh"

    waits = Waits(each)
    monkeypatch.setattr(waiting.Pause, "wait", waits)
    host.plane.fault("enroll", "status", status=status, body=json.dumps(body), times=5,
                     content_type="application/json")  # fmt: skip
    assert first_boot.run(layout, Inputs(), first_boot.Options()) == 0
    assert waits.pauses[:3] == [60, 180, 360]
    assert len(waits.pauses) == 5 and all(3200 < pause < 4000 for pause in waits.pauses[3:])
    assert all(f"answers {status} in a form that is not the control plane's" in t for t in told)
    assert len({row["headers"]["idempotency-key"] for row in host.enrollments()}) == 1
    assert len(host.plane.agents()) == 1


def test_a_refusal_after_a_gateways_answer_is_a_plain_refusal(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stood before the control plane spent nothing: nobody is sent to look for an agent."""
    host.token(host.mint())
    told: list[tuple[str, dict[str, Any]]] = [
        ("html", {"status": 200}),
        ("status", {"status": 403, "body": "{}", "content_type": "application/json"}),
        ("problem", {"status": 401, "code": "unknown_token"}),
    ]

    def each(count: int) -> None:
        kind, options = told[count - 1]
        host.plane.fault("enroll", kind, **options)

    monkeypatch.setattr(waiting.Pause, "wait", Waits(each))
    host.plane.fault("enroll", "redirect")
    with pytest.raises(Refused, match="refused the token: 401"):
        first_boot.run(Layout(host.root), Inputs(), first_boot.Options())


@pytest.mark.parametrize(("value", "least"), [("2.5", 2.5), ("2, 2", 2.0), ("7", 7.0)])
def test_a_retry_after_is_obeyed_in_every_form(
    host: Host, value: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers send fractions; a proxy joins two headers by a comma."""
    host.token(host.mint())
    waits = Waits()
    monkeypatch.setattr(waiting.Pause, "wait", waits)
    host.plane.fault("enroll", "problem", status=429, headers={"Retry-After": value})
    assert first_boot.run(Layout(host.root), Inputs(), first_boot.Options()) == 0
    assert least <= waits.pauses[0] <= least + 1


def test_a_lost_answer_and_a_plane_that_forgets_names_the_agent_to_delete(host: Host) -> None:
    """Against a plane without idempotency the refusal after a lost answer says what to look for."""
    host.defaults(name="edge-lost")
    host.token(host.mint())
    host.plane.fault("enroll", "drop", when="after")
    host.plane.fault("enroll", "problem", status=401, code="token_used", skip=1)
    done = host.run("--give-up-after", "40")
    assert done.code == 5, done
    assert "edge-lost" in done.err and "delete" in done.err
    assert "edge-lost" in host.call("byteor-firstboot", "status").out
    assert "edge-lost" in host.run().err


def test_what_is_optional_in_a_reply_and_makes_no_sense_is_left_out(host: Host) -> None:
    """A name with escapes, endless scopes, a date that is none: the host enrolls, and nothing of it
    reaches a terminal.
    """
    host.token(host.mint())
    odd = {"name": "a\n\x1b[31m\ud800", "scopes": ["s" * 5000] * 1000, "expires_at": "never"}
    body = {"agent_id": "a1", "api_key": "k" * 40, **odd}
    host.plane.fault(
        "enroll", "status", status=201, body=json.dumps(body), content_type="application/json"
    )
    assert host.run().code == 0
    done = host.call("byteor-firstboot", "status", "--json")
    assert done.code == 0 and json.loads(done.out)["name"] == "edge-node-01"


def test_a_success_without_a_key_is_not_sealed(host: Host) -> None:
    """201 with JSON that lacks id or key: repeated with the same key, nothing sealed, the token
    kept.
    """
    host.token(host.mint())
    host.plane.fault(
        "enroll",
        "status",
        status=201,
        body='{"agent_id": "a b", "api_key": ""}',
        content_type="application/json",
        times=None,
    )
    assert host.run("--give-up-after", "1").code == 6
    assert not host.enrolled()
    host.plane.clear_faults()
    assert host.run().code == 0
    assert len({request["headers"]["idempotency-key"] for request in host.enrollments()}) == 1


def test_an_address_that_is_gone_after_the_first_attempt_is_said(host: Host) -> None:
    """An intent stands, and somebody emptied the settings: exit 4 naming them; put back, the same
    key goes on.
    """
    host.token(host.mint())
    host.plane.fault("enroll", "drop", when="after", times=None)
    assert host.run("--give-up-after", "1").code == 6
    host.plane.clear_faults()
    defaults = host.path("etc/byteor/firstboot.yaml").read_text()
    host.write("etc/byteor/firstboot.yaml", "{}")
    done = host.run()
    assert done.code == 4 and "api_base_url" in done.err, done
    host.write("etc/byteor/firstboot.yaml", defaults)
    assert host.run().code == 0
    assert len(host.plane.agents()) == 1


# -- kills


def enroll_through_kills(host: Host, count: int, seed: int) -> None:
    """Kill `count` runs at random moments, then let one end; assert what must hold afterwards."""
    chance = random.Random(seed)
    token = host.mint()
    host.user_data(host.comment_block(token))
    host.plane.fault("enroll", "delay", seconds=0.3, times=None)
    for _ in range(count):
        process = host.start("byteor-firstboot", "run")
        try:
            process.communicate(timeout=chance.uniform(0.05, 1.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    host.plane.clear_faults()
    done = host.run()
    assert done.code == 0, f"seed {seed}: {done}"
    assert host.call("byteor-firstboot", "unseal").code == 0
    assert host.run().code == 0
    assert not scan_tree(host.root, token), f"seed {seed}"


@pytest.mark.parametrize("round_", range(6))
def test_killed_at_random_moments_it_becomes_one_agent(host: Host, round_: int) -> None:
    """SIGKILL anywhere, again and again: one agent, usable, no token (TEST_SEED repeats a
    failure).
    """
    seed = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"TEST_SEED={seed}")
    host.path("etc/byteor/firstboot.yaml").unlink()
    enroll_through_kills(host, 3, seed)
    assert len(host.plane.agents()) == 1, f"seed {seed}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills(tmp_path: Path, control_plane: Any) -> None:
    """A hundred hosts, each killed once at a random moment and run again to the end: a hundred
    agents.
    """
    seed = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"TEST_SEED={seed}")
    for number in range(100):
        host = Host(tmp_path / f"root{number}", control_plane)
        enroll_through_kills(host, 1, seed + number)
        assert len(control_plane.agents()) == number + 1, f"seed {seed + number}"


# -- disks


def test_a_full_disk_spends_nothing(host: Host) -> None:
    """No room for what first boot must keep: exit 7 before the token is presented."""
    import resource

    host.token(host.mint())
    process = host.start(
        "byteor-firstboot",
        "run",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 7, err
    assert "Traceback" not in err
    assert not host.enrollments()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
@pytest.mark.parametrize("options", ["size=64k", "ro"])
def test_a_real_disk_that_is_full_or_read_only_spends_nothing(host: Host, options: str) -> None:
    """A mount without room, or read-only: exit 7, one line with a hint, no request with the
    token.
    """
    host.token(host.mint())
    state = host.path("var/lib/byteor")
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(state)], check=True)
    try:
        done = host.run()
        assert done.code == 7, done
        assert done.err.count("error:") == 1 and "hint:" in done.err
        assert not host.enrollments()
    finally:
        subprocess.run(["umount", str(state)], check=True)
