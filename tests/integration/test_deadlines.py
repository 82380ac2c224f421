"""One deadline over a whole request: resolver, addresses, proxy, TLS, sending, reply."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import trustme

from firstboot.api import connection
from firstboot.api.transport import NoAnswer, Transport, Unreachable
from firstboot.base.errors import TryAgain
from firstboot.base.secret import Secret

DEADLINE_S, LATE_S = 0.7, 2.0  # the latter for a busy machine
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CA = trustme.CA()
PEM = CA.cert_pem.bytes().decode()
Begin = Callable[[Callable[[socket.socket], None]], int]


@pytest.fixture
def hole() -> Iterator[int]:
    """A port of every loopback address where SYNs are dropped: its queue is full."""
    held = [socket.socket(socket.AF_INET6)]
    held[0].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    held[0].bind(("::", 0))
    held[0].listen(0)
    port = held[0].getsockname()[1]
    try:
        while len(held) < 10:
            held.append(socket.create_connection(("127.0.0.1", port), timeout=0.3))
        pytest.fail("the queue of a listening socket has no end")
    except OSError:
        yield port
    finally:
        for one in held:
            one.close()


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Return a function that serves each connection by a script, and returns the port."""
    ended, threads, listeners = threading.Event(), [], []

    def serve(listener: socket.socket, script: Callable[[socket.socket], None]) -> None:
        while not ended.is_set():
            raw, _ = listener.accept()
            with raw:
                raw.settimeout(5)
                try:
                    script(raw)
                except OSError:
                    pass  # the client gave up, as it should

    def start(script: Callable[[socket.socket], None]) -> int:
        listeners.append(socket.create_server(("127.0.0.1", 0)))
        threads.append(threading.Thread(target=serve, args=(listeners[-1], script)))
        threads[-1].start()
        return int(listeners[-1].getsockname()[1])

    yield start
    ended.set()
    for listener, thread in zip(listeners, threads):
        with socket.socket() as last:  # a test may have replaced the resolver
            last.connect(listener.getsockname())
        thread.join(10)
        listener.close()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds the resolver's thread of another one."""
    monkeypatch.setattr(connection.current, "resolver", connection.Resolver())


def ask(url: str, *, deadline_s: float = DEADLINE_S, body: bytes | None = None, **more: Any) -> Any:
    """Send one request; it must end within its deadline."""
    transport = Transport(ca_certificates=PEM, environ={}, **more)
    began = time.monotonic()
    try:
        return transport.request("POST", url, body=body, deadline_s=deadline_s)
    finally:
        transport.close()
        assert time.monotonic() - began < deadline_s + LATE_S


def resolve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, int], list[Any]]) -> None:
    """Let `answer` be the resolver; addresses are none of its business."""
    real = socket.getaddrinfo

    def fake(host: Any, port: Any, *arguments: Any, **keywords: Any) -> list[Any]:
        if keywords.get("flags") == socket.AI_NUMERICHOST:
            return list(real(host, port, *arguments, **keywords))
        return answer(host, port)

    monkeypatch.setattr(socket, "getaddrinfo", fake)


def entries(port: int, *addresses: str) -> list[Any]:
    return [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (one, port, 0, 0))
        if ":" in one
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
        for one in addresses
    ]


def secure(connected: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("localhost", "plane.example").configure_cert(context)
    with context.wrap_socket(connected, server_side=True) as wrapped:
        wrapped.recv(65536)
        wrapped.sendall(OK)


def test_a_resolver_that_hangs_costs_one_thread_and_its_late_answer_is_used(
    monkeypatch: pytest.MonkeyPatch, begin: Begin
) -> None:
    """The first attempt waits for its deadline, the next fail at once; all say since when."""
    released, port, asked = threading.Event(), begin(secure), []

    def hang(host: str, port: int) -> list[Any]:
        asked.append(host)
        released.wait(20)
        return entries(port, "127.0.0.1")

    resolve(monkeypatch, hang)
    url = f"https://plane.example:{port}/x"
    with pytest.raises(Unreachable, match="the name plane.example is still being resolved: the "):
        ask(url)
    for other in (url, "https://other.example/"):
        with pytest.raises(Unreachable, match="plane.example .*has not answered for [1-9] s"):
            ask(other, deadline_s=0.1)
    assert sum(thread.name == "resolver" for thread in threading.enumerate()) == 1
    released.set()
    for thread in threading.enumerate():
        if thread.name == "resolver":
            thread.join(10)
    assert ask(url, deadline_s=5).status == 200 and asked == ["plane.example"]
    assert ask(url, deadline_s=5).status == 200 and len(asked) == 2, "used once"


@pytest.mark.parametrize("by_proxy", [False, True])
def test_addresses_that_drop_syns_share_the_time(
    monkeypatch: pytest.MonkeyPatch, hole: int, by_proxy: bool
) -> None:
    """Fourteen of them, of the control plane or of a proxy: said with their number and the time."""
    resolve(monkeypatch, lambda host, port: entries(port, *(f"127.0.0.{n}" for n in range(1, 15))))
    proxy = Secret(f"http://proxy.example:{hole}") if by_proxy else None
    who = "the proxy proxy.example" if by_proxy else "plane.example"
    said = rf"connecting to {who}:{hole}: none of 14 addresses answered in \d\.\d s"
    with pytest.raises(Unreachable, match=said) as caught:
        ask(f"https://plane.example:{hole}/x", proxy=proxy)
    assert caught.value.hint and not caught.value.maybe_arrived


def test_the_families_alternate(monkeypatch: pytest.MonkeyPatch, hole: int, begin: Begin) -> None:
    """Where IPv6 leads nowhere, IPv4 is next; a refused address costs no time."""
    port = begin(secure)
    dead = entries(hole, "::1", "::1", "::1")
    found = [*dead, *entries(1, "127.0.0.1"), *entries(port, "127.0.0.1")]
    resolve(monkeypatch, lambda *_: found)
    assert ask("https://localhost:1/x", deadline_s=5).status == 200
    resolve(monkeypatch, lambda *_: [*dead, *entries(1, "127.0.0.1")])
    with pytest.raises(Unreachable, match="cannot connect to localhost:1: connection refused"):
        ask("https://localhost:1/x")


def drip(connected: socket.socket, prefix: bytes = b"") -> None:
    """Send `prefix`, then a byte at a time, which is a TLS record that never ends."""
    connected.sendall(prefix)
    for byte in itertools.chain(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb", itertools.repeat(0)):
        connected.sendall(bytes([byte]))
        time.sleep(0.05)


def test_a_handshake_that_drips_ends_with_the_deadline(begin: Begin) -> None:
    """Directly, and behind a proxy whose own answer took most of the time."""
    with pytest.raises(Unreachable, match="no TLS session"):
        ask(f"https://127.0.0.1:{begin(drip)}/x")

    def connect(client: socket.socket) -> None:
        client.recv(65536)
        time.sleep(DEADLINE_S - 0.2)
        drip(client, b"HTTP/1.1 200 connected\r\n\r\n")

    with pytest.raises(Unreachable, match="the proxy"):
        ask("https://127.0.0.1:1/x", proxy=Secret(f"http://127.0.0.1:{begin(connect)}"))


@pytest.mark.parametrize("reading", [0, 4096])
def test_a_body_that_is_not_taken_ends_with_the_deadline(begin: Begin, reading: int) -> None:
    """A server that reads nothing, and one that reads a little now and then."""

    def script(raw: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        CA.issue_cert("127.0.0.1").configure_cert(context)
        with context.wrap_socket(raw, server_side=True) as wrapped:
            until = time.monotonic() + DEADLINE_S + 2 * LATE_S
            while time.monotonic() < until:
                time.sleep(0.05)
                if reading and not wrapped.recv(reading):
                    return

    with pytest.raises(NoAnswer, match="in time") as caught:
        ask(f"https://127.0.0.1:{begin(script)}/x", body=bytes(32 << 20))
    assert caught.value.maybe_arrived


def test_a_name_that_cannot_be_resolved_says_why() -> None:
    """The resolver's own words; a text that is no name has none."""
    with pytest.raises(TryAgain, match="cannot resolve the name of no-such-host.invalid:443: "):
        ask("https://no-such-host.invalid/", deadline_s=10)
    with pytest.raises(TryAgain, match="cannot resolve|not usable"):
        ask(f"https://{'x' * 70}.example/")
