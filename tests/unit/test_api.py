"""The requests of contract 2 as they are sent: paths, headers, ids before they reach a URL, bounded paging."""

from __future__ import annotations

import json
from typing import Any, List

import pytest

from firstboot import wire
from firstboot.api import PlaneApi
from firstboot.errors import Refused, TryAgain
from firstboot.secret import Secret
from firstboot.transport import Reply


class Recorder:
    """A transport that answers 200 with `body` and keeps what was asked."""

    def __init__(self, body: bytes = b'{"agents": [], "next": null}') -> None:
        self.asked: List[str] = []
        self._body = body

    def request(self, method: str, url: str, **keywords: Any) -> Reply:
        self.asked.append(f"{method} {url}")
        return Reply(200, {"content-type": "application/json"}, self._body, None)

    def close(self) -> None:
        pass


ENVIRONMENT = {"org_id": "o", "project_id": "p", "environment_id": "e"}


def test_the_paths_are_those_of_the_contract() -> None:
    """Section 2, requests 1, 2, 3 and 9."""
    recorder = Recorder()
    api = PlaneApi("https://plane", recorder)  # type: ignore[arg-type]
    beat = wire.Heartbeat(status="ok", agent_version="1", boot_id="b", sequence=1, uptime_s=1, sent_at="t")
    api.enroll(Secret("t" * 20), idempotency_key="k", body=b"{}", **ENVIRONMENT)
    api.list_agents(Secret("t" * 20), **ENVIRONMENT)
    api.heartbeat("agt_1", Secret("k" * 20), beat)
    api.health()
    agents = "https://plane/api/v1/orgs/o/projects/p/environments/e/agents"
    assert recorder.asked == [
        f"POST {agents}",
        f"GET {agents}",
        "POST https://plane/api/v1/agents/agt_1/heartbeat",
        "GET https://plane/healthz",
    ]
    assert set(json.loads(beat.to_bytes())) == {
        "status",
        "agent_version",
        "boot_id",
        "sequence",
        "uptime_s",
        "sent_at",
        "deployment",
        "signing_keys_version",
        "spool",
        "problems",
    }


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a b", "a\n", "%2e", "é", "a" * 129])
def test_an_id_of_another_shape_never_reaches_a_url(bad: str) -> None:
    """Refused before anything is sent."""
    recorder = Recorder()
    with pytest.raises(ValueError):
        PlaneApi("https://plane", recorder).list_agents(Secret("t" * 20), **{**ENVIRONMENT, "org_id": bad})  # type: ignore[arg-type]
    assert not recorder.asked


def test_an_endless_list_ends() -> None:
    """A plane that always names a next page does not hold us."""
    recorder = Recorder(b'{"agents": [{"agent_id": "a"}], "next": "again"}')
    try:
        PlaneApi("https://plane", recorder).list_agents(Secret("t" * 20), **ENVIRONMENT)  # type: ignore[arg-type]
    except (TryAgain, Refused):
        pass
    assert len(recorder.asked) <= 1000
