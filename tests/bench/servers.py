"""A TLS server that is never the bottleneck of a transfer: GET sends zeros, POST reads and forgets.
A process of its own.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
from pathlib import Path

from tests.controlplane import tls

PIECE = bytes(1 << 20)
REPLY = b'{"artifact_id": "art_1", "duplicate": false}'


def _serve(sock: ssl.SSLSocket, size: int, buffer: bytearray) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        got = sock.recv(65536)
        if not got:
            return
        head += got
    head, _, rest = head.partition(b"\r\n\r\n")
    if head.startswith(b"GET"):
        sock.sendall(
            b'HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\nETag: "1"\r\nConnection: close\r\n'
            b"Content-Length: %d\r\n\r\n" % size
        )
        for _ in range(size // len(PIECE)):
            sock.sendall(PIECE)
        return
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    left = int(fields[b"content-length"]) - len(rest)
    while left > 0:
        got = sock.recv_into(buffer)
        if not got:
            return
        left -= got
    sock.sendall(
        b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        % len(REPLY)
        + REPLY
    )


def _connection(raw: socket.socket, context: ssl.SSLContext, size: int) -> None:
    try:
        with context.wrap_socket(raw, server_side=True) as sock:
            _serve(sock, size, bytearray(256 * 1024))
    except OSError:
        pass  # the client went; the next run says so by itself


def main() -> None:
    """``python -m tests.bench.servers DIRECTORY SIZE``: prints its port and serves until it is
    ended.
    """
    directory, size = Path(sys.argv[1]), int(sys.argv[2])
    context = tls.Certificates(
        tls.load_ca(directory), tls.names_for("127.0.0.1"), fault=lambda: None
    ).context
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        while True:
            raw, _ = listener.accept()
            threading.Thread(target=_connection, args=(raw, context, size), daemon=True).start()


if __name__ == "__main__":
    main()
