"""The only HTTP of this package: one request, one answer or error.

No retry, no policy. Nothing comes from the caller's environment behind our back: no ``.netrc``,
``REQUESTS_CA_BUNDLE``, ``SSL_CERT_FILE``, ``SSLKEYLOGFILE`` or implicit proxy. Trust is the
operating system's store or exactly the configured certificates, never the bundle that a wheel
ships. Every request has one deadline (see `connection`) and a ceiling of bytes. Redirects are
answers like any other, and there is no cookie jar: requests' adapter sends, without a session.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import socket
import ssl
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, NoReturn
from urllib.parse import urlsplit

from firstboot import __version__
from firstboot.api.connection import (
    DEADLINE_S,
    READ_S,
    ProxyRefused,
    Unreachable,
    connect,
    current,
)
from firstboot.api.proxies import place, proxy_for
from firstboot.api.stream import BLOCK_BYTES, Body, NoAnswer, Reply, Stream
from firstboot.api.tls import NamedContext, tls_context
from firstboot.base.clock import monotonic
from firstboot.base.files import JSON_LIMIT
from firstboot.base.secret import Secret

_DETECTORS = ("chardet", "charset_normalizer")


def _detect(data: bytes) -> dict[str, Any]:
    name = next(filter(importlib.util.find_spec, _DETECTORS))
    found: dict[str, Any] = importlib.import_module(name).detect(data)
    return found


def _import_requests() -> None:
    """Import it without the character detection that nothing here asks for.

    These are 2.9 MiB of tables in a resident process (Debian 12, measured) and 10 ms of each
    command's start; requests loads them to guess the encoding of a text, and our answers are bytes.
    What asks for a guess all the same gets the real library, loaded then.
    """
    modules: dict[str, Any] = sys.modules
    if any(name in modules for name in ("requests", *_DETECTORS)):
        return  # somebody else's process: it has what it has
    modules["chardet"] = stand_in = types.ModuleType("chardet")
    # In the range of every requests from 2.25 on, which compares it and warns.
    vars(stand_in).update(__version__="3.0.4", detect=_detect)
    modules["charset_normalizer"] = None
    try:
        importlib.import_module("requests")
    finally:
        for name in _DETECTORS:
            del modules[name]


_import_requests()
import requests.adapters  # noqa: E402
import urllib3  # noqa: E402
from urllib3.connection import HTTPConnection, HTTPSConnection  # noqa: E402
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool  # noqa: E402

# X509_V_ERR_* of OpenSSL: not yet or no longer valid; of another host name or address.
NOT_NOW, NOT_ITS_NAME = (9, 10), (62, 64)
USER_AGENT = f"byteor-firstboot/{__version__}"


class _Response(http.client.HTTPResponse):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        current.response = self

    def _read_status(self) -> tuple[str, int, str]:
        """Skip 102 and 103 (Early Hints) as http.client skips 100."""
        while True:
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if not 101 < found[1] < 200:
                return found
            http.client.parse_headers(self.fp)


class _PlainConnection(HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> Any:
        return connect(self._dns_host, self.port or 0)

    def putrequest(self, *arguments: Any, **keywords: Any) -> None:
        current.sent = True  # urllib3 shakes hands, also with a proxy, before it comes here
        current.limit = current.body_limit
        super().putrequest(*arguments, **keywords)

    def getresponse(self) -> Any:
        current.limit = min(current.limit, monotonic() + DEADLINE_S)
        return super().getresponse()


class _TlsConnection(_PlainConnection, HTTPSConnection):
    def _connect_tls_proxy(self, hostname: str, *arguments: Any) -> Any:
        """Expect an https proxy's own name, also where that is an address."""
        control_plane, current.expected, current.at_proxy = current.expected, hostname, True
        connected = super()._connect_tls_proxy(hostname, *arguments)
        current.expected, current.at_proxy = control_plane, False
        return connected


def _pool(kind: Any, connection: Any, **ours: Any) -> Any:
    """Return what makes pools of our connections, whatever requests asks for.

    2.32.0 and 2.32.1 insist on a TLS context of theirs, which trusts certifi's bundle.
    """
    made = type(kind.__name__, (kind,), {"ConnectionCls": connection})
    ours["blocksize"] = BLOCK_BYTES
    return lambda *arguments, **keywords: made(*arguments, **{**keywords, **ours})


class _Adapter(requests.adapters.HTTPAdapter):
    """requests' adapter with our TLS context and connections, without certifi's bundle."""

    def __init__(self, context: NamedContext) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self._context = context
        self._pools = {
            "http": _pool(HTTPConnectionPool, _PlainConnection),
            "https": _pool(HTTPSConnectionPool, _TlsConnection, ssl_context=context),
        }
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> Any:
        manager = super().proxy_manager_for(proxy, proxy_ssl_context=self._context, **keywords)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs, conn.ca_certs, conn.ca_cert_dir = "CERT_REQUIRED", None, None

    def build_response(self, req: Any, resp: Any) -> Any:
        """Return urllib3's own: requests looks for cookies, and crashes on a bare ``charset``."""
        return resp


class Transport:
    """One kept-alive connection; for one thread."""

    def __init__(
        self,
        *,
        ca_certificates: str | None = None,
        proxy: Secret | None = None,
        no_proxy: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._proxy_for = partial(proxy_for, proxy=proxy, no_proxy=tuple(no_proxy), environ=environ)
        self._adapter = _Adapter(tls_context(ca_certificates))

    def request(
        self, method: str, url: str, *, ceiling: int = JSON_LIMIT, **keywords: Any
    ) -> Reply:
        """Do as `stream`, and read the answer, of at most `ceiling` bytes."""
        with self.stream(method, url, **keywords) as answer:
            return Reply(answer.status, answer.headers, answer.whole(ceiling), answer.date)

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        bearer: Secret | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        deadline_s: float = DEADLINE_S,
        head_s: float = DEADLINE_S,
    ) -> Iterator[Stream]:
        """Send one request and yield its answer, not read yet.

        Unreachable or NoAnswer. A `body` with ``read`` and ``__len__`` is sent in blocks.
        `deadline_s` is for all of it, also for what is read inside the ``with``; an OSError that
        something else raises there would be taken for the network's. `head_s`: for the way there.
        """
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        # Never for http, which goes to loopback only: a proxy would read the credential.
        proxy = self._proxy_for(host, port) if parts.scheme == "https" else None
        where, way = f"{host}:{port}", place(proxy) if proxy is not None else None
        until = monotonic() + deadline_s
        current.sent, current.response = False, None
        current.expected, current.at_proxy = host, False
        current.peer = f"the proxy {way}" if way is not None else where
        # A body says that it makes progress, theirs or ours; all else the watchdog has to wait for.
        current.limit = min(until, monotonic() + min(head_s, DEADLINE_S))
        current.body_limit = until if body is not None else current.limit
        try:
            answer: Any = self._adapter.send(
                _prepared(method, url, {**_headers(bearer), **(headers or {})}, body),
                stream=True,
                timeout=READ_S,
                proxies={"https": proxy.reveal()} if proxy is not None else {},
            )
            with closing(answer):
                # By name: several of one name are joined.
                found = {name.lower(): answer.headers[name] for name in answer.headers}
                if body is None:
                    current.limit = until
                yield Stream(answer.status, found, answer, host)
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
        ) as error:
            _translate(error, where, proxy=way)
        except ValueError as error:
            if not current.sent:
                raise _unusable(where) from error
            raise NoAnswer(f"{host} answered something that is not HTTP") from error
        finally:
            # Python 3.9 leaves a refusing proxy's, which holds the socket open.
            if current.response is not None:
                current.response.close()

    def close(self) -> None:
        """Close the kept-alive connection."""
        self._adapter.close()


def _prepared(
    method: str, url: str, headers: Mapping[str, str], body: bytes | Body | None
) -> requests.PreparedRequest:
    request = requests.PreparedRequest()
    # As it is: our URLs need no quoting, and urllib3 parses them twice more.
    request.method, request.url = method, url
    request.prepare_headers(headers)
    request.prepare_body(body, None)
    return request


def _headers(bearer: Secret | None) -> dict[str, str]:
    found = {
        "User-Agent": USER_AGENT,
        "Accept": "application/json, application/problem+json",
        "Accept-Encoding": "identity",
        "Connection": "keep-alive",  # for proxies that speak HTTP/1.0
    }
    if bearer is not None:
        if not all("!" <= c <= "~" for c in bearer.reveal()):  # requests would quote it
            raise Unreachable(
                "the credential holds characters that no header can carry",
                hint="give the token or key exactly as it was issued",
            )
        found["Authorization"] = f"Bearer {bearer.reveal()}"
    return found


def _unusable(where: str) -> Unreachable:
    return Unreachable(f"the address of {where} is not usable", hint="check api_base_url")


def _translate(error: BaseException, where: str, *, proxy: str | None) -> NoReturn:
    """Raise what a person needs; library messages may hold a password."""
    causes = [error]  # requests wraps urllib3, which wraps ssl and sockets
    while causes[-1].__context__ is not None:
        causes.append(causes[-1].__context__)

    def has(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    way = f"{where} (through the proxy {proxy})" if proxy else where
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise _distrusted(cause, where, proxy) from error
        refused = re.match(r"Tunnel connection failed: (\d{3})", str(cause))  # http.client's words
        if refused is not None:
            raise _no_tunnel(int(refused[1]), where) from error
    if has(requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema):
        raise _unusable(where) from error
    if not current.sent and has(ssl.SSLError, OSError, urllib3.exceptions.HTTPError):
        raise Unreachable(
            f"no TLS session with {way}",
            hint="something else may answer there: check the host, port and scheme of "
            + ("proxy" if proxy else "api_base_url"),
        ) from error
    if has(socket.timeout, requests.Timeout, urllib3.exceptions.TimeoutError):
        raise NoAnswer(f"no answer from {way} in time") from error
    raise NoAnswer(f"the connection with {way} ended before the answer was whole") from error


def _distrusted(cause: ssl.SSLCertVerificationError, where: str, proxy: str | None) -> Unreachable:
    """Say whose certificate it is: an https proxy's, or the server's."""
    if current.at_proxy:
        return Unreachable(
            f"the certificate of the proxy {proxy} itself is not accepted: {cause.verify_message}",
            hint=_remedy(cause, "proxy", "add the proxy's authority to ca_certificates"),
        )
    if proxy is not None:
        return Unreachable(
            f"the certificate for {where}, seen through the proxy {proxy}, is not accepted: "
            f"{cause.verify_message}",
            hint=_remedy(
                cause,
                "api_base_url",
                "if the proxy inspects TLS, add its authority to ca_certificates; else check "
                "api_base_url and ca_certificates",
            ),
        )
    return Unreachable(
        f"the certificate of {where} is not accepted: {cause.verify_message}",
        hint=_remedy(
            cause,
            "api_base_url",
            "add the authority that signed it to ca_certificates; if a proxy on the way inspects "
            "TLS, add that proxy's",
        ),
    )


def _remedy(cause: ssl.SSLCertVerificationError, key: str, otherwise: str) -> str:
    """Return what to do about a certificate, by OpenSSL's code: time, name, or its authority."""
    if cause.verify_code in NOT_NOW:
        return "check this host's clock; if it is right, the certificate must be renewed there"
    if cause.verify_code in NOT_ITS_NAME:
        return f"check {key}: the certificate was made for another name"
    return otherwise


def _no_tunnel(status: int, where: str) -> Unreachable:
    if status == 407:
        return ProxyRefused(
            f"{current.peer} does not accept our credentials: 407",
            hint="check proxy and its password",
        )
    return Unreachable(
        f"{current.peer} refused to connect us to {where}: {status}",
        hint="check that the proxy allows this host and port"
        if status in (403, 405)
        else "check that the proxy can resolve and reach it",
    )
