"""What stands between a host and the control plane in the field, with the real programs.

Each is said by its name, costs no identity, and is over when it is over.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent.artifacts.packing import hold
from firstboot.api.answers import NotThePlane, check
from firstboot.api.bundles import Coming
from firstboot.api.client import Answer, PlaneApi
from firstboot.api.connection import ProxyRefused, Unreachable
from firstboot.api.messages import Heartbeat
from firstboot.api.multipart import ArtifactMetadata
from firstboot.api.stream import NoAnswer
from firstboot.api.transport import Transport
from firstboot.base.errors import TryAgain
from firstboot.base.secret import Secret
from tests.controlplane import ControlPlane
from tests.integration.host import Host
from tests.integration.middleboxes import CA, PEM, Middlebox, haproxy, lacking, nginx, squid

pytestmark = pytest.mark.minutes
USER = "edge%20user:p%40ss%3Aw%2Frd"
BOOT_ID = str(uuid.uuid4())
MIB = 1 << 20


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(lacking(program)), reason=lacking(program) or "")


@dataclass
class Client:
    """An enrolled agent's requests on one connection of its own."""

    api: PlaneApi
    agent_id: str
    key: Secret

    beats = 0

    def beat(self, agent_id: str | None = None) -> Answer:
        self.beats += 1
        beat = Heartbeat("ok", "1.0", BOOT_ID, self.beats, 1, "2026-01-01T00:00:00Z")
        return self.api.heartbeat(agent_id or self.agent_id, self.key, beat)

    def beaten(self) -> bool:
        """True when a heartbeat arrives."""
        try:
            check(self.beat(), doing="heartbeat")
        except TryAgain:
            return False
        return True

    @contextlib.contextmanager
    def bundle(self, made: dict[str, Any], *, have: int = 0, tag: str | None = None) -> Any:
        with self.api.bundle(
            self.agent_id, self.key, made["deployment_id"], have=have, tag=tag, size=8 * MIB
        ) as coming:
            assert isinstance(coming, Coming), coming
            yield coming


@contextlib.contextmanager
def client(
    plane: ControlPlane, url: str | None = None, *, proxy: str | None = None
) -> Iterator[Client]:
    """Enroll at the control plane itself, then ask through what is between."""
    found = {"org_id": plane.org_id, "project_id": plane.project_id}
    direct = PlaneApi(plane.base_url, Transport(ca_certificates=plane.ca_pem, environ={}))
    with direct:
        reply = direct.enroll(
            Secret(plane.mint()),
            **found,
            environment_id=plane.environment_id,
            idempotency_key=str(uuid.uuid4()),
            body=b'{"hostname": "edge"}',
        ).enrolled
    assert reply is not None
    transport = Transport(
        ca_certificates=PEM + plane.ca_pem, proxy=Secret(proxy) if proxy else None, environ={}
    )
    with PlaneApi(url or plane.base_url, transport, deadline_s=15.0) as api:
        yield Client(api, reply.agent_id, reply.api_key)


# -- squid


@pytest.fixture(scope="module")
def proxy() -> Iterator[Middlebox]:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with squid(forbidden=reserved.getsockname()[1]) as made:
            made.inner = reserved.getsockname()[1]
            yield made


@needs("squid")
def test_a_host_enrolls_through_squid_with_the_password_alone(
    proxy: Middlebox, control_plane: ControlPlane, tmp_path: Path
) -> None:
    """A wrong one is said as 407, spends nothing, and is not asked with in a hot loop."""
    host = Host(tmp_path / "root", control_plane)
    token = host.mint()
    wrong = f"http://edge%20user:canary-no@127.0.0.1:{proxy.port}"
    host.user_data(host.comment_block(token, proxy=wrong))
    done = host.run("--give-up-after", "3")
    assert done.code == 6 and "does not accept our credentials: 407" in done.err
    assert "canary-no" not in done.out + done.err and not control_plane.requests("enroll")
    host.user_data(host.comment_block(token, proxy=f"http://{USER}@127.0.0.1:{proxy.port}"))
    done = host.run("--give-up-after", "20")
    assert done.code == 0, done
    assert b"edge user" in Path(proxy.directory, "access.log").read_bytes().replace(b"%20", b" ")
    assert "w%2Frd" not in host.path("var/lib/byteor/settings.json").read_text()


@needs("squid")
def test_what_squid_refuses_is_said_with_its_status(
    proxy: Middlebox, control_plane: ControlPlane
) -> None:
    """Policy, nobody there, no password: three sentences, and the password only in the last."""
    own = f"http://{USER}@127.0.0.1:{proxy.port}"
    for url, way, said, hint in (
        (f"https://127.0.0.1:{proxy.inner}", own, "refused to connect us to .*: 403", "allows"),
        ("https://127.0.0.1:1", own, "refused to connect us to 127.0.0.1:1: 503", "reach"),
        (None, f"http://127.0.0.1:{proxy.port}", "does not accept our credentials", "password"),
    ):
        with client(control_plane, url, proxy=way) as asking:
            with pytest.raises(Unreachable, match=f"the proxy 127.0.0.1:{proxy.port} {said}") as no:
                asking.beat()
            assert hint in str(no.value.hint)
            assert isinstance(no.value, ProxyRefused) == (hint == "password")


@needs("squid")
def test_a_bundle_goes_on_after_squid_was_killed(
    proxy: Middlebox, control_plane: ControlPlane
) -> None:
    """The cut is seen at once, a dead proxy is named, and the rest is asked for."""
    data = os.urandom(6 * MIB)
    own = f"http://{USER}@127.0.0.1:{proxy.port}"
    with client(control_plane, proxy=own) as asking:
        made = control_plane.deploy({"spec.kv": b"a = 1\n", "data": data})
        got = b""
        with pytest.raises(NoAnswer), asking.bundle(made) as coming:
            for piece in coming.stream.pieces(1 << 62):
                got += piece
                if len(got) > 256 * 1024:
                    proxy.stop()
        with pytest.raises(Unreachable, match="cannot connect to the proxy .*: connection refused"):
            asking.beat()
        proxy.start()
        with asking.bundle(made, have=len(got), tag=coming.tag) as rest:
            assert rest.start == len(got)
            got += b"".join(rest.stream.pieces(1 << 62))
        assert len(got) == rest.total and asking.beaten()


# -- nginx


@needs("nginx")
def test_nginx_in_front_of_the_control_plane(control_plane: ControlPlane) -> None:
    """Its own limits, compression, redirect and 502 are its word; what it passes on is theirs."""
    with nginx(control_plane.base_url) as box, client(control_plane, box.url) as asking:
        assert asking.beaten()
        time.sleep(1.5)  # longer than nginx keeps a connection
        assert asking.beaten(), "a connection closed meanwhile costs no beat"

        size = 2 * MIB
        held = hold(bytes(size))
        metadata = ArtifactMetadata(
            "snapshot", hashlib.sha256(bytes(size)).hexdigest(), size, "2026-01-01T00:00:00Z"
        )
        answer = asking.api.upload_artifact(asking.agent_id, asking.key, metadata, held)
        os.close(held)
        with pytest.raises(NotThePlane, match="something answered 413 with text/html"):
            check(answer, doing="artifacts")

        moved = asking.beat("moved")
        with pytest.raises(
            NotThePlane, match=r"answered 301, a redirect to https://other.example/login$"
        ):
            check(moved, doing="heartbeat")

        made = control_plane.deploy({"spec.kv": b"a = 1\n", "data": os.urandom(2 * MIB)})
        with asking.bundle(made) as coming:
            assert len(b"".join(coming.stream.pieces(1 << 62))) == coming.total

        control_plane.stop()
        with pytest.raises(TryAgain, match="something answered 502 with text/html"):
            check(asking.beat(), doing="heartbeat")
        control_plane.start()
        assert asking.beaten()


@needs("nginx")
def test_gzip_by_a_chain_of_two_is_undone(control_plane: ControlPlane) -> None:
    """The outer one asks for it although we do not."""
    with nginx(control_plane.base_url) as box, client(control_plane, box.url) as asking:
        control_plane.deploy({"spec.kv": b"a = 1\n"})
        transport = Transport(ca_certificates=PEM, environ={})
        reply = transport.request(
            "GET",
            f"{box.url}/api/v1/agents/zipped/{asking.agent_id}/deployments/latest",
            bearer=asking.key,
        )
        transport.close()
        assert (reply.status, reply.headers["content-encoding"]) == (200, "gzip")
        assert b'"payloadType"' in reply.body


# -- HAProxy


@needs("haproxy")
def test_haproxy_in_front_of_the_control_plane(control_plane: ControlPlane) -> None:
    """Its 503, a restart under a kept connection, the PROXY protocol where none is expected."""
    address = control_plane.base_url.partition("//")[2]
    with haproxy(address) as box, client(control_plane, box.url) as asking:
        assert asking.beaten()
        box.stop()
        with pytest.raises(TryAgain):
            asking.beat()
        box.start()
        assert asking.beaten()
        control_plane.stop()
        with pytest.raises(TryAgain, match="something answered 503 with text/html"):
            check(asking.beat(), doing="heartbeat")
        control_plane.start()
        assert asking.beaten()
        with client(control_plane, f"https://127.0.0.1:{box.inner}") as announced:
            with pytest.raises(Unreachable, match="no TLS session") as no:
                announced.beat()
            assert no.value.hint


# -- an object store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """moto's S3 server behind TLS; its origin."""
    pytest.importorskip("moto")
    program = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("there is no moto_server (pip install moto flask flask-cors)")
    issued = CA.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(tmp_path / "moto.log", "wb") as log:
        process = subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(port), "-c", str(chain), "-k", str(key)],
            stdout=log,
            stderr=log,
        )
    try:
        limit = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < limit
                time.sleep(0.1)
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def redirecting(location: str) -> Iterator[tuple[str, list[bytes]]]:
    """A control plane that sends everybody elsewhere; its origin, and what it was asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1").configure_cert(context)
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                raw, _ = listener.accept()
                try:
                    with context.wrap_socket(raw, server_side=True) as wrapped:
                        asked.append(wrapped.recv(65536))
                        wrapped.sendall(
                            b"HTTP/1.1 307 x\r\nContent-Length: 0\r\nConnection: close\r\n"
                            b"Location: " + location.encode() + b"\r\n\r\n"
                        )
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            socket.create_connection(listener.getsockname()).close()
            thread.join(10)


@pytest.mark.parametrize("media", ["application/gzip", "text/plain", "binary/octet-stream"])
def test_a_presigned_address_of_an_s3_store_is_followed(
    store: str, media: str, tmp_path: Path
) -> None:
    """Whatever type the object has; Authorization beside a signature would be an error of S3's."""
    boto3, ca = pytest.importorskip("boto3"), tmp_path / "ca.pem"
    ca.write_text(PEM)
    s3 = boto3.client(
        "s3",
        endpoint_url=store,
        aws_access_key_id="id",
        aws_secret_access_key="canary",
        region_name="us-east-1",
        verify=str(ca),
    )
    data = b"\x1f\x8b" + os.urandom(MIB)
    s3.create_bucket(Bucket="bundles")
    s3.put_object(Bucket="bundles", Key="one.tar.gz", Body=data, ContentType=media)
    signed = s3.generate_presigned_url("get_object", {"Bucket": "bundles", "Key": "one.tar.gz"})
    s3.close()
    key = Secret("k" * 20)
    with (
        redirecting(signed) as (origin, asked),
        PlaneApi(origin, Transport(ca_certificates=PEM, environ={})) as api,
    ):
        with api.bundle("a", key, "d", have=0, tag=None, size=len(data)) as coming:
            assert isinstance(coming, Coming) and coming.total == len(data)
            assert b"".join(coming.stream.pieces(len(data))) == data
        assert coming.tag is not None
        with api.bundle("a", key, "d", have=9, tag=coming.tag, size=len(data)) as coming:
            assert isinstance(coming, Coming) and coming.start == 9
            assert b"".join(coming.stream.pieces(len(data))) == data[9:]
    assert b"Authorization: Bearer " + b"k" * 20 in asked[0]
