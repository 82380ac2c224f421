"""What an answer to a request with the runtime key means: the table of contract 2.6 as data.

Every loop turns its answers through `check`, so that one 401 never destroys an identity and nothing loops hot: what
is raised here is all that `loop` knows about HTTP. A page instead of JSON is never the plane's word, whatever its status.
"""

from __future__ import annotations

from firstboot.api.client import Answer
from firstboot.base.errors import Refused, TryAgain

UNKNOWN_AGENT, NO_DEPLOYMENT = "unknown_agent", "no_deployment"


class NotThePlane(TryAgain):
    """Something else answered. It may pass, but as a rule stays until a person acts, so `loop` asks it seldom."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message, hint="a proxy or a captive portal stands between this host and the plane"
        )


class KeyRefused(Refused):
    """The runtime key is missing, expired, revoked or another agent's, or the agent's record was deleted."""


class RequestRefused(Refused):
    """This one request is refused: a scope is missing, or we made a mistake; the other loops go on."""


def check(
    answer: Answer, *, doing: str, conditional: bool = False, scope: str = "for this"
) -> None:
    """Return on 2xx (and on 304 if `conditional`); raise TryAgain, KeyRefused or RequestRefused for everything else.

    `doing` says what was tried ("heartbeat"), for the sentence that `status` shows; `scope` names what a 403 lacks.
    """
    status, code = answer.status, answer.problem.code if answer.problem is not None else None
    said = f" ({answer.problem.said()})" if answer.problem is not None else ""
    if (
        200 <= status < 300
        and (answer.is_json or answer.is_empty)
        or (conditional and status == 304)
    ):
        return
    if 300 <= status < 400:
        raise NotThePlane(
            f"{doing}: something answered {status}, a redirect, which the plane never sends"
        )
    if status == 429 or status >= 500 or status in (408, 425):
        raise TryAgain(
            f"{doing}: the plane answered {status}{said}", retry_after=answer.retry_after
        )
    if (
        not answer.is_json
        and not (answer.is_empty and status in (401, 403))
        and 200 <= status < 500
    ):
        raise NotThePlane(f"{doing}: something answered {status} with a page, not the plane's JSON")
    if status == 401 or (status in (404, 410) and code == UNKNOWN_AGENT):
        raise KeyRefused(
            f"{doing}: the plane does not accept the runtime key: {status}{said}",
            hint="the key expired, was revoked, or the agent was deleted; byteor-firstboot reenroll with a fresh token",
        )
    if status == 403:
        raise RequestRefused(
            f"{doing}: the runtime key lacks the scope {scope}: 403{said}",
            hint="grant the scope to this agent's key",
        )
    if 400 <= status < 500:
        raise RequestRefused(f"{doing}: the plane refused the request: {status}{said}")
    raise TryAgain(f"{doing}: the plane answered {status}, which this request never follows")
