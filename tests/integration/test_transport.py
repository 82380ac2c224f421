"""The one door to the network over real sockets: how long it waits, what counts as an answer."""

from __future__ import annotations

import gzip
import socket
import subprocess
import sys
import time
from typing import Callable

import pytest

from firstboot.api.stream import media_type
from firstboot.api.transport import NoAnswer, Unreachable
from tests.integration.answering import (
    OK,
    PEM,
    Server,
    answer,
    connect,
    drip,
    get,
    read_request,
)
from tests.integration.host import on_this_machine


@pytest.mark.parametrize(
    "prefix",
    [
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    ],
    ids=["status line", "header", "body", "endless body"],
)
def test_a_dripping_server_does_not_hold_a_loop(
    serve: Callable[..., Server], prefix: bytes
) -> None:
    """The deadline covers the whole answer, wherever it drips."""
    began = time.monotonic()
    with pytest.raises(NoAnswer) as caught:
        get(serve(drip(prefix)), deadline_s=0.7)
    assert time.monotonic() - began < on_this_machine(5)
    assert caught.value.maybe_arrived


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (OK.replace(b"Content-Length: 2", b"Content-Length: 9"), "cut|ended"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc", "ended"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "ended"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n", "ended"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000, "larger"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 3_000_000, "larger"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "gzip"),
        (b"", "ended"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "ended"),
        (b"HTTP/1.1 " + b"2" * 70_000 + b"\r\n\r\n", "ended"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "ended"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", "ended"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "ended"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n{}", "ended|not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Encoding: br\r\n\r\n{}", "encoding"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\nConnection: close\r\n\r\n{}",
            "not HTTP|ended",
        ),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_an_answer_that_is_not_whole_is_no_answer(
    serve: Callable[..., Server], data: bytes, why: str
) -> None:
    """Cut, garbage, flooded, too large, encoded: one sentence, and the request may have arrived."""
    with pytest.raises(NoAnswer, match=why) as caught:
        get(serve(answer(data)))
    assert caught.value.maybe_arrived


def test_a_body_longer_than_announced_is_cut_there_and_the_rest_is_no_answer(
    serve: Callable[..., Server],
) -> None:
    """Nobody slips the answer to the next request in behind the answer to this one."""
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ncanary!"
    server, transport = serve(answer(OK + smuggled)), connect(ca_certificates=PEM)
    assert transport.request("GET", server.url).body == b"{}"
    try:
        assert transport.request("GET", server.url).body == b"{}"
    except NoAnswer:
        pass


def test_answers_before_the_answer_end_with_the_deadline(serve: Callable[..., Server]) -> None:
    """An endless flood of 100 Continue is neither an answer nor a reason to stay."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    began = time.monotonic()
    with pytest.raises(NoAnswer):
        get(serve(script), deadline_s=0.7)
    assert time.monotonic() - began < on_this_machine(5)


def test_chunks_and_an_empty_answer_are_whole(serve: Callable[..., Server]) -> None:
    """Pieces are put together; 204 has no body and keeps the connection."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\nTrailer: x\r\n\r\n"
    empty = b"HTTP/1.1 204 No Content\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\n\r\n"

    def script(connection: socket.socket) -> None:
        for data in (chunked, empty, OK):
            read_request(connection)
            connection.sendall(data)

    server, transport = serve(script), connect(ca_certificates=PEM)
    replies = [transport.request("GET", server.url) for _ in range(3)]
    assert [reply.body for reply in replies] == [b"{}", b"", b"{}"]
    assert (replies[1].status, replies[1].date) == (204, 1_700_000_000.0)
    assert server.connections == 1


def test_redirects_are_answers(serve: Callable[..., Server]) -> None:
    """Nothing is followed."""
    server = serve(
        answer(b"HTTP/1.1 307 x\r\nLocation: https://evil.example/\r\nContent-Length: 0\r\n\r\n")
    )
    assert get(server).status == 307
    assert server.connections == 1


def test_one_connection_serves_many_requests_and_a_stale_one_costs_at_most_one(
    serve: Callable[..., Server],
) -> None:
    """Keep-alive; what a load balancer closed meanwhile is seen before sending, and no POST goes
    out twice.
    """
    server = serve(answer(OK, times=2))
    transport = connect(ca_certificates=PEM, environ={})
    for _ in range(2):
        assert transport.request("POST", server.url, body=b"{}").status == 200
    assert server.connections == 1
    failures = 0
    for _ in range(2):
        try:
            transport.request("POST", server.url, body=b"{}")
        except NoAnswer:
            failures += 1
    assert failures <= 1


@pytest.mark.parametrize("read_first", [True, False], ids=["after reading", "before reading"])
def test_no_request_is_sent_twice(serve: Callable[..., Server], read_first: bool) -> None:
    """A connection closed under the second request costs that request; nobody repeats it behind our
    back.
    """
    seen: list[bytes] = []

    def script(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(OK)
        if server.connections == 1:
            seen.append(read_request(connection) if read_first else connection.recv(1))

    server: Server = serve(script)
    transport = connect(ca_certificates=PEM)
    outcomes = []
    for number in range(3):
        try:
            outcomes.append(
                transport.request(
                    "POST", server.url, body=b"{}", headers={"X-Number": str(number)}
                ).status
            )
        except NoAnswer as error:
            assert error.maybe_arrived
            outcomes.append(0)
    assert outcomes == [200, 0, 200]
    assert [
        number
        for number in range(3)
        if sum(f"X-Number: {number}".encode() in one for one in seen) > 1
    ] == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://127.0.0.1:1/", "refused"),
        ("https://no-such-host.invalid/", "resolve"),
        ("https://[::1]:1/", "connect"),
    ],
)
def test_what_cannot_be_reached_certainly_got_nothing(url: str, why: str) -> None:
    """Refused, unknown name: said, and the token was not spent."""
    with pytest.raises(Unreachable, match=why) as caught:
        connect(ca_certificates=PEM, environ={}).request("GET", url)
    assert not caught.value.maybe_arrived


def test_no_tls_at_the_other_end_got_nothing(serve: Callable[..., Server]) -> None:
    """Plain HTTP, or a connection that ends in the handshake."""

    def hang_up(connection: socket.socket) -> None:
        connection.recv(1000)

    for script in (
        hang_up,
        lambda connection: connection.sendall(b"HTTP/1.1 400 no TLS here\r\n\r\n"),
    ):
        with pytest.raises(Unreachable) as caught:
            get(serve(script, plain=True))
        assert not caught.value.maybe_arrived


def test_the_library_loads_neither_yaml_nor_cryptography() -> None:
    """The resident process imports this: it must stay small."""
    code = "import sys, firstboot.api.client; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"yaml", "cryptography", "OpenSSL"} & set(modules)


def test_a_content_type_without_sense_crashes_nothing(serve: Callable[..., Server]) -> None:
    """requests would look for a charset in it, which nobody needs, and trip over one without a
    value.
    """
    for parameters in (b"; charset", b";charset;", b"; charset=", b";;=;", b""):
        reply = get(serve(answer(OK.replace(b"/json", b"/json" + parameters))))
        assert (reply.status, reply.body) == (200, b"{}")
        assert media_type(reply.headers) == "application/json"


@pytest.mark.parametrize("status", [b"304 Not Modified", b"204 No Content"])
def test_an_answer_without_a_body_may_say_how_long_another_would_be(
    serve: Callable[..., Server], status: bytes
) -> None:
    """Its Content-Length announces nothing that could be cut; the connection is kept."""
    server = serve(answer(b"HTTP/1.1 " + status + b"\r\nContent-Length: 500\r\n\r\n", times=2))
    transport = connect(ca_certificates=PEM)
    for _ in range(2):
        reply = transport.request("GET", server.url)
        assert (reply.status, reply.body) == (int(status[:3]), b"")


def test_a_silent_handshake_ends_with_the_deadline(serve: Callable[..., Server]) -> None:
    """Somebody accepts and says nothing: the time for connecting is never longer than that for
    all.
    """

    def script(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        get(serve(script, plain=True), deadline_s=0.7)
    assert time.monotonic() - began < on_this_machine(5) and not caught.value.maybe_arrived


def test_what_comes_before_the_answer_is_skipped(serve: Callable[..., Server]) -> None:
    """100 and 103, with headers of their own, before each answer of one connection."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    server, transport = serve(answer(hints + hints + OK, times=2)), connect(ca_certificates=PEM)
    for _ in range(2):
        reply = transport.request("GET", server.url)
        assert (reply.status, reply.body, reply.headers.get("link")) == (200, b"{}", None)
    assert server.connections == 1


def zipped(body: bytes) -> bytes:
    packed = gzip.compress(body)
    return OK.replace(b"Length: 2\r\n", b"Length: %d\r\nContent-Encoding: gzip\r\n" % len(packed))[
        :-2
    ] + (packed)


def test_gzip_that_was_not_asked_for_is_undone_within_the_ceiling(
    serve: Callable[..., Server],
) -> None:
    """nginx with "gzip on" ignores Accept-Encoding where a second one stands before it."""
    assert get(serve(answer(zipped(b'{"a": 1}')))).body == b'{"a": 1}'
    with pytest.raises(NoAnswer, match="larger than 1048576 bytes"):
        get(serve(answer(zipped(bytes(64 << 20)))))
    cut = gzip.compress(b"x" * 1000)[:-3]
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(cut)
    with pytest.raises(NoAnswer, match="cut in its gzip"):
        get(serve(answer(head + cut)))
