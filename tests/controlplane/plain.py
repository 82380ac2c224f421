"""A host in a few lines of plain HTTP: what the plane's own tests speak with, sharing nothing with
the real client.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import uuid
from collections.abc import Mapping
from typing import Any

import httpx

from tests.controlplane.process import ControlPlane

USER_AGENT = "byteor-firstboot/0.0.0+plain"
SENT_AT = "2026-11-24T12:00:00Z"


def client(plane: ControlPlane, **options: Any) -> httpx.Client:
    """An httpx client that trusts the plane's CA and says who it is."""
    context = ssl.create_default_context(cafile=str(plane.ca_path))
    options.setdefault("timeout", 30)
    return httpx.Client(
        base_url=plane.base_url,
        verify=context,
        trust_env=False,
        headers={"User-Agent": USER_AGENT},
        **options,
    )


class PlainHost:
    """One host: `enroll` first, then everything with the runtime key."""

    def __init__(self, plane: ControlPlane, http: httpx.Client | None = None) -> None:
        self.plane = plane
        self.http = http if http is not None else client(plane)
        self.agent_id, self.api_key, self.sequence = "", "", 0

    def __enter__(self) -> PlainHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    @property
    def agents_path(self) -> str:
        where = self.plane.where()
        return f"/api/v1/orgs/{where['org_id']}/projects/{where['project_id']}/environments/{where['environment_id']}/agents"

    def path(self, rest: str) -> str:
        return f"/api/v1/agents/{self.agent_id}/{rest}"

    def enroll(
        self,
        token: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        **options: Any,
    ) -> httpx.Response:
        """Request 1; a success is remembered."""
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key or str(uuid.uuid4())}
        headers.update(options.pop("headers", {}))
        reply = self.http.post(
            options.pop("path", self.agents_path), json=body or {}, headers=headers, **options
        )
        if reply.status_code in (200, 201):
            self.agent_id = reply.json().get("agent_id", reply.json().get("id"))
            self.api_key = reply.json().get("api_key", reply.json().get("runtime_api_key"))
        return reply

    def enrolled(self, name: str | None = None, **mint: Any) -> PlainHost:
        reply = self.enroll(self.plane.mint(**mint), {"name": name} if name else {})
        assert reply.status_code == 201, reply.text
        return self

    def ask(self, method: str, rest: str, **options: Any) -> httpx.Response:
        """A request with the runtime key."""
        headers = {"Authorization": f"Bearer {self.api_key}", **options.pop("headers", {})}
        return self.http.request(method, self.path(rest), headers=headers, **options)

    def beat_body(self, **changes: Any) -> dict[str, Any]:
        self.sequence += 1
        return {
            "status": "ok",
            "agent_version": "0.0.0",
            "boot_id": "00000000-0000-4000-8000-000000000000",
            "sequence": self.sequence,
            "uptime_s": 1.5,
            "sent_at": SENT_AT,
            "deployment": None,
            "signing_keys_version": None,
            "spool": {"pending": 0, "quarantined": 0},
            "problems": [],
            **changes,
        }

    def beat(self, **changes: Any) -> httpx.Response:
        """Request 3."""
        return self.ask("POST", "heartbeat", json=self.beat_body(**changes))

    def report(self, deployment: Mapping[str, Any], **changes: Any) -> httpx.Response:
        """Request 6."""
        body = {
            "report_id": str(uuid.uuid4()),
            "status": "active",
            "sequence": deployment["sequence"],
            "spec_hash": deployment["spec_hash"],
            "reason": None,
            "occurred_at": SENT_AT,
            **changes,
        }
        return self.ask("POST", f"deployments/{deployment['deployment_id']}/status", json=body)

    def upload(self, data: bytes, **metadata: Any) -> httpx.Response:
        """Request 8."""
        said = {
            "kind": "diagnostic",
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "captured_at": SENT_AT,
            "deployment_id": None,
            "spec_hash": None,
            **metadata,
        }
        parts = [
            ("metadata", (None, json.dumps(said), "application/json")),
            ("file", ("file", data, "application/octet-stream")),
        ]
        return self.ask("POST", "artifacts", files=parts)
