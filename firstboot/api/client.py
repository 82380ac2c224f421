"""One method per request of contract section 2: the only place with URL paths and header names. No policy, no retry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Callable
from urllib.parse import quote

from firstboot.api import bundles, messages
from firstboot.api.bundles import Coming
from firstboot.api.multipart import ArtifactMetadata, ArtifactReply, Multipart
from firstboot.api.stream import deadline_for
from firstboot.api.transport import CEILING_BYTES, DEADLINE_S, Reply, Transport
from firstboot.base import documents
from firstboot.base.clock import Clock
from firstboot.base.documents import IDENTIFIER
from firstboot.base.errors import Refused, TryAgain
from firstboot.base.secret import Secret

LONGEST_LISTING_PAGES = 1000


@dataclass(frozen=True)
class Answer:
    """One answer, parsed as far as it goes. `complaint` says why a 2xx could not be read as what it should be.

    `body` is kept where somebody else is to judge it (a signed envelope, key sets), with its `tag` to ask with next time.
    """

    status: int
    is_json: bool
    is_empty: bool
    media_type: str
    problem: messages.Problem | None
    retry_after: float | None
    date: float | None
    enrolled: messages.EnrollmentReply | None = None
    heartbeat: messages.HeartbeatReply | None = None
    key_sets: int | None = None
    artifact: ArtifactReply | None = None
    tag: str | None = None
    body: bytes = b""
    complaint: str | None = None


class PlaneApi:
    """The control plane at `base_url` (an origin without trailing slash).

    Each request ends within `deadline_s`, name resolution and all addresses included, or within its
    own where it is given one; bundles and artifacts have more, by their size.
    """

    def __init__(
        self,
        base_url: str,
        transport: Transport,
        *,
        clock: Clock | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._base = base_url
        self._transport = transport
        self._deadline_s = deadline_s
        self._clock = clock or Clock()

    def __enter__(self) -> PlaneApi:
        return self

    def __exit__(self, *exception: object) -> None:
        self._transport.close()

    def reconnect(self, transport: Transport) -> None:
        """Use another transport from the next request on; one that is under way ends with the old one."""
        self._transport = transport

    def rest(self) -> None:
        """Close the kept-alive connection: the next request is far off, and makes its own."""
        self._transport.close()

    def enroll(
        self,
        token: Secret,
        *,
        org_id: str,
        project_id: str,
        environment_id: str,
        idempotency_key: str,
        body: bytes,
        deadline_s: float | None = None,
    ) -> Answer:
        """Request 1: present the token. Safe to repeat with the same key and body."""
        reply = self._send(
            "POST",
            _agents(org_id, project_id, environment_id),
            bearer=token,
            body=body,
            headers={"Idempotency-Key": idempotency_key},
            deadline_s=deadline_s,
        )
        answer, value = self._answer(reply)
        if reply.status not in (200, 201) or not answer.is_json:
            return answer
        try:
            return replace(answer, enrolled=messages.EnrollmentReply.parse(value))
        except ValueError as error:
            return replace(answer, complaint=str(error))

    def list_agents(
        self, operator_token: Secret, *, org_id: str, project_id: str, environment_id: str
    ) -> list[messages.ListedAgent]:
        """Request 2: every agent of an environment; TryAgain or Refused when the list cannot be had."""
        path, cursor = _agents(org_id, project_id, environment_id), None
        rows: list[messages.ListedAgent] = []
        for _ in range(LONGEST_LISTING_PAGES):
            suffix = f"?next={quote(cursor, safe='')}" if cursor else ""
            answer, value = self._answer(self._send("GET", path + suffix, bearer=operator_token))
            if answer.status in (401, 403) and (answer.is_json or answer.is_empty):
                raise Refused(
                    f"the plane does not accept the operator token: {answer.status}",
                    hint="is it an operator's?",
                )
            try:
                page, cursor = messages.agent_page(value if answer.status == 200 else None)
            except ValueError as error:
                page_came = "a proxy or a captive portal stands between this host and the plane"
                hint = None if answer.is_json or answer.is_empty else page_came
                raise TryAgain(
                    f"the agent list could not be had: {answer.status}", hint=hint
                ) from error
            rows.extend(page)
            if cursor is None:
                return rows
        raise TryAgain(f"the agent list does not end within {LONGEST_LISTING_PAGES} pages")

    def heartbeat(
        self,
        agent_id: str,
        key: Secret,
        beat: messages.Heartbeat,
        *,
        deadline_s: float | None = None,
    ) -> Answer:
        """Request 3."""
        path = f"/api/v1/agents/{_id(agent_id)}/heartbeat"
        answer, value = self._answer(
            self._send("POST", path, bearer=key, body=beat.to_bytes(), deadline_s=deadline_s)
        )
        if answer.status == 200 and answer.is_json:
            return replace(answer, heartbeat=messages.HeartbeatReply.parse(value))
        return answer

    def latest(
        self, agent_id: str, key: Secret, *, tag: str | None, deadline_s: float | None = None
    ) -> Answer:
        """Request 4: the envelope of what is assigned, unjudged; 304 where it is the one that `tag` came with."""
        headers = {"If-None-Match": tag} if tag is not None else {}
        reply = self._send(
            "GET",
            f"/api/v1/agents/{_id(agent_id)}/deployments/latest",
            bearer=key,
            headers=headers,
            deadline_s=deadline_s,
        )
        return replace(
            self._answer(reply)[0],
            tag=messages.entity_tag(reply.headers.get("etag")),
            body=reply.body,
        )

    @contextmanager
    def bundle(
        self,
        agent_id: str,
        key: Secret,
        deployment_id: str,
        *,
        have: int,
        tag: str | None,
        size: int,
    ) -> Iterator[Answer | Coming]:
        """Request 5: what follows the first `have` of `size` bytes, or the plane's answer in its place.

        `tag` came with these bytes; without it the whole is asked for. StartOver where they cannot be continued.
        """
        url = f"{self._base}/api/v1/agents/{_id(agent_id)}/deployments/{_id(deployment_id)}/bundle"
        deadline_s = DEADLINE_S + deadline_for(size - have)
        with bundles.answered(
            self._transport, url, bearer=key, have=have, tag=tag, deadline_s=deadline_s
        ) as stream:
            reply = Reply(stream.status, stream.headers, b"", stream.date)
            words = reply.media_type.startswith("text/") or reply.media_type.endswith("json")
            if stream.status in (bundles.WHOLE, bundles.PART) and not words:
                yield bundles.coming(stream, have=have, tag=tag)
            elif stream.status == bundles.NO_SUCH_RANGE:
                raise bundles.StartOver("the plane has no such part of the bundle")
            else:
                yield self._answer(replace(reply, body=stream.whole(CEILING_BYTES)))[0]

    def report(
        self,
        agent_id: str,
        key: Secret,
        deployment_id: str,
        body: bytes,
        *,
        deadline_s: float | None = None,
    ) -> Answer:
        """Request 6: what became of a deployment; `body` is `wire.report_body`'s. Safe to repeat."""
        path = f"/api/v1/agents/{_id(agent_id)}/deployments/{_id(deployment_id)}/status"
        return self._answer(self._send("POST", path, bearer=key, body=body, deadline_s=deadline_s))[
            0
        ]

    def signing_keys(
        self, agent_id: str, key: Secret, *, since: int, deadline_s: float | None = None
    ) -> Answer:
        """Request 7: the key sets that are newer than `since`, unjudged."""
        path = f"/api/v1/agents/{_id(agent_id)}/signing-keys?since={since:d}"
        reply = self._send("GET", path, bearer=key, deadline_s=deadline_s)
        answer, value = self._answer(reply)
        if answer.status != 200 or not answer.is_json:
            return answer
        try:
            return replace(answer, key_sets=messages.key_sets(value), body=reply.body)
        except ValueError as error:
            return replace(answer, complaint=str(error))

    def upload_artifact(
        self,
        agent_id: str,
        key: Secret,
        metadata: ArtifactMetadata,
        file: int,
        *,
        each: Callable[[int], None] | None = None,
    ) -> Answer:
        """Request 8: the artifact that is open as `file`. Safe to repeat: the plane knows it by its content.

        `each` hears how many of its bytes are on their way. WrongContent when they are not what `metadata` says.
        """
        body = Multipart(metadata, file, each=each)
        reply = self._transport.request(
            "POST",
            f"{self._base}/api/v1/agents/{_id(agent_id)}/artifacts",
            bearer=key,
            body=body,
            headers={"Content-Type": body.content_type},
            deadline_s=DEADLINE_S + deadline_for(len(body)),
        )
        answer, value = self._answer(reply)
        if answer.status not in (200, 201) or not answer.is_json:
            return answer
        try:
            return replace(answer, artifact=ArtifactReply.parse(value))
        except ValueError as error:
            return replace(answer, complaint=str(error))

    def health(self, *, deadline_s: float | None = None) -> Answer:
        """Request 9: advisory."""
        return self._answer(self._send("GET", "/healthz", deadline_s=deadline_s))[0]

    def _send(
        self,
        method: str,
        path: str,
        *,
        bearer: Secret | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> Reply:
        sent = dict(headers or {})
        if body is not None:
            sent["Content-Type"] = "application/json"
        return self._transport.request(
            method,
            self._base + path,
            bearer=bearer,
            body=body,
            headers=sent,
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
        )

    def _answer(self, reply: Reply) -> tuple[Answer, Any]:
        try:
            value, is_json = documents.load(reply.body), True
        except ValueError:
            value, is_json = None, False
        # A date is the plane's: its own clock judges it, for a host's may be years off at first boot.
        now = reply.date if reply.date is not None else self._clock.wall()
        asked = messages.retry_after(reply.headers.get("retry-after"), now=now)
        problem = messages.Problem.parse(value) if reply.status >= 400 else None
        return Answer(
            reply.status, is_json, not reply.body, reply.media_type, problem, asked, reply.date
        ), value


def _agents(org_id: str, project_id: str, environment_id: str) -> str:
    return f"/api/v1/orgs/{_id(org_id)}/projects/{_id(project_id)}/environments/{_id(environment_id)}/agents"


def _id(text: str) -> str:
    """An id of contract 2 as a path segment; a value of another shape never reaches a URL."""
    if not IDENTIFIER.match(text):
        raise ValueError("not an id")
    return quote(text, safe="")
