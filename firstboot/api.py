"""One method per request of contract section 2: the only place with URL paths and header names. No policy, no retry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, List, Mapping, Optional, Tuple
from urllib.parse import quote

from firstboot import wire
from firstboot.clock import Clock
from firstboot.errors import Refused, TryAgain
from firstboot.frozen import IDENTIFIER
from firstboot.secret import Secret
from firstboot.transport import Reply, Transport

LONGEST_LISTING_PAGES = 1000


@dataclass(frozen=True)
class Answer:
    """One answer, parsed as far as it goes. `complaint` says why a 2xx could not be read as what it should be."""

    status: int
    is_json: bool
    is_empty: bool
    media_type: str
    problem: Optional[wire.Problem]
    retry_after: Optional[float]
    date: Optional[float]
    enrolled: Optional[wire.EnrollmentReply] = None
    heartbeat: Optional[wire.HeartbeatReply] = None
    complaint: Optional[str] = None


class PlaneApi:
    """The control plane at `base_url` (an origin without trailing slash)."""

    def __init__(self, base_url: str, transport: Transport, *, clock: Optional[Clock] = None) -> None:
        self._base = base_url
        self._transport = transport
        self._clock = clock or Clock()

    def __enter__(self) -> PlaneApi:
        return self

    def __exit__(self, *exception: object) -> None:
        self._transport.close()

    def reconnect(self, transport: Transport) -> None:
        """Use another transport from the next request on; one that is under way ends with the old one."""
        self._transport = transport

    def enroll(
        self, token: Secret, *, org_id: str, project_id: str, environment_id: str, idempotency_key: str, body: bytes
    ) -> Answer:
        """Request 1: present the token. Safe to repeat with the same key and body."""
        reply = self._send(
            "POST",
            _agents(org_id, project_id, environment_id),
            bearer=token,
            body=body,
            headers={"Idempotency-Key": idempotency_key},
        )
        answer, value = self._answer(reply)
        if reply.status not in (200, 201) or not answer.is_json:
            return answer
        try:
            return replace(answer, enrolled=wire.EnrollmentReply.parse(value))
        except ValueError as error:
            return replace(answer, complaint=str(error))

    def list_agents(
        self, operator_token: Secret, *, org_id: str, project_id: str, environment_id: str
    ) -> List[wire.ListedAgent]:
        """Request 2: every agent of an environment; TryAgain or Refused when the list cannot be had."""
        path, cursor = _agents(org_id, project_id, environment_id), None
        rows: List[wire.ListedAgent] = []
        for _ in range(LONGEST_LISTING_PAGES):
            suffix = f"?next={quote(cursor, safe='')}" if cursor else ""
            answer, value = self._answer(self._send("GET", path + suffix, bearer=operator_token))
            if answer.status in (401, 403) and (answer.is_json or answer.is_empty):
                raise Refused(f"the plane does not accept the operator token: {answer.status}", hint="is it an operator's?")
            try:
                page, cursor = wire.agent_page(value if answer.status == 200 else None)
            except ValueError as error:
                page_came = "a proxy or a captive portal stands between this host and the plane"
                hint = None if answer.is_json or answer.is_empty else page_came
                raise TryAgain(f"the agent list could not be had: {answer.status}", hint=hint) from error
            rows.extend(page)
            if cursor is None:
                return rows
        raise TryAgain(f"the agent list does not end within {LONGEST_LISTING_PAGES} pages")

    def heartbeat(self, agent_id: str, key: Secret, beat: wire.Heartbeat) -> Answer:
        """Request 3."""
        path = f"/api/v1/agents/{_id(agent_id)}/heartbeat"
        answer, value = self._answer(self._send("POST", path, bearer=key, body=beat.to_bytes()))
        if answer.status == 200 and answer.is_json:
            return replace(answer, heartbeat=wire.HeartbeatReply.parse(value))
        return answer

    def health(self) -> Answer:
        """Request 9: advisory."""
        return self._answer(self._send("GET", "/healthz"))[0]

    def _send(
        self,
        method: str,
        path: str,
        *,
        bearer: Optional[Secret] = None,
        body: Optional[bytes] = None,
        headers: Optional[Mapping[str, str]] = None,
    ) -> Reply:
        sent = dict(headers or {})
        if body is not None:
            sent["Content-Type"] = "application/json"
        return self._transport.request(method, self._base + path, bearer=bearer, body=body, headers=sent)

    def _answer(self, reply: Reply) -> Tuple[Answer, Any]:
        try:
            value, is_json = wire.load(reply.body), True
        except ValueError:
            value, is_json = None, False
        # A date is the plane's: its own clock judges it, for a host's may be years off at first boot.
        now = reply.date if reply.date is not None else self._clock.wall()
        asked = wire.retry_after(reply.headers.get("retry-after"), now=now)
        problem = wire.Problem.parse(value) if reply.status >= 400 else None
        return Answer(reply.status, is_json, not reply.body, reply.media_type, problem, asked, reply.date), value


def _agents(org_id: str, project_id: str, environment_id: str) -> str:
    return f"/api/v1/orgs/{_id(org_id)}/projects/{_id(project_id)}/environments/{_id(environment_id)}/agents"


def _id(text: str) -> str:
    """An id of contract 2 as a path segment; a value of another shape never reaches a URL."""
    if not IDENTIFIER.match(text):
        raise ValueError("not an id")
    return quote(text, safe="")
