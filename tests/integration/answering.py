"""Servers and proxies on real sockets that answer as a script says, over TLS or plain."""

from __future__ import annotations

import re
import select
import socket
import ssl
import threading
import time
from typing import Any, Callable

import pytest
import trustme

from firstboot.api.transport import Transport

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


def connect(**keywords: Any) -> Transport:
    OPEN.append(Transport(**{"environ": {}, **keywords}))
    return OPEN[-1]


def get(server: Server, **keywords: Any) -> Any:
    return connect(ca_certificates=PEM).request("GET", server.url, **keywords)


def drip(prefix: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(prefix)
        while True:
            connection.sendall(b"a")
            time.sleep(0.1)

    return script


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
