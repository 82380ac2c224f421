"""Resolve, connect, send and read under one deadline.

`http.client` waits for each recv by itself, so a server that drips a byte a second would hold a
worker for ever, and `getaddrinfo` knows no time-out at all. Here name resolution, every address,
the TLS handshake, a proxy's answer to CONNECT and every read and write wait at most for what is
left of the request's time.
"""

from __future__ import annotations

import itertools
import math
import socket
import ssl
import threading
from typing import Any, Callable

from firstboot.base.clock import monotonic
from firstboot.base.errors import TryAgain

CONNECT_S = 10.0  # the longest wait for one address
DEADLINE_S = 60.0  # of a request that names no other
READ_S = 20.0  # the longest silence while sending or within an answer
ON_THE_WAY = "retried automatically; if it persists, check the network and any proxy on the way"
FRESH_S = 60.0  # how long an answer of the resolver that came too late may still be used


class Unreachable(TryAgain):
    """No TLS session with the control plane: the request certainly never arrived."""

    def __init__(self, message: str, *, hint: str = ON_THE_WAY) -> None:
        super().__init__(message, hint=hint, maybe_arrived=False)


class ProxyRefused(Unreachable):
    """A proxy rejects our credentials: each further attempt may lock an account."""


def _timed(method: Callable[..., Any]) -> Any:
    """Return a socket's `method`, bounded by what is left of the deadline."""

    def wrapped(sock: socket.socket, *arguments: Any) -> Any:
        left = current.limit - monotonic()
        if left <= 0:
            raise socket.timeout("the deadline has passed")
        sock.settimeout(min(READ_S, left))
        return method(sock, *arguments)

    return wrapped


class _PlainSocket(socket.socket):
    recv = _timed(socket.socket.recv)
    recv_into = _timed(socket.socket.recv_into)
    sendall = _timed(socket.socket.sendall)


class TlsSocket(ssl.SSLSocket):
    """A TLS connection whose handshake, reads and writes keep to the deadline."""

    do_handshake = _timed(ssl.SSLSocket.do_handshake)
    recv = _timed(ssl.SSLSocket.recv)
    recv_into = _timed(ssl.SSLSocket.recv_into)
    send = _timed(ssl.SSLSocket.send)  # `sendall` is made of it


class _Lookup(threading.Thread):
    """One call of `getaddrinfo`, in a thread that nobody has to join."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name="resolver", daemon=True)
        self.asked, self.began, self.ended = (host, port), monotonic(), math.inf
        self.addresses: list[Any] = []
        self.reason = "not a host name"

    def run(self) -> None:
        try:
            self.addresses = socket.getaddrinfo(*self.asked, type=socket.SOCK_STREAM)
        except OSError as error:
            self.reason = str(error.strerror).lower()
        except UnicodeError:
            pass
        self.ended = monotonic()


class Resolver:
    """Resolve names with at most one thread, however long that hangs.

    While it hangs, every further attempt fails at once. An answer that came too late for its
    request is used for the next one: a resolver whose first servers are dead takes 10 s and more.
    """

    def __init__(self) -> None:
        self._lookup: _Lookup | None = None

    def addresses(self, host: str, port: int) -> list[Any]:
        """Return what `getaddrinfo` does; Unreachable without an answer within the deadline."""
        try:  # an address needs no resolver
            return socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        except (OSError, UnicodeError):
            pass
        lookup, self._lookup = self._lookup, None
        if lookup is None or not lookup.is_alive():
            if (
                lookup is None
                or lookup.asked != (host, port)
                or monotonic() - lookup.ended > FRESH_S
            ):
                lookup = _Lookup(host, port)
                lookup.start()
            lookup.join(max(0.0, current.limit - monotonic()))
        if lookup.is_alive():
            self._lookup = lookup
            since = monotonic() - lookup.began
            raise Unreachable(
                f"the name {lookup.asked[0]} is still being resolved: "
                f"the resolver has not answered for {since:.0f} s",
                hint="check the name servers in /etc/resolv.conf",
            )
        if not lookup.addresses:
            raise Unreachable(
                f"cannot resolve the name of {current.peer}: {lookup.reason}",
                hint="check DNS, api_base_url and proxy",
            )
        return lookup.addresses


class _Current(threading.local):
    """This thread's request, as its sockets see it, and its resolver."""

    limit = math.inf  # when what it does now must be over, on the monotonic clock
    body_limit = math.inf  # the same for sending its body
    sent = False  # True when a byte of it may be out
    peer = ""  # whom we connect to, for people to read
    expected: str | None = None  # whose certificate is asked for
    at_proxy = False  # True while that is an https proxy
    response: Any = None  # the latest one begun

    def __init__(self) -> None:
        self.resolver = Resolver()


current = _Current()


def connect(host: str, port: int) -> socket.socket:
    """Return a connection with the first address that answers, or Unreachable.

    Each address has a fair share of the time that is left, and the families alternate: where IPv6
    leads nowhere, the second attempt is IPv4 already.
    """
    found = current.resolver.addresses(host.strip("[]"), port)
    preferred = [one for one in found if one[0] == found[0][0]]
    others = [one for one in found if one[0] != found[0][0]]
    addresses = [
        one for pair in itertools.zip_longest(preferred, others) for one in pair if one is not None
    ]
    began, reason = monotonic(), None
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        left = current.limit - monotonic()
        if left <= 0:
            break
        try:
            made = _PlainSocket(family, kind, protocol)
        except OSError as error:  # the family is switched off here, or no descriptor is left
            reason = error.strerror
            continue
        made.settimeout(min(CONNECT_S, left / (len(addresses) - tried)))
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.connect(address)
            return made
        except OSError as error:
            made.close()
            reason = error.strerror or reason  # a time-out of ours has none
    hint = f"check that {current.peer} can be reached from this host: routes, firewall, proxy"
    if reason is not None:
        raise Unreachable(f"cannot connect to {current.peer}: {reason.lower()}", hint=hint)
    said = f"none of {len(addresses)} addresses answered" if len(addresses) > 1 else "no answer"
    raise Unreachable(
        f"connecting to {current.peer}: {said} in {monotonic() - began:.1f} s", hint=hint
    )
