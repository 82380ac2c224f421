"""An enrolled agent's loops in the test's own process: each `run_once` is called by the test,
against the plane over TLS.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any, Callable

from firstboot.agent.artifacts import spool
from firstboot.agent.artifacts.sender import Sender
from firstboot.agent.deployments import Deployments
from firstboot.agent.download import Download
from firstboot.agent.heartbeat import Facts, Heartbeat
from firstboot.agent.keysets import KeySets
from firstboot.agent.reports import Reports
from firstboot.agent.schedule import Ask, Schedule
from firstboot.agent.submit import Activator, Inbox
from firstboot.agent.worker import Context
from firstboot.api.client import PlaneApi
from firstboot.api.transport import Transport
from firstboot.base.clock import Clock
from firstboot.base.errors import ByteorError
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.handover import Handover

SPEC_HASH = "sha256:" + "0" * 64


def ring(layout: Layout, version: int) -> None:
    """A key ring as the activator leaves it, without keys."""
    place = {"org_id": "org_1", "project_id": "prj_1", "environment_id": "env_1"}
    stored = {
        "v": 1, "place": place, "version": version, "source": "tls", "envelope": None, "keys": [], "pins": [],
        "refused": None,
    }  # fmt: skip
    layout.activation.mkdir(exist_ok=True)
    layout.keyring.write_text(json.dumps(stored))


class Decides(Activator):
    """Stands in for the activator, which takes half a second: it answers the request, and wants
    `wanted`.

    `silent`: it does not run. `verdicts`: rows of the history, for the envelope that is there; one
    that is active unless something is wanted. `forgetful`: it answers, and nothing comes of it.
    `blind`: it does not find the envelope.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.silent, self.asked = layout, False, 0
        self.wanted: dict[str, Any] | None = None
        self.verdicts: list[dict[str, Any]] = []
        self.offset: float | None = None
        self.forgetful = self.blind = False

    def start(self, *, anew: bool) -> None:
        self.asked += 1
        if not self.silent:
            self.answer()

    def answer(self) -> None:
        """Answer the newest request."""
        said = json.loads((self.layout.inbox / "request.json").read_text())
        self.offset = said["clock_offset_s"]
        envelope = self.layout.inbox / "envelope.json"
        seen = envelope.exists() and not self.blind
        digest = hashlib.sha256(envelope.read_bytes()).hexdigest() if seen else None
        rows = (
            self.verdicts
            if self.verdicts or self.wanted or self.forgetful
            else [{"verdict": "active"}]
        )
        document = {
            "v": 1, "answered": {"request": said["request"], "envelope_sha256": digest}, "wanted": self.wanted,
            "history": [{"at": "2026-01-01T00:00:00Z", "envelope_sha256": digest, **row} for row in rows],
        }  # fmt: skip
        self.layout.activation.mkdir(exist_ok=True)
        (self.layout.activation / "deployments.json").write_text(json.dumps(document))


def nothing() -> None:
    """Stand in for what nobody waits for."""


class Fetch:
    """Both tasks of a deployment, run as the two workers do: what is asked for is done next."""

    def __init__(self, context: Context, inbox: Inbox) -> None:
        self.asked: list[Ask] = []
        self.schedule = Schedule(60.0)
        self.download = Download(
            context, self.schedule, nothing, nothing, self.asked.append, brought=nothing
        )
        self.deployments = Deployments(context, inbox, self.download, keys_wanted=nothing)

    def run_once(self) -> None:
        """Look, bring what is wanted, and have it looked at; raise what stops it."""
        self.deployments.run_once()
        while self.asked:
            self.asked.clear()
            if self.download.run_once():
                self.deployments.run_once()

    def shown(self) -> dict[str, Any]:
        return self.deployments.shown()


class Agent:
    """An enrolled agent's loops in this process, each with a connection of its own."""

    def __init__(self, plane: Any, root: Path) -> None:
        self.plane, self.layout, self.clock = plane, Layout(root), Clock()
        (root / "var/lib/byteor/agent").mkdir(parents=True)
        self.apis: list[PlaneApi] = []
        self.handed = self._enrolled()
        self.activator = Decides(self.layout)
        self.inbox = Inbox(self.layout, self.activator, self.clock)
        self.answered: list[Any] = []

    def api(self, base_url: str | None = None) -> PlaneApi:
        self.apis.append(
            PlaneApi(base_url or self.plane.base_url, Transport(ca_certificates=self.plane.ca_pem))
        )
        return self.apis[-1]

    def _enrolled(self) -> Handover:
        plane = self.plane
        answer = self.api().enroll(
            Secret(plane.mint()),
            org_id=plane.org_id,
            project_id=plane.project_id,
            environment_id=plane.environment_id,
            idempotency_key=str(uuid.uuid4()),
            body=b'{"name": "edge-1"}',
        )
        assert answer.enrolled is not None
        return Handover(
            plane.base_url,
            answer.enrolled.agent_id,
            answer.enrolled.api_key,
            proxy=None,
            org_id=None,
            project_id=None,
            environment_id=None,
            name=None,
            enrolled_at=None,
            expires_at=None,
            scopes=(),
        )

    def prepare(self, request: str, base_url: str | None = None) -> Callable[[], Any]:
        """Lay down what makes the loop send this request, and return its `run_once`."""
        return {
            "heartbeat": self._heartbeat,
            "latest": self._latest,
            "bundle": self._bundle,
            "status": self._status,
            "signing-keys": self._signing_keys,
            "artifacts": self._artifacts,
        }[request](self.api(base_url))

    def context(self, api: PlaneApi) -> Context:
        return Context(self.layout, self.handed, api, self.clock)

    def _heartbeat(self, api: PlaneApi) -> Callable[[], Any]:
        def answered(hints: Any, skew_s: float | None) -> None:
            self.answered.append(hints)

        return Heartbeat(self.context(api), Schedule(30.0), Facts, answered).run_once

    def deployments(self, api: PlaneApi) -> Fetch:
        return Fetch(self.context(api), self.inbox)

    def _latest(self, api: PlaneApi) -> Callable[[], Any]:
        self.plane.deploy()
        return self.deployments(api).run_once

    def want(self, made: dict[str, Any]) -> None:
        """What `plane.deploy` made is what the activator will want."""
        self.activator.wanted = {
            "deployment_id": made["deployment_id"], "sequence": made["sequence"], "sha256": made["bundle_sha256"],
            "size": made["bundle_size"],
        }  # fmt: skip

    def _bundle(self, api: PlaneApi) -> Callable[[], Any]:
        self.want(self.plane.deploy())
        return self.deployments(api).run_once

    def _status(self, api: PlaneApi) -> Callable[[], Any]:
        made = self.plane.deploy()
        self.layout.outcomes.mkdir(parents=True)
        report = {
            "report_id": str(uuid.uuid4()),
            "status": "active",
            "sequence": 1,
            "spec_hash": SPEC_HASH,
            "reason": None,
            "occurred_at": "2026-01-01T00:00:00Z",
        }
        document = {"v": 1, "deployment_id": made["deployment_id"], "report": report}
        (self.layout.outcomes / "00000001.json").write_text(json.dumps(document))
        self.reports = Reports(self.context(api), spooled=nothing, more=nothing)
        return self.reports.run_once

    def _signing_keys(self, api: PlaneApi) -> Callable[[], Any]:
        return KeySets(self.context(api), Schedule(86400.0), self.inbox).run_once

    def _artifacts(self, api: PlaneApi) -> Callable[[], Any]:
        spool.add_text(self.layout, b"what happened\n", kind="diagnostic")
        return Sender(self.context(api), lambda: None).run_once


def raised(run_once: Callable[[], Any]) -> ByteorError | None:
    try:
        run_once()
    except ByteorError as error:
        return error
    return None
