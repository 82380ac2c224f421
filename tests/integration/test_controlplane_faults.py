"""Each fault of the reference control plane, seen on the wire by a plain HTTP client."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from typing import Any, Callable

import httpx
import pytest

from tests.controlplane import ControlPlane, PlaneError
from tests.controlplane.plain import USER_AGENT, PlainHost


@pytest.fixture
def host(control_plane: ControlPlane) -> Iterator[PlainHost]:
    with PlainHost(control_plane) as one:
        yield one


def raw(plane: ControlPlane) -> bytes:
    """Everything that one request gets, byte for byte; a reset raises ConnectionResetError.

    TLS runs over memory, since OpenSSL reports a reset of its own socket as an end of file.
    """
    context = ssl.create_default_context(cafile=str(plane.ca_path))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=plane.host)
    request = f"GET /healthz HTTP/1.1\r\nHost: x\r\nUser-Agent: {USER_AGENT}\r\nConnection: close\r\n\r\n".encode()
    got = b""
    with socket.create_connection((plane.host, plane.port), timeout=20) as wire:

        def exchange(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    wire.sendall(outgoing.read())
                    piece = wire.recv(65536)
                    if piece:
                        incoming.write(piece)
                    else:
                        incoming.write_eof()

        exchange(tls.do_handshake)
        tls.write(request)
        with contextlib.suppress(ssl.SSLEOFError, ssl.SSLZeroReturnError):
            while True:
                piece = exchange(lambda: tls.read(65536))
                if not piece:
                    break
                got += piece
    return got


@pytest.mark.parametrize(("when", "agents"), [("before", 0), ("after", 1)])
def test_drop_says_nothing_before_or_after_the_commit(
    control_plane: ControlPlane, host: PlainHost, when: str, agents: int
) -> None:
    """The connection ends without a byte; what is committed shows on which side; the repeat gets
    the one agent.
    """
    token, key = control_plane.mint(), str(uuid.uuid4())
    control_plane.fault("enroll", "drop", when=when)
    with pytest.raises(httpx.RemoteProtocolError):
        host.enroll(token, {"name": "edge"}, key=key)
    assert len(control_plane.agents()) == agents
    assert host.enroll(token, {"name": "edge"}, key=key).status_code == (200 if agents else 201)
    assert len(control_plane.agents()) == 1


def test_drop_by_reset(control_plane: ControlPlane) -> None:
    """With reset the client sees ECONNRESET instead of an orderly end."""
    control_plane.fault("healthz", "drop", reset=True)
    with pytest.raises(ConnectionResetError):
        raw(control_plane)


@pytest.mark.parametrize("count", [0, 1, 17, 100])
def test_cut_ends_the_reply_at_byte_n(control_plane: ControlPlane, count: int) -> None:
    """Exactly n bytes arrive, and they are the reply's first ones."""
    control_plane.fault("healthz", "cut", at=count)
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\ncontent-type: application/json\r\n"
    got = raw(control_plane)
    assert len(got) == count
    assert got[: len(whole)] == whole[:count][: len(got)]


def test_cut_after_the_commit_loses_only_the_answer(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """A reply cut in its head or its body leaves one agent; the repeat gets the same one."""
    for at in (5, 300):
        token, key = control_plane.mint(), str(uuid.uuid4())
        control_plane.fault("enroll", "cut", at=at)
        with pytest.raises(httpx.RemoteProtocolError):
            host.enroll(token, key=key)
        assert host.enroll(token, key=key).status_code == 200
    assert len(control_plane.agents()) == 2


def test_delay(control_plane: ControlPlane, host: PlainHost) -> None:
    """The reply comes, later."""
    control_plane.fault("healthz", "delay", seconds=0.4)
    began = time.monotonic()
    assert host.http.get("/healthz").status_code == 200
    assert time.monotonic() - began >= 0.4


def test_hang(control_plane: ControlPlane, host: PlainHost) -> None:
    """Nothing comes until the client gives up; others are served meanwhile."""
    control_plane.fault("healthz", "hang")
    with pytest.raises(httpx.ReadTimeout):
        host.http.get("/healthz", timeout=0.3)
    assert host.http.get("/healthz").status_code == 200


def test_drip(control_plane: ControlPlane, host: PlainHost) -> None:
    """The reply comes complete, a few bytes at a time."""
    control_plane.fault("healthz", "drip", count=10, every_s=0.02)
    began = time.monotonic()
    assert host.http.get("/healthz").json() == {"status": "ok"}
    assert time.monotonic() - began >= 0.15


def test_status_with_any_body_and_headers(control_plane: ControlPlane, host: PlainHost) -> None:
    """Status, body, content type and headers are the fault's."""
    control_plane.fault(
        "healthz",
        "status",
        status=418,
        body="<tea/>",
        content_type="text/xml",
        headers={"Retry-After": "7"},
    )
    reply = host.http.get("/healthz")
    assert (reply.status_code, reply.text, reply.headers["content-type"]) == (
        418,
        "<tea/>",
        "text/xml",
    )
    assert reply.headers["retry-after"] == "7"


def test_problem_with_any_code(control_plane: ControlPlane, host: PlainHost) -> None:
    """A well-formed RFC 9457 answer with the chosen status and code."""
    control_plane.fault("healthz", "problem", status=409, code="token_used")
    reply = host.http.get("/healthz")
    assert (reply.status_code, reply.json()["code"]) == (409, "token_used")
    assert reply.headers["content-type"] == "application/problem+json"


def test_html(control_plane: ControlPlane, host: PlainHost) -> None:
    """A captive portal's page with status 200, or another."""
    for status in (200, 403):
        control_plane.fault("healthz", "html", status=status)
        reply = host.http.get("/healthz")
        assert (reply.status_code, reply.headers["content-type"]) == (
            status,
            "text/html; charset=utf-8",
        )
        assert reply.text.startswith("<!DOCTYPE html>")


def test_garbage(control_plane: ControlPlane) -> None:
    """Bytes that are no HTTP at all."""
    control_plane.fault("healthz", "garbage")
    assert not raw(control_plane).startswith(b"HTTP/")


def test_wrong_length(control_plane: ControlPlane, host: PlainHost) -> None:
    """More bytes are declared than come."""
    control_plane.fault("healthz", "wrong_length", declared=500)
    with pytest.raises(httpx.RemoteProtocolError, match="500"):
        host.http.get("/healthz")


@pytest.mark.parametrize("declared", [True, False])
def test_huge(control_plane: ControlPlane, host: PlainHost, declared: bool) -> None:
    """80 MB come, with or without a Content-Length that says so."""
    control_plane.fault("healthz", "huge", declared=declared)
    with host.http.stream("GET", "/healthz") as reply:
        assert reply.headers.get("content-length") == ("80000000" if declared else None)
        assert sum(len(piece) for piece in reply.iter_raw()) == 80_000_000


def test_redirect(control_plane: ControlPlane, host: PlainHost) -> None:
    """A redirect to wherever the fault says."""
    control_plane.fault("healthz", "redirect", status=307, location="https://169.254.169.254/")
    reply = host.http.get("/healthz")
    assert (reply.status_code, reply.headers["location"]) == (307, "https://169.254.169.254/")


def test_date(control_plane: ControlPlane, host: PlainHost) -> None:
    """The Date header is off by as much as asked, and right otherwise."""
    control_plane.fault("healthz", "date", offset_s=-86400)
    off, right = (host.http.get("/healthz").headers["date"] for _ in range(2))
    difference = email.utils.parsedate_to_datetime(right) - email.utils.parsedate_to_datetime(off)
    assert 86390 <= difference.total_seconds() <= 86410


def test_a_crash_between_commit_and_reply_is_a_lost_reply(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """The server dies after the commit; started again, the repeat gets the one agent."""
    token, key = control_plane.mint(), str(uuid.uuid4())
    control_plane.fault("enroll", "crash")
    with pytest.raises(httpx.RemoteProtocolError):
        host.enroll(token, {"name": "edge"}, key=key)
    assert control_plane.wait_stopped() == 70
    with pytest.raises(httpx.ConnectError):
        host.enroll(token, {"name": "edge"}, key=key)
    control_plane.restart()
    assert host.enroll(token, {"name": "edge"}, key=key).status_code == 200
    assert [agent["name"] for agent in control_plane.agents()] == ["edge"]


def test_a_crash_before_the_commit_spends_nothing(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """The token is as fresh as it was."""
    token = control_plane.mint()
    control_plane.fault("enroll", "crash", when="before")
    with pytest.raises(httpx.RemoteProtocolError):
        host.enroll(token)
    control_plane.wait_stopped()
    control_plane.restart()
    assert host.enroll(token).status_code == 201


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("expired", "certificate has expired"),
        ("not_yet_valid", "not yet valid"),
        ("wrong_name", "mismatch"),
        ("unknown_ca", "unable to get local issuer"),
        ("handshake_failure", "(?i)alert|EOF"),
    ],
)
def test_tls_faults(control_plane: ControlPlane, host: PlainHost, mode: str, says: str) -> None:
    """The handshake fails for exactly that reason, once; also on a host that had a connection
    open.
    """
    assert host.http.get("/healthz").status_code == 200
    control_plane.fault("*", "tls", mode=mode)
    with pytest.raises(httpx.ConnectError, match=says):
        host.http.get("/healthz")
    assert host.http.get("/healthz").status_code == 200


def test_the_third_heartbeat(control_plane: ControlPlane, host: PlainHost) -> None:
    """skip=2 hits the third request and no other."""
    host.enrolled()
    control_plane.fault("heartbeat", "problem", skip=2)
    assert [host.beat().status_code for _ in range(5)] == [200, 200, 503, 200, 200]


def test_for_some_seconds(control_plane: ControlPlane, host: PlainHost) -> None:
    """for_s hits every request of that time and none after it."""
    control_plane.fault("healthz", "problem", for_s=0.5)
    assert [host.http.get("/healthz").status_code for _ in range(3)] == [503] * 3
    control_plane.wait_for(lambda: host.http.get("/healthz").status_code == 200)


def test_after_some_seconds(control_plane: ControlPlane, host: PlainHost) -> None:
    """after_s lets the first requests pass."""
    control_plane.fault("healthz", "problem", after_s=0.3, times=1)
    assert host.http.get("/healthz").status_code == 200
    control_plane.wait_for(lambda: host.http.get("/healthz").status_code == 503)


def test_with_a_seeded_probability(control_plane: ControlPlane, host: PlainHost) -> None:
    """The same seed hits the same requests, about as many as asked."""
    rows = []
    for _ in range(2):
        control_plane.fault("healthz", "problem", probability=0.3, seed=7)
        rows.append([host.http.get("/healthz").status_code for _ in range(60)])
        control_plane.clear_faults()
    assert rows[0] == rows[1]
    assert 8 <= rows[0].count(503) <= 30


@pytest.mark.parametrize("narrow", ["agent_id", "host"])
def test_for_one_host_alone(control_plane: ControlPlane, host: PlainHost, narrow: str) -> None:
    """A fault for one agent, by its id or its name, leaves the others alone."""
    with PlainHost(control_plane) as other:
        host.enrolled("one")
        other.enrolled("two")
        control_plane.fault(
            "heartbeat",
            "problem",
            times=None,
            **{narrow: "one" if narrow == "host" else host.agent_id},
        )
        assert [host.beat().status_code, other.beat().status_code, host.beat().status_code] == [
            503,
            200,
            503,
        ]


def test_for_one_host_name_at_enrollment(control_plane: ControlPlane, host: PlainHost) -> None:
    """Before there is an agent, the name that a host gives tells it apart."""
    control_plane.fault("enroll", "problem", host="edge-2")
    replies = [
        host.enroll(control_plane.mint(), {"hostname": name}).status_code
        for name in ("edge-1", "edge-2", "edge-2")
    ]
    assert replies == [201, 503, 201]


def test_faults_compose_and_are_recorded(control_plane: ControlPlane, host: PlainHost) -> None:
    """A delay and a status on the same request both happen, and the log names them."""
    control_plane.fault("*", "delay", seconds=0.2)
    control_plane.fault("healthz", "problem", status=500)
    began = time.monotonic()
    assert host.http.get("/healthz").status_code == 500
    assert time.monotonic() - began >= 0.2
    assert control_plane.requests()[-1]["faults"] == ["delay", "problem"]


@pytest.mark.parametrize(
    "words",
    [
        ("healthz", "nonsense", {}),
        ("nonsense", "drop", {}),
        ("healthz", "drop", {"seconds": 1}),
        ("*", "tls", {"mode": "x"}),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(control_plane: ControlPlane, words: Any) -> None:
    """A typing error in a test must not become a test without a fault."""
    with pytest.raises(PlaneError, match="no |has no"):
        control_plane.fault(words[0], words[1], **words[2])
