"""The one door to the network: real sockets, real TLS; what it trusts, how long it waits, what it
says, what it keeps quiet.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import logging
import os
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import certifi
import pytest
import trustme

from firstboot.api import tls
from firstboot.api.connection import ProxyRefused
from firstboot.api.stream import media_type
from firstboot.api.transport import NoAnswer, Transport, Unreachable
from firstboot.base.errors import LocalFault
from firstboot.base.secret import Secret

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CA = trustme.CA()
PEM = CA.cert_pem.bytes().decode()
Script = Callable[[socket.socket], None]


class Server:
    """One listening socket; each connection is handed, after TLS unless `plain`, to `script`."""

    def __init__(
        self,
        script: Script,
        *,
        names: tuple[str, ...] = ("127.0.0.1", "localhost"),
        plain: bool = False,
        **issued: Any,
    ) -> None:
        self._script, self._context = script, None
        if not plain:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            CA.issue_cert(*names, **issued).configure_cert(self._context)
        self.connections, self.requests, self._ended = 0, [], False  # type: ignore[var-annotated]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}/x"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            raw, _ = self._listener.accept()
            if self._ended:
                raw.close()
                return
            self.connections += 1
            try:
                with (
                    raw
                    if self._context is None
                    else self._context.wrap_socket(raw, server_side=True) as connection
                ):
                    connection.settimeout(10)
                    self._script(connection)
            except OSError:
                continue

    def close(self) -> None:
        self._ended = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join(15)
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(script: Script, **keywords: Any) -> Server:
        servers.append(Server(script, **keywords))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def read_request(connection: socket.socket) -> bytes:
    data, length = b"", 0
    while b"\r\n\r\n" not in data or len(data.split(b"\r\n\r\n", 1)[1]) < length:
        piece = connection.recv(65536)
        if not piece:
            raise OSError("closed")
        data += piece
        announced = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", data)
        length = int(announced.group(1)) if announced else 0
    return data


def answer(data: bytes, *, times: int = 1) -> Script:
    def script(connection: socket.socket) -> None:
        for _ in range(times):
            read_request(connection)
            connection.sendall(data)

    return script


OPEN: list[Transport] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No test leaves a connection behind."""
    yield
    while OPEN:
        OPEN.pop().close()


def connect(**keywords: Any) -> Transport:
    OPEN.append(Transport(**{"environ": {}, **keywords}))
    return OPEN[-1]


def get(server: Server, **keywords: Any) -> Any:
    return connect(ca_certificates=PEM).request("GET", server.url, **keywords)


# -- trust


def test_exactly_the_configured_authority_is_trusted(serve: Callable[..., Server]) -> None:
    """The plane's CA: fine; another: a sentence about the authority, and certainly nothing
    arrived.
    """
    server = serve(answer(OK))
    assert get(server).body == b"{}"
    with pytest.raises(Unreachable, match="certificate") as caught:
        connect(ca_certificates=trustme.CA().cert_pem.bytes().decode(), environ={}).request(
            "GET", server.url
        )
    assert not caught.value.maybe_arrived


def test_a_certificate_of_another_name_is_refused(serve: Callable[..., Server]) -> None:
    """An address counts as a name too, also where urllib3 does not pass it on."""
    with pytest.raises(Unreachable, match="certificate"):
        get(serve(answer(OK), names=("10.1.2.3", "plane.example")))


def test_bundles_of_wheels_and_of_the_environment_are_not_trusted(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither certifi nor any variable adds a root; keys are logged nowhere."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(PEM)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setattr(certifi, "where", lambda: str(bundle))
    server = serve(answer(OK))
    with pytest.raises(Unreachable):
        connect(environ={}).request("GET", server.url)
    connect(ca_certificates=PEM, environ={}).request("GET", server.url)
    assert not (tmp_path / "keys").exists()
    assert tls.tls_context(PEM).minimum_version >= ssl.TLSVersion.TLSv1_2
    with pytest.raises(LocalFault):
        tls.tls_context("no certificate")


def test_an_expired_certificate_is_refused(serve: Callable[..., Server]) -> None:
    """The sentence says so, and the hint thinks of the host's clock."""
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    with pytest.raises(Unreachable, match="expired") as caught:
        get(serve(answer(OK), not_after=yesterday))
    assert not caught.value.maybe_arrived and "clock" in str(caught.value.hint)


@pytest.mark.filterwarnings("ignore:.*TLSv1:DeprecationWarning")
def test_tls_before_1_2_is_refused(serve: Callable[..., Server]) -> None:
    """A server that can do no better got nothing; the very same server with 1.2 is answered."""
    server = serve(answer(OK))
    assert server._context is not None
    server._context.set_ciphers("DEFAULT:@SECLEVEL=0")
    server._context.minimum_version = ssl.TLSVersion.TLSv1
    server._context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(Unreachable, match="no TLS session") as caught:
        get(server)
    assert not caught.value.maybe_arrived
    server._context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert get(server).status == 200


def test_without_configured_certificates_the_systems_store_is_trusted_alone(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled-in file first, then where systems keep it, then the directory; without any of
    them: said.
    """
    store, none = tmp_path / "store.pem", str(tmp_path / "none")
    store.write_text(PEM)
    server, compiled = serve(answer(OK)), ssl.get_default_verify_paths()

    def system(cafile: str, bundles: tuple[str, ...], capath: str) -> Transport:
        paths = compiled._replace(openssl_cafile=cafile, openssl_capath=capath)
        monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
        monkeypatch.setattr(tls, "OS_BUNDLES", bundles)
        tls._shared.clear()  # what other threads would share
        return connect()

    for transport in (system(str(store), (), none), system(none, (none, str(store)), none)):
        assert transport.request("GET", server.url).status == 200
        transport.close()
    with pytest.raises(Unreachable, match="certificate"):
        system(none, (), str(tmp_path)).request("GET", server.url)
    with pytest.raises(LocalFault, match="no trust store"):
        system(none, (), none)


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


# -- time and size


def drip(prefix: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(prefix)
        while True:
            connection.sendall(b"a")
            time.sleep(0.1)

    return script


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
    assert time.monotonic() - began < 5
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
    assert time.monotonic() - began < 5


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


# -- connections


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


# -- proxies and secrets

PROXY_USER, PROXY_PASSWORD = "user", "p@ss:w0rd-canary"
BEARER = "brk_canary_0123456789"
PROXY_QUOTED = "p%40ss%3Aw0rd-canary"


class Proxy:
    """A CONNECT proxy that keeps what it was asked."""

    def __init__(
        self, serve: Callable[..., Server], reply: bytes = b"HTTP/1.1 200 ok\r\n\r\n"
    ) -> None:
        self.asked: list[bytes] = []
        self._reply = reply
        self.server = serve(self._connect, plain=True)
        self.url = f"http://{PROXY_USER}:{PROXY_QUOTED}@127.0.0.1:{self.server.port}"

    def _connect(self, client: socket.socket) -> None:
        head = read_request(client)
        self.asked.append(head)
        client.sendall(self._reply)
        if not self._reply.startswith(b"HTTP/1.1 200"):
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            back = threading.Thread(target=pump, args=(upstream, client))
            back.start()
            pump(client, upstream)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


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


def test_the_library_loads_neither_yaml_nor_cryptography() -> None:
    """The resident process imports this: it must stay small."""
    code = "import sys, firstboot.api.client; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"yaml", "cryptography", "OpenSSL"} & set(modules)


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


def spoken(caught: pytest.ExceptionInfo[BaseException], caplog: pytest.LogCaptureFixture) -> str:
    """Everything that the failure says anywhere: the whole chain, suppressed or not, and every log
    record.
    """
    texts, todo = [caplog.text], [caught.value]
    while todo:
        error = todo.pop()
        texts += [str(error), repr(error), str(getattr(error, "hint", ""))]
        todo += [inner for inner in (error.__cause__, error.__context__) if inner is not None]
    return "\n".join(texts)


@pytest.mark.parametrize(
    "prefix", [b"HTTP/1.1 200 ", b"HTTP/1.1 407 no\r\nX: ", b"HTTP/1.1 200 ok\r\nX: "], ids=repr
)
def test_a_dripping_proxy_does_not_hold_a_loop(serve: Callable[..., Server], prefix: bytes) -> None:
    """The deadline covers the answer to CONNECT; nothing has arrived at the plane."""
    proxy, began = serve(drip(prefix), plain=True), time.monotonic()
    transport = connect(ca_certificates=PEM, proxy=Secret(f"http://127.0.0.1:{proxy.port}"))
    with pytest.raises(Unreachable, match="proxy") as caught:
        transport.request("GET", "https://127.0.0.1:1/x", deadline_s=0.7)
    assert time.monotonic() - began < 5 and not caught.value.maybe_arrived


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
    assert ended.wait(5), f"still connected while {caught.value!r} lives"


CERTIFI_IS_OURS = """
import sys, certifi
certifi.where = lambda: sys.argv[2]
import requests.certs
assert requests.certs.where() == sys.argv[2]
from firstboot.base.errors import TryAgain
from firstboot.api.transport import Transport
transport = Transport(environ={})
try:
    print(transport.request("GET", sys.argv[1]).status)
except TryAgain as error:
    print(error)
finally:
    transport.close()
"""


def test_a_root_that_only_certifi_holds_is_not_trusted(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """Not even where requests loads the bundle as it is imported (2.32.0 and later do); no session
    key is logged.
    """
    bundle, keys = tmp_path / "certifi.pem", tmp_path / "keys"
    bundle.write_text(PEM)
    command = [sys.executable, "-c", CERTIFI_IS_OURS, serve(answer(OK)).url, str(bundle)]
    environ = {
        **os.environ,
        "REQUESTS_CA_BUNDLE": str(bundle),
        "SSL_CERT_FILE": str(bundle),
        "SSLKEYLOGFILE": str(keys),
    }
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert "certificate" in ran.stdout, ran.stdout
    assert (
        not keys.exists() or b"SECRET" not in keys.read_bytes()
    )  # importing some versions of requests makes the file


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
    assert time.monotonic() - began < 5 and not caught.value.maybe_arrived


def relay(client: socket.socket) -> None:
    """CONNECT over TLS: one thread for both directions, since one TLS session is not for two."""
    host, _, port = read_request(client).split()[1].decode().rpartition(":")
    client.sendall(b"HTTP/1.1 200 ok\r\n\r\n")
    with socket.create_connection((host, int(port))) as upstream:
        while True:
            for source in select.select([client, upstream], [], [], 10)[0]:
                data = source.recv(65536)
                if not data:
                    return
                (upstream if source is client else client).sendall(data)


@pytest.mark.parametrize(("name", "accepted"), [("127.0.0.1", True), ("localhost", False)])
def test_a_proxy_behind_tls_answers_to_its_own_name(
    serve: Callable[..., Server], name: str, accepted: bool
) -> None:
    """Reached by its address, it must show that address; the plane's name does not make it a
    proxy.
    """
    server, proxy = serve(answer(OK), names=("localhost",)), serve(relay, names=(name,))
    transport = connect(
        ca_certificates=PEM, proxy=Secret(f"https://user:password@127.0.0.1:{proxy.port}")
    )
    url = f"https://localhost:{server.port}/x"
    if accepted:
        assert transport.request("GET", url).status == 200
        transport.close()
    else:
        with pytest.raises(Unreachable, match="certificate"):
            transport.request("GET", url)


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


def test_whose_certificate_is_not_accepted_is_said(serve: Callable[..., Server]) -> None:
    """An https proxy's own, or what comes through a proxy, which may inspect TLS."""
    server, behind = serve(answer(OK)), serve(relay)
    for pem, proxy, said in (
        (None, Secret(f"https://127.0.0.1:{behind.port}"), f"the proxy 127.0.0.1:{behind.port} i"),
        (None, Secret(Proxy(serve).url), f"127.0.0.1:{server.port}, seen through the proxy"),
    ):
        with pytest.raises(Unreachable, match=f"certificate (of|for) {said}") as caught:
            connect(ca_certificates=pem, proxy=proxy).request("GET", server.url)
        assert "authority to ca_certificates" in str(caught.value.hint)


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
