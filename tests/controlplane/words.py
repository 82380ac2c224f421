"""What a test or an operator tells the plane: one function per word, the same for the fixture and
the command.
"""

from __future__ import annotations

import base64
import datetime
import json
from typing import Any, Callable

from tests.controlplane import credentials, deployments, enrollment, keysets, signing, spoil
from tests.controlplane.credentials import Place
from tests.controlplane.plane import Plane

Word = Callable[..., Any]


def place(org_id: str = "org_1", project_id: str = "prj_1", environment_id: str = "env_1") -> Place:
    return org_id, project_id, environment_id


class Words:
    """Every public method is a word of the admin interface; arguments and results are JSON."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def mint(self, *, where: dict[str, str], **options: Any) -> str:
        token = credentials.mint(self._plane.store, place(**where), **options)
        self._plane.spotter.reload()
        return token

    def operator_token(self) -> str:
        return credentials.operator_token(self._plane.store)

    def environment(self, *, where: dict[str, str], posture: str | None = None) -> None:
        """Make an environment, or change its posture."""
        verb = "IGNORE" if posture is None else "REPLACE"
        row = (*place(**where), posture or "dev")
        self._plane.store.run(f"INSERT OR {verb} INTO environments VALUES (?, ?, ?, ?)", *row)

    def agents(self, *, where: dict[str, str] | None = None) -> list[dict[str, Any]]:
        rows = enrollment.agents(self._plane, place(**where) if where is not None else None)
        for row in rows:
            row["last_heartbeat"] = credentials.loads(row["last_heartbeat"])
            key = self._plane.store.one("SELECT * FROM keys WHERE agent_id = ?", row["agent_id"])
            row["revoked"], row["scopes"] = (
                bool(key and key["revoked"]),
                json.loads(key["scopes"]) if key else [],
            )
        return list(rows)

    def requests(self, **which: Any) -> list[dict[str, Any]]:
        return self._plane.requests(**which)

    def violations(self) -> list[dict[str, Any]]:
        return self._plane.violations()

    def clear_violations(self) -> None:
        self._plane.store.run("DELETE FROM violations")

    def fault(self, *, operation: str, kind: str, **options: Any) -> int:
        number = self._plane.faults.add(operation, kind, **options)
        if kind == "tls":
            self._plane.close_idle()
        return number

    def faults(self) -> list[dict[str, Any]]:
        return self._plane.faults.list()

    def clear_faults(self) -> None:
        self._plane.faults.clear()

    def configure(self, **settings: Any) -> None:
        self._plane.configure(**settings)

    def revoke(self, *, agent_id: str, revoked: bool = True) -> None:
        """Revoke the agent's runtime key, or take that back."""
        self._plane.store.run(
            "UPDATE keys SET revoked = ? WHERE agent_id = ?", int(revoked), agent_id
        )

    def expire(self, *, agent_id: str, expires_at: float | None = None) -> None:
        """Let the agent's runtime key expire now, or at a time."""
        at = self._plane.store.now() if expires_at is None else expires_at
        self._plane.store.run("UPDATE keys SET expires_at = ? WHERE agent_id = ?", at, agent_id)

    def scopes(self, *, agent_id: str, scopes: list[str]) -> None:
        """Give the agent's runtime key exactly these scopes."""
        self._plane.store.run(
            "UPDATE keys SET scopes = ? WHERE agent_id = ?", json.dumps(scopes), agent_id
        )

    def delete(self, *, agent_id: str) -> None:
        """Delete the agent's record, as an operator does in the product."""
        self._plane.store.run("UPDATE agents SET deleted = 1 WHERE agent_id = ?", agent_id)

    def rotate(self, *, where: dict[str, str], **options: Any) -> dict[str, Any]:
        return keysets.rotate(self._plane.store, place(**where), **options)

    def deploy(self, *, where: dict[str, str], **options: Any) -> dict[str, Any]:
        return deployments.deploy(self._plane, place(**where), **options)

    def approve(
        self,
        *,
        where: dict[str, str],
        spec: str,
        posture: str = "prod",
        kid: str | None = None,
        **claims: Any,
    ) -> str:
        """An approval credential for a base64 spec.kv; `claims` replace what it would say."""
        where_ = place(**where)
        key = keysets.signer(self._plane.store, where_, kid)
        now = datetime.datetime.fromtimestamp(self._plane.store.now(), datetime.timezone.utc)
        spec_hash = spoil.spec_hash_of(base64.b64decode(spec))
        return signing.approval(
            {**spoil.claims_for(where_, posture, spec_hash, key.kid, now=now), **claims}, key
        )

    def key_sets(self, *, where: dict[str, str]) -> list[dict[str, Any]]:
        """Every key set so far, as envelopes."""
        return keysets.since(self._plane.store, place(**where), 0)

    def reports(self) -> list[dict[str, Any]]:
        rows = self._plane.store.all("SELECT * FROM reports ORDER BY rowid")
        return [
            {**json.loads(row["body"]), **{k: row[k] for k in ("agent_id", "deployment_id", "at")}}
            for row in rows
        ]

    def artifacts(self) -> list[dict[str, Any]]:
        rows = self._plane.store.all("SELECT * FROM artifacts ORDER BY rowid")
        return [{**row, "metadata": json.loads(row["metadata"])} for row in rows]

    def reset(self) -> None:
        self._plane.reset()

    def close_idle(self) -> None:
        self._plane.close_idle()
