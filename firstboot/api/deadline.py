"""A deadline over one whole HTTP answer, in whatever pieces and however slowly it comes.

`http.client` waits for each recv on its own, so a server that drips a byte a second would hold a loop for ever. Here
every recv, of status line, headers, body and of a proxy's CONNECT answer, waits at most for what is left.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
from typing import Any

from firstboot.base.clock import monotonic

READ_S = 20.0  # the longest silence within an answer

# This thread's request: .limit, when it must be over on the monotonic clock; .sent, whether a byte of it may be out;
# .response, the latest one begun.
current = threading.local()


class _Deadlined(io.RawIOBase):
    """What http.client reads from: every recv waits at most for what is left of the whole request's time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # holds the socket open as http.client expects

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = getattr(current, "limit", float("inf")) - monotonic()
        if left <= 0:
            raise socket.timeout("the deadline has passed")
        self._sock.settimeout(min(READ_S, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Makefile:
    """Stands in for the socket in HTTPResponse, which asks it for one thing."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Deadlined(self._sock))


class DeadlinedResponse(http.client.HTTPResponse):
    """Reads status line, headers, body and a proxy's CONNECT answer under the deadline."""

    def __init__(self, sock: socket.socket, *arguments: Any, **keywords: Any) -> None:
        super().__init__(_Makefile(sock), *arguments, **keywords)  # type: ignore[arg-type]
        current.response = self
