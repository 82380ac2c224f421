"""A small network for one host: its namespace, a router between it and us, and a CONNECT proxy on
our side. Needs root.

::

    the host 198.19.N.2 --- 198.19.N.1 the router 198.18.N.2 --- 198.18.N.1 we: plane and proxy
                                                             (and 192.0.2.N, which the host has no
                                                             route to)

The same with fd42:… addresses. Everything is in namespaces of this run's own, but for one end of a
veth pair.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.integration.host import Host
from tests.integration.spawn import BIN


def lacking() -> str | None:
    """Why namespaces cannot be used here; None: they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "ss") if shutil.which(tool) is None]
    if missing:
        return f"there is no {', '.join(missing)} (iproute2)"
    name = f"byteor-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this kernel or container makes no network namespaces"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Network:
    """Made by `with`; `plane`, `hidden` and `plane6` are addresses of ours to listen on."""

    def __init__(self) -> None:
        number = os.getpid() % 250 + 1
        mark = f"{os.getpid() % 0xFFFF:x}"
        self.host, self.router, self._ours = f"byteor-h{mark}", f"byteor-r{mark}", f"byp{mark}"
        self.plane, self._near = f"198.18.{number}.1", f"198.18.{number}.2"
        self.gateway, self.address, self.other_address = (
            f"198.19.{number}.{last}" for last in (1, 2, 3)
        )
        self.hidden = f"192.0.2.{number}"
        self.plane6, self._near6 = f"fd42:{mark}:1::1", f"fd42:{mark}:1::2"
        self._gateway6, self._address6 = f"fd42:{mark}:2::1", f"fd42:{mark}:2::2"

    def __enter__(self) -> Network:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for space in (self.host, self.router):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", self._ours], capture_output=True, check=False)

    def _make(self) -> None:
        for space in (self.host, self.router):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("link", "add", self._ours, "type", "veth", "peer", "name", "near0", "netns", self.router)
        ip(
            "-n",
            self.router,
            "link",
            "add",
            "far0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.host,
        )
        for address, length in ((self.plane, 24), (self.hidden, 32)):
            ip("address", "add", f"{address}/{length}", "dev", self._ours)
        ip("-6", "address", "add", f"{self.plane6}/64", "dev", self._ours, "nodad")
        ip("link", "set", self._ours, "up")
        for device, address, address6 in (
            ("near0", self._near, self._near6),
            ("far0", self.gateway, self._gateway6),
        ):
            ip("-n", self.router, "address", "add", f"{address}/24", "dev", device)
            ip("-n", self.router, "-6", "address", "add", f"{address6}/64", "dev", device, "nodad")
            ip("-n", self.router, "link", "set", device, "up")
        for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.inside("sh", "-c", f"echo 1 > /proc/sys/net/{switch}", space=self.router)
        self.use(self.address)
        ip("-n", self.host, "-6", "address", "add", f"{self._address6}/64", "dev", "eth0", "nodad")
        ip("-n", self.host, "-6", "route", "add", "default", "via", self._gateway6)
        # We answer by the router; a host that may not reach `hidden` has a route to `plane` alone.
        ip("route", "add", f"{self.gateway.rpartition('.')[0]}.0/24", "via", self._near)
        ip("-6", "route", "add", f"{self._gateway6.rpartition('::')[0]}::/64", "via", self._near6)

    def use(self, address: str) -> None:
        """Give the host this IPv4 address instead of the one it has, as a new lease would."""
        ip("-n", self.host, "-4", "address", "flush", "dev", "eth0")
        ip("-n", self.host, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", self.host, "link", "set", "eth0", "up")
        ip("-n", self.host, "route", "replace", f"{self.plane}/32", "via", self.gateway)

    def without_ipv4(self) -> None:
        ip("-n", self.host, "-4", "address", "flush", "dev", "eth0")

    def inside(self, *command: str, space: str | None = None) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", space or self.host, *command],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def connections(self) -> list[int]:
        """The host's own ports of its established TCP connections."""
        rows = self.inside("ss", "-Htn", "state", "established").splitlines()
        return [int(row.split()[2].rpartition(":")[2]) for row in rows]

    def forget(self, ports: Sequence[int]) -> None:
        """The router knows these connections no longer: it drops what comes, and says nothing."""
        for port in ports:
            ip(
                "-n",
                self.router,
                "rule",
                "add",
                "iif",
                "far0",
                "ipproto",
                "tcp",
                "sport",
                str(port),
                "blackhole",
            )


class NamespacedHost(Host):
    """A host whose commands run in the namespace."""

    def __init__(self, root: Path, plane: Any, network: Network) -> None:
        super().__init__(root, plane)
        self.network = network

    def start(self, *arguments: str, **keywords: Any) -> subprocess.Popen[str]:
        command, *rest = arguments
        proxies = ("https_proxy", "no_proxy", "http_proxy", "all_proxy")
        environ = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
        return subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.network.host,
                str(BIN / command),
                *rest,
                "--root",
                str(self.root),
            ],
            env={**environ, **keywords.pop("env", {})},
            text=True,
            stdin=keywords.pop("stdin", subprocess.DEVNULL),
            stdout=keywords.pop("stdout", subprocess.PIPE),
            stderr=keywords.pop("stderr", subprocess.PIPE),
            **keywords,
        )

    def heartbeat(self) -> dict[str, Any]:
        """What status.json says of the heartbeat now."""
        path = self.path("run/byteor-agent/status.json")
        return dict(json.loads(path.read_text())["loops"]["heartbeat"]) if path.exists() else {}


class ConnectProxy:
    """Connects those who give the right ``Proxy-Authorization``; keeps what it was asked."""

    def __init__(self, address: str, *, credentials: str) -> None:
        self.asked: list[bytes] = []
        self._credentials = credentials.encode()
        self._listener = socket.create_server((address, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        head = b""
        with client:
            while b"\r\n\r\n" not in head:
                got = client.recv(4096)
                if not got:
                    return
                head += got
            self.asked.append(head)
            if b"proxy-authorization: basic " + self._credentials.lower() not in head.lower():
                client.sendall(b"HTTP/1.1 407 credentials\r\nContent-Length: 0\r\n\r\n")
                return
            host, _, port = head.split()[1].decode().rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port))) as upstream:
                client.sendall(b"HTTP/1.1 200 connected\r\n\r\n")
                back = threading.Thread(target=_pump, args=(upstream, client), daemon=True)
                back.start()
                _pump(client, upstream)
                back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # one side is gone, and so is the other then
