"""One method per request of contract section 2.

The only place with URL paths and header names. No policy and no retry: see `answers` for what an
answer means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable
from urllib.parse import quote, urlsplit

from firstboot.api import bundles, messages
from firstboot.api.bundles import Coming
from firstboot.api.connection import DEADLINE_S
from firstboot.api.multipart import ArtifactMetadata, ArtifactReply, Multipart
from firstboot.api.stream import Body, Reply, deadline_for, media_type
from firstboot.base import documents, files
from firstboot.base.clock import Clock
from firstboot.base.documents import IDENTIFIER
from firstboot.base.errors import Refused, TryAgain
from firstboot.base.secret import Secret

if TYPE_CHECKING:
    from firstboot.api.transport import Transport  # and requests: an ordinary boot asks nobody

LONGEST_LISTING_PAGES = 1000
PROBLEM_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    """One answer, parsed as far as it goes.

    `complaint` says why a 2xx could not be read as what it should be. `body` is for those who judge
    it themselves (a signed envelope, key sets); `tag` is what to ask with next time. `target` is
    where a redirect points, without its query.
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
    page: tuple[tuple[messages.ListedAgent, ...], str | None] | None = None
    tag: str | None = None
    body: bytes = b""
    complaint: str | None = None
    target: str | None = None
    host: str = ""

    @property
    def is_problem(self) -> bool:
        """Return True for an error document that may be the control plane's.

        Gateways have JSON errors of their own, which say nothing about a token (contract 2.1).
        """
        if self.problem is None:
            return False
        members = (self.problem.type, self.problem.title, self.problem.detail)
        named = self.problem.code is not None or sum(one is not None for one in members) > 1
        return named or self.media_type == PROBLEM_TYPE


class PlaneApi:
    """The control plane at `base_url` (an origin without trailing slash).

    Each request ends within `deadline_s`, name resolution and all addresses included, or within its
    own where it is given one. Bundles and artifacts have more, by their size.
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
        """Use another transport from the next request on."""
        self._transport = transport

    def rest(self) -> None:
        """Close the kept-alive connection: the next request is far off."""
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
        """Request 1: present the token; repeats need the same key and body."""
        return self._ask(
            "POST",
            _agents(org_id, project_id, environment_id),
            bearer=token,
            body=body,
            headers={"Idempotency-Key": idempotency_key},
            deadline_s=deadline_s,
            enrolled=messages.EnrollmentReply.parse,
        )

    def list_agents(
        self, operator_token: Secret, *, org_id: str, project_id: str, environment_id: str
    ) -> list[messages.ListedAgent]:
        """Request 2: every agent of an environment; TryAgain or Refused."""
        path, query = _agents(org_id, project_id, environment_id), ""
        rows: list[messages.ListedAgent] = []
        for _ in range(LONGEST_LISTING_PAGES):
            answer = self._ask("GET", path + query, bearer=operator_token, page=messages.agent_page)
            if answer.status in (401, 403) and (answer.is_json or answer.is_empty):
                raise Refused(
                    f"the control plane rejected the operator token: {answer.status}",
                    hint="use the token of an operator of this environment",
                )
            if answer.page is None:
                raise TryAgain(
                    f"the control plane gave no agent list: {answer.status}",
                    hint="retry later"
                    if answer.is_json or answer.is_empty
                    else "a proxy or a captive portal answers in place of the control plane",
                )
            page, cursor = answer.page
            rows.extend(page)
            if cursor is None:
                return rows
            query = f"?next={quote(cursor, safe='')}"
        raise TryAgain(
            f"the agent list does not end within {LONGEST_LISTING_PAGES} pages",
            hint="look for the agent at the control plane itself",
        )

    def heartbeat(
        self,
        agent_id: str,
        key: Secret,
        beat: messages.Heartbeat,
        *,
        deadline_s: float | None = None,
    ) -> Answer:
        """Request 3."""
        return self._ask(
            "POST",
            f"/api/v1/agents/{_id(agent_id)}/heartbeat",
            bearer=key,
            body=beat.to_bytes(),
            deadline_s=deadline_s,
            heartbeat=messages.HeartbeatReply.parse,
        )

    def latest(self, agent_id: str, key: Secret, *, tag: str | None) -> Answer:
        """Request 4: the assigned envelope, unjudged; 304 if it has `tag`."""
        return self._ask(
            "GET",
            f"/api/v1/agents/{_id(agent_id)}/deployments/latest",
            bearer=key,
            headers={"If-None-Match": tag} if tag is not None else {},
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
        """Request 5: what follows the first `have` of `size` bytes.

        Yields these, or the answer in their place. `tag` came with these bytes; without it the
        whole is asked for. StartOver where they cannot be continued.
        """
        url = f"{self._base}/api/v1/agents/{_id(agent_id)}/deployments/{_id(deployment_id)}/bundle"
        deadline_s = DEADLINE_S + deadline_for(size - have)
        with bundles.answered(
            self._transport, url, bearer=key, have=have, tag=tag, deadline_s=deadline_s
        ) as stream:
            if bundles.is_bundle(stream):
                yield bundles.coming(stream, have=have, tag=tag)
            elif stream.status == bundles.NO_SUCH_RANGE:
                raise bundles.StartOver("the control plane has no such part of the bundle")
            else:
                body = stream.whole(files.JSON_LIMIT)
                yield self._answer(Reply(stream.status, stream.headers, body, stream.date), {})

    def report(self, agent_id: str, key: Secret, deployment_id: str, body: bytes) -> Answer:
        """Request 6: the outcome of a deployment. Safe to repeat."""
        path = f"/api/v1/agents/{_id(agent_id)}/deployments/{_id(deployment_id)}/status"
        return self._ask("POST", path, bearer=key, body=body)

    def signing_keys(self, agent_id: str, key: Secret, *, since: int) -> Answer:
        """Request 7: the key sets that are newer than `since`, unjudged."""
        path = f"/api/v1/agents/{_id(agent_id)}/signing-keys?since={since:d}"
        return self._ask("GET", path, bearer=key, key_sets=messages.key_sets)

    def upload_artifact(
        self,
        agent_id: str,
        key: Secret,
        metadata: ArtifactMetadata,
        file: int,
        *,
        each: Callable[[int], None] | None = None,
    ) -> Answer:
        """Request 8: the artifact open as `file`.

        Safe to repeat: it is known by its content. `each` is called with how many of its bytes are
        on their way. WrongContent when they are not what `metadata` says.
        """
        body = Multipart(metadata, file, each=each)
        return self._ask(
            "POST",
            f"/api/v1/agents/{_id(agent_id)}/artifacts",
            bearer=key,
            body=body,
            headers={"Content-Type": body.content_type},
            deadline_s=DEADLINE_S + deadline_for(len(body)),
            artifact=ArtifactReply.parse,
        )

    def health(self) -> Answer:
        """Request 9: advisory."""
        return self._ask("GET", "/healthz")

    def _ask(
        self,
        method: str,
        path: str,
        *,
        bearer: Secret | None = None,
        body: bytes | Body | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        **reads: Callable[[Any], Any],
    ) -> Answer:
        """Send one request; `reads` names a success's member and its parser."""
        sent = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
        reply = self._transport.request(
            method,
            self._base + path,
            bearer=bearer,
            body=body,
            headers={**sent, **(headers or {})},
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
        )
        return self._answer(reply, reads)

    def _answer(self, reply: Reply, reads: Mapping[str, Callable[[Any], Any]]) -> Answer:
        found: dict[str, Any] = {}
        try:
            value, is_json = documents.load(reply.body), True
        except ValueError:
            value, is_json = None, False
        if is_json and reply.status in (200, 201):
            try:
                found = {name: parse(value) for name, parse in reads.items()}
            except ValueError as error:
                found = {"complaint": str(error)}
        # A date is the server's: its own clock judges it, for a host's may be years off at first
        # boot.
        now = reply.date if reply.date is not None else self._clock.wall()
        return Answer(
            reply.status,
            is_json,
            not reply.body,
            media_type(reply.headers),
            messages.Problem.parse(value) if reply.status >= 400 else None,
            messages.retry_after(reply.headers.get("retry-after"), now=now),
            reply.date,
            tag=messages.entity_tag(reply.headers.get("etag")),
            body=reply.body,
            target=messages.target(reply.headers.get("location")),
            host=urlsplit(self._base).netloc,
            **found,
        )


def _agents(org_id: str, project_id: str, environment_id: str) -> str:
    path = f"/api/v1/orgs/{_id(org_id)}/projects/{_id(project_id)}"
    return f"{path}/environments/{_id(environment_id)}/agents"


def _id(text: str) -> str:
    """Return an id as a path segment; ValueError keeps others out of URLs."""
    if not IDENTIFIER.match(text):
        raise ValueError("not an id")
    return quote(text, safe="")
