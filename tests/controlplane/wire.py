"""The connection under a reply: uvicorn's protocol with a transport that can cut, drip, reset or
talk garbage.

The application finds it as ``scope["byteor.wire"]``. HTTP itself stays uvicorn's; only bytes are
held back or spoilt.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Wire:
    """A transport that passes everything on until it is told to misbehave."""

    def __init__(self, transport: Any) -> None:
        self._real = transport
        self._cut_after: int | None = None
        self._cut_by_reset = False
        self._pause_s: float | None = None
        self._step = 1
        self._queue: deque[bytes] = deque()
        self._held: list[bytes] = []
        self._drip: asyncio.Task[None] | None = None
        self._severed = False
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def is_closing(self) -> bool:
        return self._closing or bool(self._real.is_closing())

    def write(self, data: bytes) -> None:
        if self._severed:
            return
        if self._cut_after is not None:
            data, self._cut_after = data[: self._cut_after], self._cut_after - len(data)
        if self._pause_s is not None:
            self._flush()
            self._queue.extend(data[at : at + self._step] for at in range(0, len(data), self._step))
            if self._drip is None:
                self._drip = asyncio.get_running_loop().create_task(self._dripping())
        elif data:
            # With what else is written in this turn: servers send a short reply in one piece.
            if not self._held:
                asyncio.get_running_loop().call_soon(self._flush)
            self._held.append(data)
        if self._cut_after is not None and self._cut_after <= 0:
            self._sever()

    def _flush(self) -> None:
        held, self._held = b"".join(self._held), []
        if held:
            self._real.write(held)

    def close(self) -> None:
        self._flush()
        self._closing = True
        if self._drip is None:
            self._real.close()

    def cut_after(self, count: int, *, reset: bool) -> None:
        """Let `count` more bytes through, then end the connection, by a reset when asked."""
        self._cut_after, self._cut_by_reset = count, reset
        if count <= 0:
            self._sever()

    def drip(self, count: int, *, every_s: float) -> None:
        """From now on send `count` bytes every `every_s` seconds."""
        self._step, self._pause_s = count, every_s

    def say(self, data: bytes) -> None:
        """Send `data` as it is and close: no HTTP is added."""
        self._flush()
        self._real.write(data)
        self._severed = True
        self._real.close()

    def drop(self, *, reset: bool = False) -> None:
        """End the connection without another byte."""
        self._cut_by_reset = reset
        self._sever()

    def _sever(self) -> None:
        self._flush()
        self._severed = True
        if not self._cut_by_reset:
            self._real.close()
            return
        raw = self._real.get_extra_info("socket")
        # SO_LINGER of zero turns the close into a RST. TLS has handed its bytes to the kernel
        # already.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._real.abort()

    async def _dripping(self) -> None:
        while self._queue and not self._real.is_closing():
            self._real.write(self._queue.popleft())
            await asyncio.sleep(self._pause_s or 0)
        self._drip = None
        if self._closing:
            self._real.close()


class Protocol(H11Protocol):
    """H11 over a `Wire`, handed to the application in its scope."""

    def connection_made(self, transport: Any) -> None:
        wire = Wire(transport)
        super().connection_made(wire)  # type: ignore[arg-type]
        application = self.app

        async def with_wire(scope: Any, receive: Any, send: Any) -> None:
            await application({**scope, "byteor.wire": wire}, receive, send)

        self.app = with_wire
