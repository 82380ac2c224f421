"""The public origin: each request is read, recorded, judged, answered, and spoilt where a fault
says so.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import traceback
from email.utils import formatdate
from typing import Any, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tests.controlplane import artifacts, beats, deployments, enrollment, keysets
from tests.controlplane.contract import operations
from tests.controlplane.exchange import Exchange, Refusal
from tests.controlplane.faults import Fault
from tests.controlplane.misbehave import Gone, apply
from tests.controlplane.plane import Plane


def _healthz(exchange: Exchange) -> Response:
    """Request 9."""
    return exchange.reply(200, {"status": "ok"})


HANDLERS: dict[str, Callable[[Exchange], Any]] = {
    "enroll": enrollment.enroll,
    "list": enrollment.list_agents,
    "heartbeat": beats.heartbeat,
    "latest": deployments.latest,
    "bundle": deployments.bundle,
    "status": deployments.report,
    "signing-keys": keysets.serve,
    "artifacts": artifacts.upload,
    "healthz": _healthz,
}


class Application:
    """ASGI application of the plane's own origin, or of the object store behind it."""

    def __init__(self, plane: Plane, *, origin: str = "plane") -> None:
        self._plane, self._origin = plane, origin

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(self._plane, Request(scope, receive), origin=self._origin)
        try:
            await exchange.read()
            exchange.begin()
            exchange.spot_secrets()
            response = await self._respond(exchange)
            await self._send(exchange, response, scope, receive, send)
        except ClientDisconnect:
            exchange.note(disconnected=True)
        except Gone:
            await self._until_gone(receive)

    async def _respond(self, exchange: Exchange) -> Response:
        """The response after all faults."""
        name = exchange.operation.name if exchange.operation else self._origin
        faults = self._plane.faults.pick(
            name, agent_id=exchange.ids.get("agent_id"), hosts=exchange.host_names
        )
        if faults:
            exchange.note(faults=[fault.kind for fault in faults])
        response = await self._commit(
            exchange, [fault for fault in faults if fault.when == "before"]
        )
        exchange.note(status=response.status_code)
        for fault in faults:
            if fault.when == "after":
                response = await apply(fault, exchange, response) or response
        return response

    async def _commit(self, exchange: Exchange, before: list[Fault]) -> Response:
        """Everything up to the commit; an idempotency key is in progress for as long as it takes."""
        key: str | None = None
        if exchange.operation is not None and exchange.operation.name == "enroll":
            key = exchange.request.headers.get("idempotency-key", "").lower()
            if key in self._plane.enrolling:
                return Refusal(
                    409, "in_progress", "the first attempt with this idempotency key is in progress"
                ).response()
            self._plane.enrolling.add(key)
        try:
            spoilt: Response | None = None
            for fault in before:
                spoilt = await apply(fault, exchange, spoilt) or spoilt
            if spoilt is not None:
                return spoilt
            return await self._answer(exchange)
        finally:
            if key is not None:
                self._plane.enrolling.discard(key)

    async def _answer(self, exchange: Exchange) -> Response:
        try:
            if self._origin == "store":
                return deployments.from_store(exchange)
            if exchange.operation is None:
                raise _no_operation(exchange)
            wrong = exchange.judge()
            exchange.authenticate()
            exchange.limit()
            if wrong is not None:
                raise wrong
            answer = HANDLERS[exchange.operation.name](exchange)
            response: Response = await answer if inspect.isawaitable(answer) else answer
            return response
        except Refusal as refusal:
            exchange.note(code=refusal.code)
            if exchange.streamed and self._plane.setting("drain_refused"):
                await artifacts.drain(exchange)
            return refusal.response()
        except (ClientDisconnect, asyncio.CancelledError):
            raise
        except Exception as error:
            traceback.print_exc()
            self._plane.violation(
                "plane_bug", f"{type(error).__name__} in the reference control plane", exchange.id
            )
            return Refusal(500, "internal", "the reference control plane has a bug").response()

    async def _send(
        self, exchange: Exchange, response: Response, scope: Any, receive: Any, send: Any
    ) -> None:
        response.headers.setdefault("Date", formatdate(time.time(), usegmt=True))
        for name, value in exchange.extra_headers.items():
            response.headers[name] = value
        exchange.note(answered=response.status_code)
        await response(scope, receive, send)

    async def _until_gone(self, receive: Any) -> None:
        """Hold the request open until the connection is over, so that the server adds no reply of its own."""
        while (await receive())["type"] != "http.disconnect":
            pass


def _no_operation(exchange: Exchange) -> Refusal:
    """404 or 405 for what the contract does not have."""
    allowed = [
        op.method for op in operations().values() if op.path_pattern.fullmatch(exchange.raw_path)
    ]
    if allowed:
        exchange.violate("method", f"the contract has no {exchange.request.method} here")
        return Refusal(
            405,
            "method_not_allowed",
            "no such method here",
            headers={"Allow": ", ".join(sorted(allowed))},
        )
    exchange.violate("unknown_path", "the contract has no such path")
    return Refusal(404, "not_found", "no such path")
