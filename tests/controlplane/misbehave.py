"""Each fault as it is done to a reply on the wire."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any, Callable

from starlette.responses import Response, StreamingResponse

from tests.controlplane.exchange import Exchange, problem
from tests.controlplane.faults import Fault
from tests.controlplane.wire import Wire

CRASH_CODE = 70
PORTAL = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Accept the terms of this network</body></html>"
GARBAGE = b"\x16\x03\x01\x00garbage \xff\xfe\x00 that is no HTTP\r\n\r\n"


class Gone(Exception):
    """The connection is over: nothing more is to be said on it."""


async def apply(fault: Fault, exchange: Exchange, response: Response | None) -> Response | None:
    """Do one fault; return the response that remains to be sent (None: none yet), or raise Gone."""
    remaining: Response | None = await _KINDS[fault.kind](fault.options, exchange, response)
    return remaining


def _wire(exchange: Exchange) -> Wire:
    wire: Wire = exchange.request.scope["byteor.wire"]
    return wire


async def _drop(
    options: dict[str, Any], exchange: Exchange, _response: Response | None
) -> Response | None:
    _wire(exchange).drop(reset=options["reset"])
    raise Gone


async def _cut(
    options: dict[str, Any], exchange: Exchange, response: Response | None
) -> Response | None:
    _wire(exchange).cut_after(options["at"], reset=options["reset"])
    return response


async def _delay(
    options: dict[str, Any], _exchange: Exchange, response: Response | None
) -> Response | None:
    await asyncio.sleep(options["seconds"])
    return response


async def _hang(
    _options: dict[str, Any], exchange: Exchange, _response: Response | None
) -> Response | None:
    raise Gone  # the caller waits for the client to go away


async def _drip(
    options: dict[str, Any], exchange: Exchange, response: Response | None
) -> Response | None:
    _wire(exchange).drip(options["count"], every_s=options["every_s"])
    return response


async def _status(
    options: dict[str, Any], _exchange: Exchange, _response: Response | None
) -> Response | None:
    headers = (
        {"content-type": options["content_type"], **options["headers"]}
        if options["content_type"]
        else options["headers"]
    )
    return Response(options["body"], options["status"], headers=headers)


async def _problem(
    options: dict[str, Any], _exchange: Exchange, _response: Response | None
) -> Response | None:
    return problem(
        options["status"], options["code"], "scheduled fault", headers=options["headers"]
    )


async def _html(
    options: dict[str, Any], _exchange: Exchange, _response: Response | None
) -> Response | None:
    return Response(PORTAL, options["status"], media_type="text/html")


async def _garbage(
    _options: dict[str, Any], exchange: Exchange, _response: Response | None
) -> Response | None:
    _wire(exchange).say(GARBAGE)
    raise Gone


async def _wrong_length(
    options: dict[str, Any], exchange: Exchange, response: Response | None
) -> Response | None:
    body = bytes(getattr(response, "body", b"{}"))
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {options['declared']}\r\n\r\n"
    _wire(exchange).say(head.encode() + body)
    raise Gone


async def _huge(
    options: dict[str, Any], _exchange: Exchange, _response: Response | None
) -> Response | None:
    size, step = options["size"], 64 * 1024

    async def blanks() -> AsyncIterator[bytes]:
        for at in range(0, size, step):
            yield b" " * min(step, size - at)

    headers = {"content-length": str(size)} if options["declared"] else {}
    return StreamingResponse(blanks(), 200, headers=headers, media_type="application/json")


async def _redirect(
    options: dict[str, Any], _exchange: Exchange, _response: Response | None
) -> Response | None:
    return Response(status_code=options["status"], headers={"location": options["location"]})


async def _crash(
    _options: dict[str, Any], _exchange: Exchange, _response: Response | None
) -> Response | None:
    os._exit(CRASH_CODE)  # as a power cut would: what is committed is committed, nothing is said


async def _date(
    options: dict[str, Any], exchange: Exchange, response: Response | None
) -> Response | None:
    exchange.extra_headers["Date"] = formatdate(time.time() + options["offset_s"], usegmt=True)
    return response


_KINDS: dict[str, Callable[..., Any]] = {
    "drop": _drop,
    "cut": _cut,
    "delay": _delay,
    "hang": _hang,
    "drip": _drip,
    "status": _status,
    "problem": _problem,
    "html": _html,
    "garbage": _garbage,
    "wrong_length": _wrong_length,
    "huge": _huge,
    "redirect": _redirect,
    "crash": _crash,
    "date": _date,
}
