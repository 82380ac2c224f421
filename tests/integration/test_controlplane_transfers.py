"""Bundles with ranges and through the object store, reports, and artifacts streamed to the
reference control plane.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.controlplane import ControlPlane
from tests.controlplane.plain import SENT_AT, USER_AGENT, PlainHost

MIB = 1 << 20
MULTIPART = "multipart/form-data; boundary=b"


@pytest.fixture
def host(control_plane: ControlPlane) -> Iterator[PlainHost]:
    with PlainHost(control_plane) as one:
        yield one.enrolled()


@pytest.fixture
def made(control_plane: ControlPlane, host: PlainHost) -> dict[str, Any]:
    """A deployment whose bundle is some hundred kilobytes."""
    return control_plane.deploy({"spec.kv": b"name = big\n", "data.bin": os.urandom(300_000)})


def bundle(host: PlainHost, made: dict[str, Any], **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return host.ask("GET", f"deployments/{made['deployment_id']}/bundle", headers=names)


def test_a_bundle_comes_whole(host: PlainHost, made: dict[str, Any]) -> None:
    """Media type, length, strong tag, and the bytes that the payload names."""
    reply = bundle(host, made)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/gzip")
    assert int(reply.headers["content-length"]) == made["bundle_size"] == len(reply.content)
    assert reply.headers["etag"].startswith('"')
    assert hashlib.sha256(reply.content).hexdigest() == made["bundle_sha256"]


def test_a_cut_download_resumes(
    control_plane: ControlPlane, host: PlainHost, made: dict[str, Any]
) -> None:
    """Range with If-Range brings exactly what is missing."""
    whole = bundle(host, made)
    tag = whole.headers["etag"]
    control_plane.fault("bundle", "cut", at=100_000)
    got = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        host.http.stream(
            "GET",
            host.path(f"deployments/{made['deployment_id']}/bundle"),
            headers={"Authorization": f"Bearer {host.api_key}"},
        ) as reply,
    ):
        for piece in reply.iter_raw():
            got += piece
    assert 0 < len(got) < 100_000
    rest = bundle(host, made, Range=f"bytes={len(got)}-", If_Range=tag)
    assert (rest.status_code, rest.headers["etag"]) == (206, tag)
    assert (
        rest.headers["content-range"]
        == f"bytes {len(got)}-{made['bundle_size'] - 1}/{made['bundle_size']}"
    )
    assert got + rest.content == whole.content


def test_ranges_that_do_not_fit(
    control_plane: ControlPlane, host: PlainHost, made: dict[str, Any]
) -> None:
    """Beyond the end: 416. Another tag, or a plane without ranges: the whole bundle."""
    beyond = bundle(host, made, Range=f"bytes={made['bundle_size']}-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (
        416,
        f"bytes */{made['bundle_size']}",
    )
    assert bundle(host, made, Range="bytes=5-", If_Range='"another"').status_code == 200
    control_plane.configure(bundle_ranges=False)
    assert bundle(host, made, Range="bytes=5-").status_code == 200


@pytest.mark.parametrize(("way", "steps"), [("store", 1), ("twice", 2)])
def test_the_object_store_serves_signed_addresses(
    control_plane: ControlPlane, host: PlainHost, made: dict[str, Any], way: str, steps: int
) -> None:
    """A redirect to another origin, with ranges there, and its own log; `twice` redirects there
    once more.
    """
    control_plane.configure(bundle_redirect=way)
    reply = bundle(host, made)
    for _ in range(steps):
        assert reply.status_code == 302
        place = reply.headers["location"]
        assert place.startswith(control_plane.store_url)
        reply = host.http.get(place, headers={"Range": "bytes=10-"})
    assert (reply.status_code, len(reply.content)) == (206, made["bundle_size"] - 10)
    seen = control_plane.requests(origin="store")
    assert len(seen) == steps
    assert "authorization" not in seen[0]["headers"]
    unsigned = host.http.get(place.split("?")[0])
    assert (unsigned.status_code, unsigned.json()["code"]) == (403, "bad_signature")


@pytest.mark.provokes_violations
def test_a_credential_at_the_object_store_is_a_violation(
    control_plane: ControlPlane, host: PlainHost, made: dict[str, Any]
) -> None:
    """The runtime key must not travel to another origin."""
    control_plane.configure(bundle_redirect="store")
    place = bundle(host, made).headers["location"]
    host.http.get(place, headers={"Authorization": f"Bearer {host.api_key}"})
    assert [row["rule"] for row in control_plane.violations()] == ["authorization_at_store"]
    assert host.api_key not in json.dumps(control_plane.requests(origin="store"))


def test_faults_at_the_object_store(
    control_plane: ControlPlane, host: PlainHost, made: dict[str, Any]
) -> None:
    """Its operation is called `store`; `*` means the plane's own."""
    control_plane.configure(bundle_redirect="store")
    control_plane.fault("store", "problem")
    place = bundle(host, made).headers["location"]
    assert [host.http.get(place).status_code for _ in range(2)] == [503, 200]


def test_reports_are_kept_once(
    control_plane: ControlPlane, host: PlainHost, made: dict[str, Any]
) -> None:
    """A repeat with the same report_id changes nothing; an unknown deployment is 404."""
    identity = str(uuid.uuid4())
    first = host.report(made, report_id=identity, status="failed", reason="spec_hash")
    again = host.report(made, report_id=identity, status="failed", reason="spec_hash")
    assert [first.json()["duplicate"], again.json()["duplicate"]] == [False, True]
    assert [(row["status"], row["reason"]) for row in control_plane.reports()] == [
        ("failed", "spec_hash")
    ]
    assert (
        host.report({**made, "deployment_id": "dep_unknown"}).json()["code"] == "no_such_deployment"
    )


@pytest.mark.provokes_violations
def test_reports_are_strict(
    control_plane: ControlPlane, host: PlainHost, made: dict[str, Any]
) -> None:
    """Unknown words are 422; a report_id that stands for two reports is 409."""
    assert host.report(made, status="done").status_code == 422
    identity = str(uuid.uuid4())
    assert host.report(made, report_id=identity).status_code == 200
    assert (
        host.report(made, report_id=identity, status="failed").json()["code"] == "report_id_reused"
    )
    assert len(control_plane.violations()) == 2


def test_an_artifact_is_stored_once(control_plane: ControlPlane, host: PlainHost) -> None:
    """201 the first time, 200 with the same id for the same content afterwards."""
    data = os.urandom(100_000)
    first, again = host.upload(data, kind="snapshot"), host.upload(data, kind="snapshot")
    assert (first.status_code, first.json()["duplicate"]) == (201, False)
    assert (again.status_code, again.json()) == (200, {**first.json(), "duplicate": True})
    (kept,) = control_plane.artifacts()
    assert (kept["kind"], kept["size"], kept["agent_id"]) == ("snapshot", 100_000, host.agent_id)
    stored = control_plane.state_dir / "artifacts" / kept["artifact_id"]
    assert stored.read_bytes() == data
    assert [path.name for path in stored.parent.iterdir()] == [kept["artifact_id"]]


@pytest.mark.provokes_violations
@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"kind": "core-dump"}, (422, "unknown_kind")),
        ({"sha256": "0" * 64}, (422, "digest_mismatch")),
        ({"size": 3}, (422, "digest_mismatch")),
        ({"colour": "red"}, (422, "invalid_request")),
        ({"captured_at": "now"}, (422, "invalid_request")),
    ],
)
def test_artifacts_are_checked(
    control_plane: ControlPlane, host: PlainHost, metadata: Any, expected: Any
) -> None:
    """Kind, digest, size and metadata must be right, or nothing is kept."""
    reply = host.upload(b"four", **metadata)
    assert (reply.status_code, reply.json()["code"]) == expected
    assert control_plane.artifacts() == []
    assert [row["rule"] for row in control_plane.violations()] == ["artifact"]
    assert list((control_plane.state_dir / "artifacts").glob("draft-*")) == []


@pytest.mark.provokes_violations
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n--b--\r\n',
            MULTIPART,
            422,
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{}\r\n--b--\r\n',
            MULTIPART,
            422,
        ),
        (b"no multipart at all", MULTIPART, 400),
        (b"", MULTIPART, 422),
        (b"--b\r\n", "multipart/form-data", 400),
        (b"{}", "application/json", 415),
    ],
)
def test_malformed_uploads_are_refused(
    control_plane: ControlPlane, host: PlainHost, body: bytes, kind: str, status: int
) -> None:
    """Parts out of order or missing, other media types and broken multipart are refused with a
    problem body.
    """
    reply = host.ask("POST", "artifacts", content=body, headers={"Content-Type": kind})
    assert (reply.status_code, reply.headers["content-type"]) == (
        status,
        "application/problem+json",
    )


def test_a_plane_with_a_lower_limit_answers_413(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """What is right by the contract is refused without being a violation; at the limit it
    passes.
    """
    control_plane.configure(artifact_limit_bytes=1000)
    assert host.upload(b"x" * 1001).json()["code"] == "artifact_too_large"
    assert host.upload(b"x" * 1000).status_code == 201


def test_uploads_need_their_scope(control_plane: ControlPlane, host: PlainHost) -> None:
    """403 names the scope, and is readable although the upload is large; the heartbeat goes on."""
    control_plane.scopes(host.agent_id, ["agent:heartbeat"])
    refused = host.upload(os.urandom(3 * MIB))
    assert (refused.status_code, refused.json()["scope"]) == (403, "agent:artifact_upload")
    assert host.beat().status_code == 200


def test_a_refusal_may_come_before_the_body_is_read(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """With drain_refused off, the headers of an upload are enough to get the 403."""
    control_plane.scopes(host.agent_id, [])
    control_plane.configure(drain_refused=False)
    context = ssl.create_default_context(cafile=str(control_plane.ca_path))
    request = (
        f"POST {host.path('artifacts')} HTTP/1.1\r\nHost: x\r\nUser-Agent: {USER_AGENT}\r\n"
        f"Authorization: Bearer {host.api_key}\r\nContent-Type: {MULTIPART}\r\nContent-Length: 60000000\r\n\r\n"
    )
    wire = socket.create_connection((control_plane.host, control_plane.port), timeout=20)
    with wire, context.wrap_socket(wire, server_hostname=control_plane.host) as tls:
        tls.sendall(request.encode())
        assert tls.recv(100).startswith(b"HTTP/1.1 403 ")


@pytest.mark.provokes_violations
def test_a_token_in_an_artifact_is_a_violation(
    control_plane: ControlPlane, host: PlainHost
) -> None:
    """Also where it lies across two pieces of the stream."""
    token = control_plane.mint()
    head, body = _parts(host, b"x" * (65536 - 600) + token.encode() + b"y" * 1000)
    host.ask(
        "POST",
        "artifacts",
        content=(body[at : at + 997] for at in range(0, len(body), 997)),
        headers=head,
    )
    assert "secret_misplaced" in [row["rule"] for row in control_plane.violations()]


def _parts(host: PlainHost, data: bytes) -> Any:
    """The headers and the body of an upload, to be sent piece by piece."""
    said = {
        "kind": "diagnostic",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "captured_at": SENT_AT,
        "deployment_id": None,
        "spec_hash": None,
    }
    request = httpx.Request(
        "POST",
        "https://x/",
        files=[
            ("metadata", (None, json.dumps(said), "application/json")),
            ("file", ("file", data, "application/octet-stream")),
        ],
    )
    return {"Content-Type": request.headers["content-type"]}, request.read()


def _peak_kib(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_64_mib_uploads_do_not_grow_memory(own_control_plane: ControlPlane) -> None:
    """Three uploads of 64 MiB, the last by a byte too large, leave the server's peak where a small
    one left it.
    """
    with own_control_plane.start() as plane, PlainHost(plane) as host:
        host.enrolled()
        assert host.upload(os.urandom(4 * MIB)).status_code == 201
        before = _peak_kib(plane.pid)
        for _ in range(2):
            assert host.upload(os.urandom(64 * MIB)).status_code == 201
        assert _peak_kib(plane.pid) - before < 8 * 1024
        over = host.upload(bytes(64 * MIB + 1), size=64 * MIB)
        assert (over.status_code, over.json()["code"]) == (413, "artifact_too_large")
        assert _peak_kib(plane.pid) - before < 8 * 1024
        plane.clear_violations()
