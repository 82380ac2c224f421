"""The only HTTP of this package: one request, one answer or one error. No retry, no paths, no policy.

Nothing comes from the caller's environment behind our back: no ``.netrc``, ``REQUESTS_CA_BUNDLE``, ``SSL_CERT_FILE``,
``SSLKEYLOGFILE`` or implicit proxy. Trust is the operating system's store or exactly the configured certificates, never
the bundle that a wheel ships. Every request has time-outs on connect and read, a deadline over the whole, which a
server that drips a byte a second cannot stretch, and a ceiling of bytes. Redirects are answers like any other.
"""

from __future__ import annotations

import functools
import http.client
import os
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NoReturn
from urllib.parse import urlsplit

from firstboot.api import lean  # noqa: F401 - before requests  # isort: skip
import requests.adapters
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from firstboot import __version__
from firstboot.api.connection import READ_S, Unreachable, connect, current
from firstboot.api.proxies import place, proxy_for, usable
from firstboot.api.stream import BLOCK_BYTES, Body, NoAnswer, Stream
from firstboot.api.tls import NamedContext, tls_context
from firstboot.base.clock import monotonic
from firstboot.base.secret import Secret

CEILING_BYTES = 1 << 20  # of JSON replies (contract 2)
DEADLINE_S = 60.0  # of a request that names no other
USER_AGENT = f"byteor-firstboot/{__version__}"


@dataclass(frozen=True)
class Reply:
    """One answer, whole. `date` is its ``Date`` header in seconds since the epoch."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    date: float | None

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").split(";")[0].strip().lower()


class _Response(http.client.HTTPResponse):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        current.response = self


class _PlainConnection(HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> Any:
        return connect(self._dns_host, self.port or 0)

    def putrequest(self, *arguments: Any, **keywords: Any) -> None:
        current.sent = True  # urllib3 shakes hands, also with a proxy, before it comes here
        super().putrequest(*arguments, **keywords)


class _TlsConnection(_PlainConnection, HTTPSConnection):
    def _connect_tls_proxy(self, hostname: str, *arguments: Any) -> Any:
        """Expect an https proxy's own name, also where that is an address."""
        plane, current.expected = current.expected, hostname
        connected = super()._connect_tls_proxy(hostname, *arguments)
        current.expected = plane
        return connected


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{**keywords, "blocksize": BLOCK_BYTES})


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection

    def __init__(self, context: NamedContext, *arguments: Any, **keywords: Any) -> None:
        # Whatever requests asks for: 2.32.0 and 2.32.1 insist on a context of theirs, which trusts
        # certifi's bundle.
        ours = {"ssl_context": context, "blocksize": BLOCK_BYTES}
        super().__init__(*arguments, **{**keywords, **ours})


class _Adapter(requests.adapters.HTTPAdapter):
    """requests' adapter with our TLS context and connections, without certifi's bundle."""

    def __init__(self, context: NamedContext) -> None:
        self._context = context
        self._pools: dict[str, Any] = {
            "http": _PlainPool,
            "https": functools.partial(_TlsPool, context),
        }
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **keywords)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> Any:
        manager = super().proxy_manager_for(
            proxy, ssl_context=self._context, proxy_ssl_context=self._context, **keywords
        )
        manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs, conn.ca_certs, conn.ca_cert_dir = "CERT_REQUIRED", None, None

    def build_connection_pool_key_attributes(
        self, request: Any, verify: Any, cert: Any = None
    ) -> Any:
        parts = urlsplit(request.url)
        host = {"scheme": parts.scheme, "host": parts.hostname, "port": parts.port}
        return host, {"cert_reqs": "CERT_REQUIRED", "ssl_context": self._context}

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        """Build it without Content-Type's parameters: requests crashes on a bare ``charset``."""
        if "Content-Type" in resp.headers:
            resp.headers["Content-Type"] = resp.headers["Content-Type"].split(";")[0]
        return super().build_response(req, resp)


class _Session(requests.Session):
    """requests' session that sees no redirect: else it would read one's body whole to learn where it leads."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class Transport:
    """One session with one kept-alive connection; for one thread."""

    def __init__(
        self,
        *,
        ca_certificates: str | None = None,
        proxy: Secret | None = None,
        no_proxy: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._proxy, self._no_proxy, self._environ = proxy, tuple(no_proxy), environ
        self._session = _Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(
            DefaultCookiePolicy(allowed_domains=[])
        )  # none is kept, none is sent
        self._context = tls_context(ca_certificates)
        adapter = _Adapter(self._context)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def request(
        self,
        method: str,
        url: str,
        *,
        bearer: Secret | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        ceiling: int = CEILING_BYTES,
        deadline_s: float = DEADLINE_S,
    ) -> Reply:
        """Send one request and read its whole answer of at most `ceiling` bytes; Unreachable or NoAnswer."""
        with self.stream(
            method, url, bearer=bearer, headers=headers, body=body, deadline_s=deadline_s
        ) as answer:
            return Reply(
                status=answer.status,
                headers=answer.headers,
                body=answer.whole(ceiling),
                date=answer.date,
            )

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
    ) -> Iterator[Stream]:
        """Send one request and hand out its answer, whose body comes as it is read; Unreachable or NoAnswer.

        A `body` with ``read`` and ``__len__`` is sent in blocks. `deadline_s` is for all of it, also for what is read inside
        the ``with``; an OSError that something else raises there would be taken for the network's.
        """
        sent = {
            "User-Agent": USER_AGENT,
            "Accept": "application/json, application/problem+json",
            "Accept-Encoding": "identity",
            **(headers or {}),
        }
        if bearer is not None:
            if not all("!" <= c <= "~" for c in bearer.reveal()):  # requests would quote it
                raise Unreachable("the credential holds characters that no header can carry")
            sent["Authorization"] = f"Bearer {bearer.reveal()}"
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        # Never for http, which goes to loopback only: a proxy would read the credential.
        proxy = self._proxy_for(host, port) if parts.scheme == "https" else None
        where, way = f"{host}:{port}", place(proxy) if proxy is not None else None
        until = monotonic() + deadline_s
        current.sent, current.response, current.expected = False, None, host
        current.peer = f"the proxy {way}" if way is not None else where
        # What takes long is a body, theirs or ours: an answer to none begins as soon as a short one.
        current.limit = until if body is not None else min(until, monotonic() + DEADLINE_S)
        try:
            with self._session.request(
                method,
                url,
                headers=sent,
                data=body,
                proxies={"https": proxy.reveal()} if proxy is not None else {},
                timeout=READ_S,
                allow_redirects=False,
                stream=True,
            ) as response:
                found = {name.lower(): value for name, value in response.headers.items()}
                current.limit = until
                yield Stream(response.status_code, found, response.raw, host)
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
        ) as error:
            _translate(error, where, proxy=way)
        except ValueError as error:
            if not current.sent:
                raise Unreachable(f"the address of {where} is not usable") from error
            raise NoAnswer(f"{host} answered something that is not HTTP") from error
        finally:
            # Python 3.9 leaves a refusing proxy's, which holds the socket open.
            if current.response is not None:
                current.response.close()

    def _proxy_for(self, host: str, port: int) -> Secret | None:
        proxy = proxy_for(
            host, port, proxy=self._proxy, no_proxy=self._no_proxy, environ=self._environ
        )
        if proxy is not None and not usable(proxy):
            raise Unreachable(
                "the proxy is not a usable URL",
                hint="give proxy or HTTPS_PROXY like http://proxy.example:3128",
            )
        return proxy

    def close(self) -> None:
        """Close the kept-alive connection."""
        self._session.close()


def _causes(error: BaseException) -> list[BaseException]:
    """The error with everything inside it: requests wraps urllib3, which wraps ssl and socket errors."""
    found, todo = [], [error]
    while todo:
        one = todo.pop()
        if one in found:
            continue
        found.append(one)
        inner = [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
        todo.extend(item for item in inner if isinstance(item, BaseException))
    return found


def _translate(error: BaseException, where: str, *, proxy: str | None) -> NoReturn:
    """Raise what a person needs to know; library messages are not quoted: they may hold a proxy's password."""
    causes = _causes(error)

    def has(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    way = f"{where} (through the proxy {proxy})" if proxy else where
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise Unreachable(
                f"the certificate of {where} is not accepted: {cause.verify_message}",
                hint="check the host's clock, api_base_url and ca_certificates",
            ) from error
    if any(
        str(cause).startswith("Tunnel connection failed: 407") for cause in causes
    ):  # http.client's sentence
        raise Unreachable(
            f"{current.peer} does not accept our credentials: 407",
            hint="check proxy and its password",
        ) from error
    if has(urllib3.exceptions.ProxyError) and not current.sent:
        raise Unreachable(
            f"{current.peer} did not connect us to {where}", hint="check proxy and its password"
        ) from error
    if has(requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema):
        raise Unreachable(f"the address of {where} is not usable") from error
    if not current.sent and has(ssl.SSLError, OSError, urllib3.exceptions.HTTPError):
        raise Unreachable(f"no TLS session with {way}") from error
    if has(socket.timeout, requests.Timeout, urllib3.exceptions.TimeoutError):
        raise NoAnswer(f"no answer from {way} in time") from error
    raise NoAnswer(f"the connection with {way} ended before the answer was whole") from error
