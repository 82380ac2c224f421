"""What all requests share: the store, the faults, the violations, and what is in progress right
now.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from tests.controlplane.credentials import Spotter
from tests.controlplane.faults import Faults
from tests.controlplane.limits import Limits
from tests.controlplane.store import Store

# Every switch that `configure` knows, with its default. None of them breaks the contract but where
# its comment says so.
SETTINGS: dict[str, Any] = {
    "accept_hostname": True,  # False: 422 to {"hostname"}, as a backend that wants {} would
    "token_used_answer": 410,  # 401, 409 or 410, each with code token_used
    "enroll_status": 201,
    "reply_aliases": False,  # True: id and runtime_api_key in place of agent_id and api_key
    "signing_keys_in_enrollment": True,
    "heartbeat_interval_s": None,  # the hint in enrollment and heartbeat replies
    "heartbeat_answer": 200,  # 200 with hints, or 204
    "extra_members": False,  # True: unknown members in every JSON reply; hosts must ignore them
    "no_deployment_answer": 204,  # or 404 with code no_deployment
    "unknown_agent_answer": 404,  # or 410, with code unknown_agent
    "bundle_ranges": True,  # False: Range is ignored
    "bundle_redirect": None,  # "store": through the object store; "twice": and there once more
    "artifact_limit_bytes": 64 * 1024 * 1024,
    "drain_refused": True,  # False: refuse an upload without reading it, so that the host may see a broken pipe
    "rate_limits": {},  # group -> {"limit", "window_s", "retry_after": "seconds"|"date"|"absent"|any text}
    "clock_offset_s": 0.0,  # moves the plane's clock: expiry, idempotency, not the Date header
}


class Plane:
    """The running plane behind all its listeners."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.store = Store(state / "plane.sqlite")
        self.faults = Faults(self.store)
        self.spotter = Spotter(self.store)
        self.limits = Limits()
        self.enrolling: set[str] = set()  # idempotency keys whose first attempt is in progress
        self.store_url = ""
        self.connections: set[Any] = set()
        for name in ("bundles", "artifacts"):
            (state / name).mkdir(exist_ok=True)
        self._ensure_environment()

    def _ensure_environment(self) -> None:
        self.store.run(
            "INSERT OR IGNORE INTO environments VALUES ('org_1', 'prj_1', 'env_1', 'dev')"
        )

    def setting(self, name: str) -> Any:
        return self.store.setting(name, SETTINGS[name])

    def configure(self, **settings: Any) -> None:
        """Set switches; ValueError for a name that does not exist."""
        unknown = set(settings) - set(SETTINGS)
        if unknown:
            raise ValueError(
                f"no setting {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}"
            )
        for name, value in settings.items():
            self.store.set_setting(name, value)

    def violation(self, rule: str, detail: str, request_id: int | None = None) -> None:
        """Record a breach of the contract by the other side; never with a secret in it."""
        self.store.run(
            "INSERT INTO violations VALUES (NULL, ?, ?, ?, ?)",
            self.store.now(),
            rule,
            self.spotter.masked(detail),
            request_id,
        )

    def violations(self) -> list[dict[str, Any]]:
        return self.store.all("SELECT * FROM violations ORDER BY id")

    def requests(
        self, *, after: int = 0, operation: str | None = None, origin: str | None = None
    ) -> list[dict[str, Any]]:
        rows = self.store.all("SELECT * FROM requests WHERE id > ? ORDER BY id", after)
        found = [{"id": row["id"], "at": row["at"], **json.loads(row["row"])} for row in rows]
        return [
            row
            for row in found
            if operation in (None, row["operation"]) and origin in (None, row["origin"])
        ]

    def reset(self) -> None:
        """Forget all but the addresses and the CA."""
        self.store.wipe()
        self._ensure_environment()
        for kept in (*(self.state / "bundles").iterdir(), *(self.state / "artifacts").iterdir()):
            kept.unlink()
        self.faults.reload()
        self.spotter.reload()
        self.limits = Limits()
        self.enrolling.clear()
        self.close_idle()

    def close_idle(self) -> None:
        """End kept-alive connections, so that the next request shakes hands anew."""
        for connection in list(self.connections):
            connection.shutdown()


def rfc3339(at: float | None) -> str | None:
    if at is None:
        return None
    moment = datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


Environment = tuple[str, str, str]
