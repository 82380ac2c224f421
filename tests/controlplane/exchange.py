"""One request with its reply: read, recorded without secrets, authenticated, judged against the
contract.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.controlplane.contract import Operation, parse_json, which
from tests.controlplane.credentials import Caller, bearer, fingerprint, kind_of, loads, shown
from tests.controlplane.plane import Plane

BODY_LIMIT = 1024 * 1024
BODY_SHOWN = 256 * 1024


class Refusal(Exception):
    """An answer that ends a request: RFC 9457 with `code`."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers, self.extra = dict(headers or {}), dict(extra or {})

    def response(self) -> Response:
        return problem(self.status, self.code, self.detail, headers=self.headers, extra=self.extra)


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """RFC 9457 problem details with the extension member `code`."""
    body = {
        "type": f"https://errors.invalid/{code}",
        "title": code.replace("_", " "),
        "status": status,
        "detail": detail,
        "code": code,
        **(extra or {}),
    }
    return JSONResponse(
        body, status, headers=dict(headers or {}), media_type="application/problem+json"
    )


class Exchange:
    """A request on its way through the plane."""

    def __init__(self, plane: Plane, request: Request, *, origin: str = "plane") -> None:
        self.plane, self.request, self.origin = plane, request, origin
        self.raw_path = request.scope["raw_path"].decode("latin-1")
        self.query = request.scope["query_string"].decode("latin-1")
        self.headers: list[tuple[str, str]] = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in request.scope["headers"]
        ]
        self.operation: Operation | None = (
            which(request.method, self.raw_path) if origin == "plane" else None
        )
        match = self.operation.path_pattern.fullmatch(self.raw_path) if self.operation else None
        self.ids: dict[str, str] = (
            {k: unquote(v) for k, v in match.groupdict().items()} if match else {}
        )
        self.secret = bearer(request.headers.get("authorization"))
        self.body: bytes | None = None
        self.caller = Caller("none")
        self.extra_headers: dict[str, str] = {}
        self.id = 0
        self._row: dict[str, Any] = {}

    @property
    def streamed(self) -> bool:
        """Whether the body is left for the operation to read."""
        return self.operation is not None and self.operation.media_type == "multipart/form-data"

    @property
    def host_names(self) -> tuple[str, ...]:
        """Under which names a fault may be meant for this host."""
        client = self.request.client.host if self.request.client else ""
        said = (
            self.json() if self.operation is not None and self.operation.name == "enroll" else None
        )
        given = (
            [str(said[key]) for key in ("name", "hostname") if key in said]
            if isinstance(said, dict)
            else []
        )
        agent = self.plane.store.one(
            "SELECT name FROM agents WHERE agent_id = ?", self.ids.get("agent_id", "")
        )
        return (client, *given, *([agent["name"]] if agent else []))

    def json(self) -> Any:
        """The body as JSON; None when it is not."""
        try:
            return parse_json(self.body or b"")
        except ValueError:
            return None

    async def read(self) -> None:
        """Read the body, at most 1 MiB of it, unless the operation streams."""
        if self.streamed:
            return
        parts: list[bytes] = []
        size = 0
        async for part in self.request.stream():
            size += len(part)
            if size <= BODY_LIMIT:
                parts.append(part)
        self.body = b"".join(parts)
        if size > BODY_LIMIT:
            self.body = None

    def begin(self) -> None:
        """Record the request as it came, credentials masked."""
        mask = self.plane.spotter.masked
        kind = kind_of(self.plane.store, self.secret) if self.secret else None
        headers = {}
        for name, value in self.headers:
            shown_value = mask(value)
            if name.lower() == "authorization" and self.secret is not None:
                shown_value = "Bearer " + shown(self.plane.store, self.secret)
            headers[name.lower()] = shown_value
        text = (self.body or b"")[:BODY_SHOWN].decode("utf-8", "replace")
        self._row = {
            "origin": self.origin,
            "operation": self.operation.name if self.operation else None,
            "method": self.request.method,
            "path": mask(self.raw_path),
            "query": mask(self.query),
            "headers": headers,
            "credential": {"kind": kind, "hash": fingerprint(self.secret)[:12]}
            if self.secret
            else None,
            "agent_id": self.ids.get("agent_id"),
            "client": self.request.client.host if self.request.client else None,
            "body": mask(text),
            "body_bytes": len(self.body or b""),
            "status": None,
            "code": None,
            "faults": [],
        }
        self.id = self.plane.store.run(
            "INSERT INTO requests VALUES (NULL, ?, ?)",
            self.plane.store.now(),
            json.dumps(self._row),
        )

    def note(self, **facts: Any) -> None:
        """Add to the record."""
        self._row.update(facts)
        self.plane.store.run(
            "UPDATE requests SET row = ? WHERE id = ?", json.dumps(self._row), self.id
        )

    def violate(self, rule: str, detail: str) -> None:
        where = (
            self.operation.name
            if self.operation
            else f"{self.request.method} {self.raw_path[:200]}"
        )
        self.plane.violation(rule, f"{where}: {detail}", self.id)

    def spot_secrets(self) -> None:
        """A credential belongs in the Authorization header and nowhere else."""
        for place, text in (
            ("address", f"{self.raw_path}?{self.query}"),
            (
                "header",
                "\n".join(value for name, value in self.headers if name.lower() != "authorization"),
            ),
            ("body", (self.body or b"").decode("latin-1")),
        ):
            for secret in self.plane.spotter.found(text):
                self.violate(
                    "secret_misplaced", f"{shown(self.plane.store, secret)} in the {place}"
                )

    def authenticate(self) -> None:
        """Find who calls; Refusal 401, 403, 404 or 410 when it is not the right one."""
        operation = self.operation
        assert operation is not None
        store = self.plane.store
        kind = kind_of(store, self.secret) if self.secret is not None else None
        if kind == "enrollment_token" and operation.credential != "enrollment_token":
            self.violate(
                "enrollment_token_misplaced",
                "an enrollment token in another request than enrollment",
            )
        if operation.credential is None:
            if self.secret is not None and kind != "enrollment_token":
                self.violate("credential_misplaced", f"{kind} where no credential belongs")
            return
        if self.secret is None or kind is None:
            self.violate("missing_credential", "no well-formed Authorization: Bearer header")
            raise Refusal(
                401,
                "credential_missing",
                "this request needs a bearer credential",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if kind not in (operation.credential, "unknown"):
            if kind != "enrollment_token":
                self.violate("credential_misplaced", f"{kind} where {operation.credential} belongs")
            raise self._unauthorized(
                "wrong_credential", f"this request needs the {operation.credential}"
            )
        if operation.credential == "runtime_key":
            self._authenticate_agent(self.secret)
        elif operation.credential == "operator_token":
            if self.secret != store.setting("operator_token"):
                raise self._unauthorized(
                    "operator_token_unknown", "this operator token is not known"
                )
        else:
            row = store.one("SELECT * FROM tokens WHERE hash = ?", fingerprint(self.secret))
            if row is None:
                raise self._unauthorized("token_unknown", "this enrollment token is not known")
            self.caller = Caller("enrollment_token", row)

    def _unauthorized(self, code: str, detail: str) -> Refusal:
        return Refusal(
            401, code, detail, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}
        )

    def _authenticate_agent(self, secret: str) -> None:
        store, operation = self.plane.store, self.operation
        assert operation is not None
        key = store.one("SELECT * FROM keys WHERE hash = ?", fingerprint(secret))
        if key is None:
            raise self._unauthorized("key_unknown", "this runtime key is not known")
        if key["agent_id"] != self.ids["agent_id"]:
            raise self._unauthorized(
                "key_of_another_agent", "this runtime key belongs to another agent"
            )
        agent = store.one("SELECT * FROM agents WHERE agent_id = ?", key["agent_id"])
        if agent is None or agent["deleted"]:
            raise Refusal(
                self.plane.setting("unknown_agent_answer"),
                "unknown_agent",
                "no such agent any more",
            )
        if key["revoked"]:
            raise self._unauthorized("key_revoked", "this runtime key was revoked")
        if key["expires_at"] is not None and key["expires_at"] <= store.now():
            raise self._unauthorized("key_expired", "this runtime key has expired")
        if operation.scope not in loads(key["scopes"]):
            raise Refusal(
                403,
                "scope_missing",
                f"the runtime key lacks {operation.scope}",
                extra={"scope": operation.scope},
            )
        self.caller = Caller("runtime_key", agent)

    def limit(self) -> None:
        """Count against the rate limit of the operation's group; Refusal 429 beyond it."""
        assert self.operation is not None
        group = self.operation.group
        who = fingerprint(self.secret)[:16] if self.secret else "anyone"
        rule = self.plane.setting("rate_limits").get(group)
        within, self.extra_headers = self.plane.limits.headers(group, who, rule)
        if not within:
            raise Refusal(429, "rate_limited", f"too many requests of the group {group}")

    def judge(self) -> Refusal | None:
        """Hold the request against the contract, record what is wrong, and return the refusal for
        it.
        """
        assert self.operation is not None
        if self.body is None and not self.streamed:
            self.violate("body_size", "a JSON body over 1 MiB")
            return Refusal(413, "too_large", "the body is larger than 1 MiB")
        findings = self.operation.findings(self.raw_path, self.query, self.headers, self.body)
        for finding in findings:
            self.violate(finding.rule, finding.detail)
        if not findings:
            return None
        code = "unsupported_media_type" if findings[0].status == 415 else "invalid_request"
        return Refusal(findings[0].status, code, findings[0].detail)

    def reply(
        self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Response:
        """A JSON reply; with unknown members when the plane is told to add some."""
        extra = {"x_unknown": {"nested": [1, None]}} if self.plane.setting("extra_members") else {}
        return JSONResponse({**body, **extra}, status, headers=dict(headers or {}))


def whole_seconds(seconds: float) -> int:
    return math.ceil(seconds)
