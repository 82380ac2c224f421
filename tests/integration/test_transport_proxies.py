"""Proxies, and credentials that no failure, log or other server learns: real sockets, real TLS."""

from __future__ import annotations

import base64
import logging
import socket
import threading
import time
import traceback
from pathlib import Path
from typing import Callable

import pytest

from firstboot.api.connection import ProxyRefused
from firstboot.api.transport import NoAnswer, Unreachable
from firstboot.base.secret import Secret
from tests.integration.answering import (
    BEARER,
    OK,
    PEM,
    PROXY_PASSWORD,
    PROXY_QUOTED,
    PROXY_USER,
    Proxy,
    Server,
    answer,
    connect,
    drip,
    read_request,
    spoken,
)
from tests.integration.host import on_this_machine


def test_netrc_is_not_read(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither adds a credential nor replaces ours."""
    (tmp_path / ".netrc").write_text(
        "machine 127.0.0.1 login canary password canary\ndefault login canary password canary\n"
    )
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    seen: list[bytes] = []

    def script(connection: socket.socket) -> None:
        for _ in range(2):
            seen.append(read_request(connection))
            connection.sendall(OK)

    server, transport = serve(script), connect(ca_certificates=PEM)
    transport.request("GET", server.url)
    transport.request("GET", server.url, bearer=Secret(BEARER))
    assert b"authorization" not in seen[0].lower()
    assert f"Authorization: Bearer {BEARER}\r\n".encode() in seen[1]


def test_a_proxy_gets_its_password_and_never_the_bearer(serve: Callable[..., Server]) -> None:
    """CONNECT with the decoded password; the request itself is inside TLS."""
    seen: list[bytes] = []

    def script(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(OK)

    server, proxy = serve(script), Proxy(serve)
    transport = connect(ca_certificates=PEM, proxy=Secret(proxy.url), environ={})
    assert transport.request("GET", server.url, bearer=Secret(BEARER)).status == 200
    transport.close()
    expected = base64.b64encode(f"{PROXY_USER}:{PROXY_PASSWORD}".encode())
    assert expected in proxy.asked[0] and b"canary_0123456789" not in proxy.asked[0]
    assert f"Bearer {BEARER}".encode() in seen[0] and b"Proxy-Authorization" not in seen[0]


def test_proxies_come_from_settings_or_two_variables_and_respect_no_proxy(
    serve: Callable[..., Server],
) -> None:
    """HTTPS_PROXY and NO_PROXY in either case; settings win; everything else is ignored."""
    server, proxy = serve(answer(OK)), Proxy(serve)
    for environ, through in (
        ({"HTTPS_PROXY": proxy.url}, 1),
        ({"HTTPS_PROXY": proxy.url, "NO_PROXY": "10.0.0.0/8, 127.0.0.1"}, 0),
        ({"https_proxy": proxy.url}, 1),
        ({"https_proxy": proxy.url, "no_proxy": "127.0.0.1"}, 0),
        ({"ALL_PROXY": proxy.url, "HTTP_PROXY": proxy.url, "all_proxy": proxy.url}, 0),
    ):
        before = len(proxy.asked)
        transport = connect(ca_certificates=PEM, environ=environ)
        assert transport.request("GET", server.url).status == 200
        transport.close()
        assert len(proxy.asked) - before == through


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.1 407 no\r\n\r\n", b"HTTP/1.1 502 no\r\n\r\n", b"garbage\r\n\r\n", b"HTTP/1.1 200 "],
)
def test_a_proxy_that_refuses_is_named_without_its_password(
    serve: Callable[..., Server], reply: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """No credential in the sentence, in any exception of the chain, or in a library's log at its
    most verbose.
    """
    caplog.set_level(logging.DEBUG)
    server, proxy = serve(answer(OK)), Proxy(serve, reply)
    transport = connect(ca_certificates=PEM, proxy=Secret(proxy.url), environ={})
    with pytest.raises(Unreachable) as caught:
        transport.request("GET", server.url, bearer=Secret(BEARER), deadline_s=3)
    assert not caught.value.maybe_arrived
    assert "proxy" in str(caught.value)
    said = "".join(traceback.format_exception(caught.type, caught.value, caught.tb)) + caplog.text
    assert "w0rd-canary" not in said and "brk_canary" not in said


def test_no_cookie_is_kept(serve: Callable[..., Server]) -> None:
    """What a portal sets is not sent to the plane with the next request."""
    seen: list[bytes] = []

    def script(connection: socket.socket) -> None:
        for _ in range(2):
            seen.append(read_request(connection))
            connection.sendall(
                OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: portal=canary; Path=/\r\n\r\n")
            )

    server = serve(script)
    transport = connect(ca_certificates=PEM)
    for _ in range(2):
        assert transport.request("GET", server.url).status == 200
    assert b"canary" not in seen[1]


@pytest.mark.parametrize(
    "prefix", [b"HTTP/1.1 200 ", b"HTTP/1.1 407 no\r\nX: ", b"HTTP/1.1 200 ok\r\nX: "], ids=repr
)
def test_a_dripping_proxy_does_not_hold_a_loop(serve: Callable[..., Server], prefix: bytes) -> None:
    """The deadline covers the answer to CONNECT; nothing has arrived at the plane."""
    proxy, began = serve(drip(prefix), plain=True), time.monotonic()
    transport = connect(ca_certificates=PEM, proxy=Secret(f"http://127.0.0.1:{proxy.port}"))
    with pytest.raises(Unreachable, match="proxy") as caught:
        transport.request("GET", "https://127.0.0.1:1/x", deadline_s=0.7)
    assert time.monotonic() - began < on_this_machine(5) and not caught.value.maybe_arrived


@pytest.mark.parametrize(
    "place",
    ["[bad", "", "h:99999", "h:port", "no-such-host.invalid:3128", "127.0.0.1:1", "127.0.0.1:1 "],
    ids=lambda place: place or "no host",
)
def test_a_proxy_that_cannot_be_used_is_not_quoted(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A malformed address, an unknown name, nobody there: one sentence about the proxy, its
    password nowhere.
    """
    caplog.set_level(logging.DEBUG)
    transport = connect(proxy=Secret(f"http://user:{PROXY_QUOTED}@{place}"))
    with pytest.raises(Unreachable, match="proxy") as caught:
        transport.request("GET", "https://127.0.0.1:1/x", bearer=Secret(BEARER))
    assert not caught.value.maybe_arrived
    assert "w0rd-canary" not in spoken(caught, caplog) and BEARER not in spoken(caught, caplog)


@pytest.mark.parametrize(
    "bearer", [f"{BEARER}\r\nX: y", f"{BEARER}é", f"{BEARER}\u20ac", f" {BEARER}"], ids=repr
)
def test_a_credential_that_no_header_can_carry_is_not_quoted(
    bearer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is sent, and no library gets to complain about its characters."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Unreachable, match="credential") as caught:
        connect().request("GET", "https://127.0.0.1:1/x", bearer=Secret(bearer))
    assert "brk_canary" not in spoken(caught, caplog)


def test_no_failure_and_no_success_speaks_of_the_credential(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, over a good answer and every kind of bad one."""
    caplog.set_level(logging.DEBUG)
    for data in (
        OK,
        b"",
        b"garbage\r\n\r\n",
        OK.replace(b"Length: 2", b"Length: 9"),
        OK.replace(b"Length: 2", b"Length: x"),
    ):
        server = serve(answer(data))
        transport = connect(ca_certificates=PEM)
        try:
            transport.request("POST", server.url, bearer=Secret(BEARER), body=b"{}")
        except NoAnswer:
            assert "brk_canary" not in spoken(pytest.ExceptionInfo.from_current(), caplog)
        transport.close()
    with pytest.raises(Unreachable) as caught:
        connect(ca_certificates=PEM).request("GET", "https://127.0.0.1:1/", bearer=Secret(BEARER))
    assert "brk_canary" not in spoken(caught, caplog)
    assert "127.0.0.1" in caplog.text, "nothing was logged: the test proves nothing"


def test_plain_http_goes_through_no_proxy(serve: Callable[..., Server]) -> None:
    """It is for loopback: a proxy would read the credential."""
    server, proxy = serve(answer(OK), plain=True), Proxy(serve)
    transport = connect(proxy=Secret(proxy.url), environ={"HTTPS_PROXY": proxy.url})
    assert (
        transport.request("GET", f"http://127.0.0.1:{server.port}/x", bearer=Secret(BEARER)).status
        == 200
    )
    assert not proxy.asked


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 407 no\r\n\r\n", b"HTTP/1.1 200 "], ids=["refused", "stalled"]
)
def test_a_proxy_that_failed_is_let_go_at_once(serve: Callable[..., Server], reply: bytes) -> None:
    """Its socket does not live as long as the error that tells of it."""
    ended = threading.Event()

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(reply)
        if connection.recv(1) == b"":
            ended.set()

    proxy = serve(script, plain=True)
    transport = connect(ca_certificates=PEM, proxy=Secret(f"http://127.0.0.1:{proxy.port}"))
    with pytest.raises(Unreachable) as caught:
        transport.request("GET", "https://127.0.0.1:1/x", deadline_s=0.5)
    assert ended.wait(60), f"still connected while {caught.value!r} lives"


@pytest.mark.parametrize(
    ("reply", "sentence", "hint"),
    [
        (b"HTTP/1.1 407 no", "does not accept our credentials: 407", "password"),
        (b"HTTP/1.1 403 no", "refused to connect us to 127.0.0.1:1: 403", "allows"),
        (b"HTTP/1.1 503 no", "refused to connect us to 127.0.0.1:1: 503", "resolve and reach"),
        (b"SSH-2.0-OpenSSH", "no TLS session with 127.0.0.1:1 .through", "scheme of proxy"),
    ],
)
def test_a_proxy_is_named_with_what_is_wrong_with_it(
    serve: Callable[..., Server], reply: bytes, sentence: str, hint: str
) -> None:
    """Credentials, policy, no way on and no proxy at all are different sentences and hints."""
    proxy = Proxy(serve, reply + b"\r\n\r\n")
    with pytest.raises(Unreachable, match=sentence) as caught:
        connect(proxy=Secret(proxy.url)).request("GET", "https://127.0.0.1:1/x")
    assert f"the proxy 127.0.0.1:{proxy.server.port}" in str(caught.value)
    assert hint in str(caught.value.hint)
    assert isinstance(caught.value, ProxyRefused) == (b"407" in reply)
