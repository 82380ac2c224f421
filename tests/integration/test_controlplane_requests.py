"""The reference control plane keeps the contract for requests 1, 2, 3 and 9, and records who does
not.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.controlplane import ControlPlane, PlaneError
from tests.controlplane.plain import PlainHost


@pytest.fixture
def host(control_plane: ControlPlane) -> Iterator[PlainHost]:
    with PlainHost(control_plane) as one:
        yield one


def code(reply: Any) -> Any:
    assert reply.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= set(reply.json())
    assert reply.json()["status"] == reply.status_code
    return reply.status_code, reply.json()["code"]


def rules(plane: ControlPlane) -> Any:
    return [row["rule"] for row in plane.violations()]


def test_a_token_becomes_one_agent_with_its_key_scopes_and_key_set(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """Request 1 answers 201 with id, key, name, scopes and the signing keys."""
    reply = host.enroll(control_plane.mint(key_ttl_s=60), {"name": "edge-node-01"})
    assert reply.status_code == 201
    assert set(reply.json()) == {
        "agent_id",
        "api_key",
        "name",
        "scopes",
        "expires_at",
        "signing_keys",
    }
    assert [agent["name"] for agent in control_plane.agents()] == ["edge-node-01"]


def test_a_repeat_of_a_success_gets_the_first_answer_for_a_day(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """Same key, token and body: the first answer, also after a restart and hours later; after a day
    the token is used.
    """
    token, key = control_plane.mint(), str(uuid.uuid4())
    first = host.enroll(token, {"hostname": "edge"}, key=key)
    control_plane.restart()
    control_plane.configure(clock_offset_s=23 * 3600.0)
    again = host.enroll(token, {"hostname": "edge"}, key=key)
    assert (again.status_code, again.json()) == (200, first.json())
    control_plane.configure(clock_offset_s=25 * 3600.0)
    assert code(host.enroll(token, {"hostname": "edge"}, key=key)) == (410, "token_used")
    assert len(control_plane.agents()) == 1


@pytest.mark.provokes_violations
def test_an_idempotency_key_belongs_to_one_body_and_one_token(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """Another body or token under a known key is 422 and a violation."""
    token, key = control_plane.mint(), str(uuid.uuid4())
    host.enroll(token, {"name": "one"}, key=key)
    assert code(host.enroll(token, {"name": "two"}, key=key)) == (422, "idempotency_key_reused")
    assert code(host.enroll(control_plane.mint(), {"name": "one"}, key=key)) == (
        422,
        "idempotency_key_reused",
    )
    assert rules(control_plane) == ["idempotency_key_reused"] * 2


def test_a_second_attempt_while_the_first_is_in_progress_is_a_conflict(
    control_plane: ControlPlane,
) -> None:
    """409 with code in_progress, and afterwards the first answer."""
    token, key = control_plane.mint(), str(uuid.uuid4())
    control_plane.fault("enroll", "delay", seconds=1.0)
    first = []
    with PlainHost(control_plane) as slow, PlainHost(control_plane) as host:
        thread = threading.Thread(
            target=lambda: first.append(slow.enroll(token, {"name": "edge"}, key=key))
        )
        thread.start()
        control_plane.wait_for(lambda: control_plane.faults()[0]["hits"])
        assert code(host.enroll(token, {"name": "edge"}, key=key)) == (409, "in_progress")
        thread.join()
        assert host.enroll(token, {"name": "edge"}, key=key).json() == first[0].json()


@pytest.mark.parametrize(
    ("mint", "body", "expected"),
    [
        ({"ttl_s": -1}, {}, (401, "token_expired")),
        ({"scopes": ["agent:other"]}, {}, (403, "scope_missing")),
        ({"where": {"environment_id": "env_2"}}, {}, (403, "wrong_environment")),
        ({}, {"name": "taken"}, (409, "name_taken")),
        ({}, {"name": "TAKEN"}, (409, "name_taken")),
    ],
)
def test_tokens_that_do_not_fit_are_refused_and_not_spent(
    control_plane: ControlPlane, host: PlainHost, mint: Any, body: Any, expected: Any
) -> None:
    """Each reason has its status and code; nobody enrolls by it."""
    host.enrolled("taken")
    assert code(host.enroll(control_plane.mint(**mint), body)) == expected
    assert len(control_plane.agents()) == 1


def test_unknown_and_used_tokens_and_unknown_environments(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """401 unknown, 404 no such environment, and used with each of the statuses that the contract
    knows for it.
    """
    assert code(host.enroll("bet_" + "x" * 43)) == (401, "token_unknown")
    token = control_plane.mint()
    elsewhere = host.agents_path.replace("env_1", "env_none")
    assert code(host.enroll(token, path=elsewhere)) == (404, "no_such_environment")
    assert host.enroll(token).status_code == 201
    for status in (401, 409, 410):
        control_plane.configure(token_used_answer=status)
        assert code(host.enroll(token)) == (status, "token_used")


def test_names_derived_from_the_host_name_are_unique(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """The same host name twice gets a number; no host name gets an invented one; another
    environment starts anew.
    """
    names = [
        host.enroll(control_plane.mint(), body).json()["name"]
        for body in ({"hostname": "Edge_1"},) * 3
    ]
    assert names == ["edge-1", "edge-1-2", "edge-1-3"]
    assert host.enroll(control_plane.mint(), {}).json()["name"].startswith("agent-")
    other = {"environment_id": "env_2"}
    path = host.agents_path.replace("env_1", "env_2")
    assert (
        host.enroll(control_plane.mint(where=other), {"hostname": "edge-1"}, path=path).json()[
            "name"
        ]
        == "edge-1"
    )


def test_a_plane_may_refuse_the_host_name_and_use_other_words(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """accept_hostname, reply_aliases, extra_members and enroll_status change the answer as they
    say.
    """
    control_plane.configure(
        accept_hostname=False, reply_aliases=True, extra_members=True, enroll_status=200
    )
    token = control_plane.mint()
    assert code(host.enroll(token, {"hostname": "edge"})) == (422, "hostname_not_accepted")
    reply = host.enroll(token, {})
    assert reply.status_code == 200
    assert {"id", "runtime_api_key", "x_unknown"} < set(reply.json())


HEADERS = {
    "Authorization": "Bearer {token}",
    "Idempotency-Key": "0d0e6f30-6b1c-4d0e-8a3a-3f5f1f2f3f4f",
}


@pytest.mark.provokes_violations
@pytest.mark.parametrize(
    ("headers", "content", "status", "rule"),
    [
        ({"User-Agent": "python-requests/2.32"}, b"{}", 400, "malformed_parameter"),
        ({"Idempotency-Key": "no-uuid"}, b"{}", 400, "malformed_parameter"),
        (
            {"Idempotency-Key": "0d0e6f30-6b1c-1d0e-8a3a-3f5f1f2f3f4f"},
            b"{}",
            400,
            "malformed_parameter",
        ),
        ({"Idempotency-Key": None}, b"{}", 400, "missing_parameter"),
        ({"Authorization": None}, b"{}", 401, "missing_credential"),
        ({"Authorization": "Basic YTpi"}, b"{}", 401, "missing_credential"),
        ({"Content-Type": "text/plain"}, b"{}", 415, "content_type"),
        ({}, b"", 400, "not_json"),
        ({}, b'{"name": NaN}', 400, "not_json"),
        ({}, b'{"name": "a", "name": "a"}', 400, "not_json"),
        ({}, b"[]", 422, "body"),
        ({}, b'{"name": 7}', 422, "body"),
        ({}, b'{"name": "edge\\n"}', 422, "body"),
        ({}, b'{"name": "edge.example"}', 422, "body"),
        ({}, b'{"name": "edge", "hostname": "edge"}', 422, "body"),
        ({}, b'{"colour": "red"}', 422, "body"),
        ({}, b'{"name": "' + b"a" * 1_100_000 + b'"}', 413, "body_size"),
    ],
)
def test_enrollment_is_strict(
    control_plane: ControlPlane,
    host: PlainHost,
    headers: Any,
    content: bytes,
    status: int,
    rule: str,
) -> None:
    """What the contract does not allow is refused, recorded as a violation, and spends no token."""
    token = control_plane.mint()
    given = {"Content-Type": "application/json", **HEADERS, **headers}
    sent = {name: value.format(token=token) for name, value in given.items() if value is not None}
    reply = host.http.post(host.agents_path, content=content, headers=sent)
    assert reply.status_code == status
    assert rules(control_plane) == [rule]
    assert control_plane.agents() == []


@pytest.mark.provokes_violations
def test_an_enrollment_token_belongs_in_request_1_alone(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """In another request, an address, another header or a body it is a violation, and the log shows
    only its hash.
    """
    host.enrolled()
    token, chosen = control_plane.mint(), control_plane.mint(text="plain-chosen-token-0001")
    bearer = {"Authorization": f"Bearer {token}"}
    host.http.post(host.path("heartbeat"), json=host.beat_body(), headers=bearer)
    host.http.get(f"/healthz?t={token}")
    host.http.get("/healthz", headers={"X-Debug": chosen})
    host.beat(problems=[{"code": "debug", "detail": f"token {chosen} seen"}])
    found = rules(control_plane)
    assert found.count("enrollment_token_misplaced") == 1
    assert found.count("secret_misplaced") == 3
    everything = json.dumps([control_plane.requests(), control_plane.violations()])
    assert token not in everything
    assert chosen not in everything
    assert host.api_key not in everything


@pytest.mark.provokes_violations
def test_credentials_are_not_interchangeable(control_plane: ControlPlane, host: PlainHost) -> None:
    """A runtime key enrolls nobody, lists nothing; an operator token does not beat."""
    host.enrolled()
    assert code(host.enroll(host.api_key)) == (401, "wrong_credential")
    bearer = {"Authorization": f"Bearer {control_plane.operator_token}"}
    assert code(host.http.post(host.path("heartbeat"), json=host.beat_body(), headers=bearer)) == (
        401,
        "wrong_credential",
    )
    bearer = {"Authorization": f"Bearer {host.api_key}"}
    assert code(host.http.get(host.agents_path, headers=bearer)) == (401, "wrong_credential")
    assert rules(control_plane) == ["credential_misplaced"] * 3


def test_the_operator_sees_agents_and_their_last_heartbeat(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """Request 2 has name and last heartbeat of each agent."""
    host.enrolled("edge")
    bearer = {"Authorization": f"Bearer {control_plane.operator_token}"}
    listed = host.http.get(host.agents_path, headers=bearer).json()
    assert listed == {
        "agents": [{"agent_id": host.agent_id, "name": "edge", "last_heartbeat_at": None}],
        "next": None,
    }
    host.beat()
    assert (
        host.http.get(host.agents_path, headers=bearer).json()["agents"][0]["last_heartbeat_at"]
        is not None
    )
    unknown = {"Authorization": "Bearer " + "o" * 20}
    assert code(host.http.get(host.agents_path, headers=unknown)) == (401, "operator_token_unknown")


def test_heartbeats_are_kept_and_answered_with_hints(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """Request 3 answers what is assigned, or 204."""
    host.enrolled()
    control_plane.configure(heartbeat_interval_s=5)
    made = control_plane.deploy()
    hints = host.beat(status="degraded").json()
    assert hints == {
        "heartbeat_interval_s": 5,
        "deployment_id": made["deployment_id"],
        "deployment_sequence": 1,
        "signing_keys_version": 1,
    }
    control_plane.configure(heartbeat_answer=204)
    assert host.beat().status_code == 204
    (agent,) = control_plane.agents()
    assert (agent["heartbeats"], agent["last_heartbeat"]["sequence"]) == (2, 2)


@pytest.mark.provokes_violations
@pytest.mark.parametrize(
    "change",
    [
        {"status": "fine"},
        {"sequence": "2"},
        {"sequence": True},
        {"sequence": 2.5},
        {"uptime_s": -1},
        {"sent_at": "now"},
        {"boot_id": ""},
        {"deployment": {}},
        {"spool": {"pending": 0}},
        {"problems": [{"code": "Bad Code", "detail": ""}]},
        {"extra": 1},
        {"agent_version": ""},
        {"signing_keys_version": "1"},
    ],
)
def test_heartbeats_are_strict(control_plane: ControlPlane, host: PlainHost, change: Any) -> None:
    """A wrong type, an unknown or missing field is 422 and a violation."""
    host.enrolled()
    assert code(host.beat(**change)) == (422, "invalid_request")
    assert rules(control_plane) == ["body"]
    assert control_plane.agents()[0]["heartbeats"] == 0


@pytest.mark.provokes_violations
def test_a_sequence_must_increase(control_plane: ControlPlane, host: PlainHost) -> None:
    """An equal or lower sequence is 409 and a violation, also after a restart; gaps are fine."""
    host.enrolled()
    assert host.beat(sequence=4096).status_code == 200
    control_plane.restart()
    assert code(host.beat(sequence=4096)) == (409, "sequence_not_increasing")
    assert host.beat(sequence=8192).status_code == 200
    assert rules(control_plane) == ["sequence"]


def test_runtime_keys_are_bound_expire_are_revoked_and_scoped(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """Each way in which a runtime key is not good has its answer of contract 2.6; taking it back
    works.
    """
    host.enrolled()
    mine, other = host.agent_id, host.enrolled().agent_id
    host.agent_id = mine
    assert code(host.beat()) == (401, "key_of_another_agent")
    host.agent_id = other
    control_plane.scopes(other, ["agent:artifact_upload"])
    refused = host.beat()
    assert code(refused) == (403, "scope_missing")
    assert refused.json()["scope"] == "agent:heartbeat"
    control_plane.scopes(other, ["agent:heartbeat"])
    assert host.beat().status_code == 200
    control_plane.revoke(other)
    assert code(host.beat()) == (401, "key_revoked")
    control_plane.revoke(other, revoked=False)
    control_plane.expire(other)
    assert code(host.beat()) == (401, "key_expired")
    control_plane.delete(other)
    assert code(host.beat()) == (404, "unknown_agent")
    control_plane.configure(unknown_agent_answer=410)
    assert code(host.beat()) == (410, "unknown_agent")
    host.api_key = "brk_" + "x" * 43
    assert code(host.beat()) == (401, "key_unknown")


@pytest.mark.provokes_violations
def test_what_the_contract_does_not_have_is_refused(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """Unknown paths and methods are violations with a problem body."""
    assert code(host.http.get("/api/v1/agents")) == (404, "not_found")
    refused = host.http.put(host.agents_path)
    assert code(refused) == (405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, POST"
    assert rules(control_plane) == ["unknown_path", "method"]


@pytest.mark.parametrize("form", ["seconds", "date", "absent", "-5", "soon"])
def test_rate_limits_say_when_to_come_back(
    control_plane: ControlPlane, host: PlainHost, form: str
) -> None:
    """429 after the limit with Retry-After in the chosen form and the X-RateLimit headers; other
    groups go on.
    """
    host.enrolled()
    control_plane.configure(
        rate_limits={"heartbeat": {"limit": 2, "window_s": 30, "retry_after": form}}
    )
    assert [host.beat().headers["x-ratelimit-remaining"] for _ in range(2)] == ["1", "0"]
    refused = host.beat()
    assert code(refused) == (429, "rate_limited")
    assert refused.headers["x-ratelimit-limit"] == "2"
    given = refused.headers.get("retry-after")
    if form == "seconds":
        assert 1 <= int(given) <= 30
    elif form == "date":
        assert given.endswith("GMT")
    else:
        assert given == (None if form == "absent" else form)
    assert host.ask("GET", "signing-keys", params={"since": 0}).status_code == 200


def test_a_rate_limit_window_ends(control_plane: ControlPlane, host: PlainHost) -> None:
    """After the window the same host is welcome again."""
    control_plane.configure(rate_limits={"healthz": {"limit": 1, "window_s": 0.2}})
    assert [host.http.get("/healthz").status_code for _ in range(2)] == [200, 429]
    control_plane.wait_for(lambda: host.http.get("/healthz").status_code == 200)


def test_state_survives_a_kill(control_plane: ControlPlane, host: PlainHost) -> None:
    """After SIGKILL the same address serves the same agents, keys, faults and history."""
    host.enrolled("edge")
    control_plane.fault("heartbeat", "problem", skip=1)
    host.beat()
    address = control_plane.base_url
    control_plane.kill()
    control_plane.start()
    assert control_plane.base_url == address
    assert host.beat().status_code == 503
    assert host.beat().status_code == 200
    assert [row["operation"] for row in control_plane.requests()] == ["enroll"] + ["heartbeat"] * 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"agent_id", "api_key", "name", "scopes", "signing_keys"}),
        (
            {"signing_keys_in_enrollment": False, "heartbeat_interval_s": 7},
            {"agent_id", "api_key", "name", "scopes", "heartbeat_interval_s"},
        ),
    ],
)
def test_optional_members_of_the_enrollment_reply(
    control_plane: ControlPlane, host: PlainHost, settings: Any, expected: Any
) -> None:
    """Key sets and the heartbeat hint come when they are configured."""
    control_plane.configure(**settings)
    assert set(host.enroll(control_plane.mint()).json()) == expected


@pytest.mark.provokes_violations
def test_a_request_without_credential_gets_none(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """The runtime key at /healthz is answered, and is a violation."""
    host.enrolled()
    assert (
        host.http.get("/healthz", headers={"Authorization": f"Bearer {host.api_key}"}).status_code
        == 200
    )
    assert rules(control_plane) == ["credential_misplaced"]


@pytest.mark.provokes_violations
def test_the_admin_interface_is_not_on_the_public_port(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """A word said to the public origin is an unknown path; without the admin secret the admin port
    refuses.
    """
    assert code(host.http.post("/mint", json={})) == (404, "not_found")
    port = json.loads((control_plane.state_dir / "admin.json").read_text())["admin_port"]
    assert (
        httpx.post(f"http://127.0.0.1:{port}/agents", json={}, trust_env=False).status_code == 401
    )
    assert (control_plane.state_dir / "admin.json").stat().st_mode & 0o777 == 0o600


def test_a_switch_that_does_not_exist_is_refused(control_plane: ControlPlane) -> None:
    """A typing error in a test must not become a plane that does nothing special."""
    with pytest.raises(PlaneError, match="no setting heartbeat_answr"):
        control_plane.configure(heartbeat_answr=204)


def test_a_plane_for_guests_listens_where_no_interface_is_yet(tmp_path: Path) -> None:
    """It starts before its address exists, and its certificate names the address and every other
    name.
    """
    with ControlPlane(tmp_path / "plane", host="10.254.254.254") as plane:
        assert plane.base_url == f"https://10.254.254.254:{plane.port}"
        assert plane.running()
    with ControlPlane(
        tmp_path / "named", host="127.0.0.1", names=("plane.test", "10.1.2.3")
    ) as plane:
        context = ssl.create_default_context(cafile=str(plane.ca_path))
        for name in ("127.0.0.1", "plane.test", "10.1.2.3"):
            with socket.create_connection((plane.host, plane.port)) as wire:
                context.wrap_socket(wire, server_hostname=name).close()


def test_a_plane_ends_with_its_parent(tmp_path: Path) -> None:
    """Nothing stays behind a test that was killed."""
    program = (
        "import os, sys; from tests.controlplane import ControlPlane\n"
        "print(ControlPlane(sys.argv[1]).start().pid, flush=True); os.kill(os.getpid(), 9)"
    )
    top = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=top, stdout=subprocess.PIPE, timeout=60
    )
    process = Path(f"/proc/{int(done.stdout)}")
    limit = time.monotonic() + 10
    while process.exists() and "Z" not in (process / "stat").read_text().split():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_a_plane_may_start_late(own_control_plane: ControlPlane) -> None:
    """Address and CA are known before the start; until then connections are refused."""
    with PlainHost(own_control_plane) as host:
        with pytest.raises(httpx.ConnectError):
            host.http.get("/healthz")
        own_control_plane.start()
        assert host.http.get("/healthz").json() == {"status": "ok"}
