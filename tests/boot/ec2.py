"""A metadata service as EC2's, which hands the same user data to every boot that asks.

cloud-init's EC2 datasource never trusts its cache: it fetches the user data again at every boot, so
a token that was erased is back. Use it in a ``with`` block; ``seeds.ec2`` points a guest at
``url``. Session tokens (IMDSv2) are given and checked, but optional, as on an instance with
``HttpTokens=optional``: cloud-init asks for one only where the firmware says "Amazon", and a
container cannot say so.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_TOKEN_PATH = "/latest/api/token"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"
_TOKEN_LIFE_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"


class MetadataService:
    """Serves ``user_data`` for one instance at ``address``; counts what was asked."""

    def __init__(self, address: str, *, instance_id: str, hostname: str, user_data: str) -> None:
        self.user_data = user_data.encode()
        self.metadata: Mapping[str, str] = {
            "ami-id": "ami-0123456789abcdef0",
            "instance-id": instance_id,
            "instance-type": "t3.micro",
            "local-hostname": hostname,
            "hostname": hostname,
            "placement/availability-zone": "eu-central-1a",
        }
        self.identity = json.dumps({"instanceId": instance_id, "region": "eu-central-1"}).encode()
        self.asked: Counter[str] = Counter()
        """How often was asked: ``token``, ``meta-data``, ``user-data``, ``identity``, ``unauthorized``."""
        self._tokens: set[str] = set()
        self._server = ThreadingHTTPServer((address, 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, name="metadata-service")
        self.url = f"http://{address}:{self._server.server_address[1]}"

    def __enter__(self) -> MetadataService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def new_token(self) -> bytes:
        """A session token of IMDSv2."""
        self.asked["token"] += 1
        token = secrets.token_urlsafe(32)
        self._tokens.add(token)
        return token.encode()

    def knows(self, token: str | None) -> bool:
        """Whether a request with this session token, or without any, is answered."""
        if token is None or token in self._tokens:
            return True
        self.asked["unauthorized"] += 1
        return False

    def answer(self, path: str) -> bytes | None:
        """The body for ``/<version>/…``, or None for what an instance like this one does not
        have.
        """
        _, _, rest = path.lstrip("/").partition("/")
        kind, _, below = rest.partition("/")
        if kind == "user-data":
            self.asked[kind] += 1
            return self.user_data
        if kind == "meta-data":
            self.asked[kind] += 1
            return self._metadata(below.strip("/"))
        if rest.startswith("dynamic/instance-identity/document"):
            self.asked["identity"] += 1
            return self.identity
        return None

    def _metadata(self, below: str) -> bytes | None:
        if below in self.metadata:
            return self.metadata[below].encode()
        prefix = f"{below}/" if below else ""
        rests = [name[len(prefix) :] for name in self.metadata if name.startswith(prefix)]
        # a directory is listed with a slash, as EC2 does
        names = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in rests})
        return "\n".join(names).encode() if names else None


def _handler(service: MetadataService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if self.path == _TOKEN_PATH and self.headers.get(_TOKEN_LIFE_HEADER, "").isdecimal():
                self._reply(HTTPStatus.OK, service.new_token())
            else:
                self._reply(HTTPStatus.BAD_REQUEST)

        def do_GET(self) -> None:
            if not service.knows(self.headers.get(_TOKEN_HEADER)):
                self._reply(HTTPStatus.UNAUTHORIZED)
                return
            body = service.answer(self.path)
            self._reply(HTTPStatus.NOT_FOUND if body is None else HTTPStatus.OK, body or b"")

        def _reply(self, status: HTTPStatus, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the counts say what was asked."""

    return Handler
