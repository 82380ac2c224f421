"""The server process: the public origin and the object store over TLS, the admin interface on
loopback, one loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.controlplane import tls
from tests.controlplane import words as spoken
from tests.controlplane.app import Application
from tests.controlplane.plane import Plane
from tests.controlplane.wire import Protocol

ADMIN_FILE = "admin.json"
BACKLOG = 2048
IP_FREEBIND = 15  # <linux/in.h>; Python names it only from 3.12 on


class _Server(uvicorn.Server):
    """Three of them share one loop, so none may take the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listener(host: str, port: int) -> socket.socket:
    """A bound socket: also on an address that no interface has yet, and beside one that holds the
    port for us.
    """
    # IPPROTO_TCP by name: asyncio sets TCP_NODELAY only on sockets that say so.
    sock = socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    sock.bind((host, port))
    return sock


class Admin:
    """POST /{word} with JSON arguments and the admin secret: what the fixture and the command
    use.
    """

    def __init__(self, plane: Plane, secret: str) -> None:
        self._words, self._secret = spoken.Words(plane), secret

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        response = await self._answer(request)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._secret}".encode()):
            return JSONResponse({"error": "not the admin secret"}, 401)
        word = request.url.path.lstrip("/")
        action = None if word.startswith("_") else getattr(self._words, word, None)
        if action is None:
            return JSONResponse({"error": f"no word {word}"}, 404)
        try:
            return JSONResponse({"result": action(**json.loads(await request.body() or b"{}"))})
        except (ValueError, TypeError, KeyError) as error:
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 400)


def _server(application: Any, context: Any) -> _Server:
    config = uvicorn.Config(
        application,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        timeout_keep_alive=120,
        backlog=BACKLOG,
        proxy_headers=False,
    )
    config.load()
    config.ssl = context
    return _Server(config)


async def serve(
    state: Path,
    host: str,
    port: int,
    *,
    names: Sequence[str] = (),
    store_port: int = 0,
    announce: bool = True,
    with_parent: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT; `state` gets admin.json (0600) with the addresses and the admin secret."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a fleet holds its connections open
    plane = Plane(state)
    certificates = tls.Certificates(
        tls.load_ca(state), tls.names_for(host, names), fault=plane.faults.for_handshake
    )
    public, store, admin = (
        listener(host, port),
        listener(host, store_port),
        listener("127.0.0.1", 0),
    )
    shown = f"[{host}]" if ":" in host else host
    plane.store_url = f"https://{shown}:{store.getsockname()[1]}"
    secret = secrets.token_urlsafe(24)
    servers: list[_Server] = [
        _server(Application(plane), certificates.context),
        _server(Application(plane, origin="store"), certificates.context),
        _server(Admin(plane, secret), None),
    ]
    plane.connections = servers[0].server_state.connections
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, plane)
    if with_parent:
        # The pipe that our parent holds ends with it, however it ends: no plane stays behind a
        # killed test.
        loop.add_reader(0, _end, plane)
    tasks = [
        asyncio.ensure_future(s.serve(sockets=[k])) for s, k in zip(servers, (public, store, admin))
    ]
    while not all(server.started for server in servers):
        await asyncio.sleep(0.005)
    facts = {
        "base_url": f"https://{shown}:{public.getsockname()[1]}",
        "store_url": plane.store_url,
        "pid": os.getpid(),
        "admin_port": admin.getsockname()[1],
        "secret": secret,
        "host": host,
        "port": public.getsockname()[1],
        "store_port": store.getsockname()[1],
    }
    draft = state / f"{ADMIN_FILE}.new"
    with open(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        json.dump(facts, file)
    draft.replace(state / ADMIN_FILE)
    if announce:
        print(
            f"control plane: {facts['base_url']} (CA: {state / 'ca.pem'})",
            file=sys.stderr,
            flush=True,
        )
    await asyncio.gather(*tasks)


def _end(plane: Plane) -> None:
    # Crash-only: everything is committed already, and a test must not wait for a slow client.
    plane.store.close()
    os._exit(0)
