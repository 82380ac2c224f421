"""Real programs between a host and the control plane: squid, nginx, HAProxy of Debian."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import trustme

START_LIMIT_S = 20.0
CA = trustme.CA()
PEM = CA.cert_pem.bytes().decode()
SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"

# Asked line by line whether a user has this password, both quoted as squid does.
HELPER = r"""#!/bin/sh
while read -r line; do
    case "$line" in
        edge%20user\ p@ss:w/rd | edge%20user\ p%40ss%3[Aa]w%2[Ff]rd) echo OK ;;
        *) echo ERR ;;
    esac
done
"""

SQUID = """
http_port 127.0.0.1:{port}
pid_filename {directory}/squid.pid
access_log stdio:{directory}/access.log
cache_log {directory}/cache.log
coredump_dir {directory}
cache deny all
auth_param basic program {directory}/helper
auth_param basic children 1
auth_param basic realm test
auth_param basic casesensitive on
acl forbidden port {forbidden}
acl known proxy_auth REQUIRED
http_access deny forbidden
http_access allow known
http_access deny all
shutdown_lifetime 0 seconds
"""

NGINX = """
daemon off; master_process on; error_log {directory}/error.log; pid {directory}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    ssl_certificate {directory}/chain.pem; ssl_certificate_key {directory}/chain.pem;
    server {{
        listen 127.0.0.1:{port} ssl http2;
        client_max_body_size 1m; keepalive_timeout 1s; proxy_read_timeout 5s;
        location / {{ proxy_pass {upstream}; }}
        location /api/v1/agents/moved/ {{ return 301 https://other.example/login?next=secret; }}
        location /api/v1/agents/zipped/ {{
            rewrite ^/api/v1/agents/zipped/([^/]+)/(.*)$ /api/v1/agents/$1/$2 break;
            proxy_pass http://127.0.0.1:{inner};
            proxy_set_header Accept-Encoding gzip;
        }}
    }}
    server {{
        listen 127.0.0.1:{inner};
        gzip on; gzip_min_length 1; gzip_types *; gzip_proxied any; gzip_http_version 1.0;
        location / {{ proxy_pass {upstream}; }}
    }}
}}
"""

HAPROXY = """
global
    stats socket {directory}/stats
defaults
    timeout connect 2s
    timeout client 5s
    timeout server 5s
frontend tls
    mode http
    bind 127.0.0.1:{port} ssl crt {directory}/chain.pem alpn h2,http/1.1
    default_backend plane
backend plane
    mode http
    server one {address} ssl verify none
frontend through
    mode tcp
    bind 127.0.0.1:{inner}
    default_backend announced
backend announced
    mode tcp
    server one {address} send-proxy
"""


def lacking(*programs: str) -> str | None:
    """Return which of these Debian packages is not there; None when all are."""
    missing = [name for name in programs if shutil.which(name, path=SBIN) is None]
    return f"there is no {', '.join(missing)} (apt-get install it)" if missing else None


class Middlebox:
    """One program with a configuration of ours, from `with` to its end."""

    def __init__(self, program: str, text: str, *arguments: str, **values: object) -> None:
        self._program, self._text, self._arguments, self._values = program, text, arguments, values
        with socket.socket() as one, socket.socket() as two:
            for sock in (one, two):
                sock.bind(("127.0.0.1", 0))
            self.port, self.inner = one.getsockname()[1], two.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        # Not a directory of pytest's: squid gives its rights away, and has to reach it.
        self.directory = Path(tempfile.mkdtemp(prefix=f"byteor-{program}-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Middlebox:
        self._write("chain.pem", CA.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes())
        self._write("helper", HELPER.encode(), mode=0o755)
        known = {"directory": self.directory, "port": self.port, "inner": self.inner}
        text = self._text.format(**known, **self._values)
        self._configuration = self._write("configuration", text.encode())
        if os.geteuid() == 0:
            os.chmod(self.directory, 0o755)
            if self._program == "squid":
                os.chown(self.directory, pwd.getpwnam("proxy").pw_uid, -1)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write(self, name: str, data: bytes, mode: int = 0o644) -> Path:
        path = self.directory / name
        path.write_bytes(data)
        path.chmod(mode)
        return path

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [str(shutil.which(self._program, path=SBIN)), *self._arguments]
        with open(self.directory / "output", "ab") as output:
            self._process = subprocess.Popen(
                [*command, str(self._configuration)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        limit = time.monotonic() + START_LIMIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > limit or self._process.poll() is not None:
                    raise RuntimeError((self.directory / "output").read_text()[-2000:]) from None
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it and its children, at once by default."""
        if self._process is not None:
            os.killpg(self._process.pid, number)
            self._process.wait(60)
            self._process = None


def squid(*, forbidden: int) -> Middlebox:
    """Return a proxy that connects the user ``edge user``, but not to the port `forbidden`."""
    return Middlebox("squid", SQUID, "-N", "-f", forbidden=forbidden)


def nginx(upstream: str) -> Middlebox:
    """Return a TLS server in front of `upstream` with limits of its own; see `NGINX`."""
    return Middlebox("nginx", NGINX, "-c", upstream=upstream)


def haproxy(address: str) -> Middlebox:
    """Return a balancer in front of `address`; its inner port speaks the PROXY protocol to it."""
    return Middlebox("haproxy", HAPROXY, "-db", "-f", address=address)
