"""The meaning of answers to requests with the runtime key (contract 2.6).

| answer                                     | raised         | by whose word                   |
|--------------------------------------------|----------------|---------------------------------|
| 2xx with JSON or nothing, 304 where asked  | nothing        |                                 |
| 3xx; 2xx or 4xx with a page                | NotThePlane    | a portal's, or a wrong address  |
| 408, 425, 429, 5xx                         | TryAgain       | anybody's: it passes            |
| 401; 404 or 410 with code `unknown_agent`  | KeyRefused     | the control plane's             |
| 403, every other 4xx                       | RequestRefused | the control plane's             |

Every task turns its answers through `check`, so that one 401 never destroys an identity and nothing
loops hot: what is raised here is all that the agent's schedule knows about HTTP.
"""

from __future__ import annotations

from firstboot.api.client import Answer
from firstboot.base.errors import Refused, TryAgain

UNKNOWN_AGENT, NO_DEPLOYMENT = "unknown_agent", "no_deployment"
PASSING = frozenset({408, 425, 429})  # and 5xx
MIDDLEBOX = (
    "a proxy, a gateway or a captive portal answers in place of the control plane:"
    " check api_base_url and proxy"
)


class NotThePlane(TryAgain):
    """Something else answered.

    As a rule that stays until a person acts, so it is asked seldom.
    """

    def __init__(self, message: str, *, hint: str = MIDDLEBOX) -> None:
        super().__init__(message, hint=hint)


class KeyRefused(Refused):
    """The runtime key no longer counts: expired, revoked, or its agent deleted."""


class RequestRefused(Refused):
    """This one request is refused; the others go on."""


def described(answer: Answer) -> str:
    """Return who answered what, for people to read."""
    if 300 <= answer.status < 400:
        target = f" to {answer.target}" if answer.target is not None else ""
        return f"{answer.host} answered {answer.status}, a redirect{target}"
    if answer.is_json or answer.is_empty:
        said = f" ({answer.problem.said()})" if answer.problem is not None else ""
        return f"the control plane answered {answer.status}{said}"
    what = answer.media_type or "a text without media type"
    return f"something answered {answer.status} with {what}, not the control plane's JSON"


def advice(answer: Answer) -> str:
    """Return what to do about an answer that is no refusal."""
    if 300 <= answer.status < 400:
        return "set api_base_url to the control plane's own address; redirects are not followed"
    if answer.is_json or answer.is_empty:
        return "retried automatically; if it persists, ask the operator of the control plane"
    return MIDDLEBOX


def check(
    answer: Answer, *, doing: str, conditional: bool = False, scope: str = "for this"
) -> None:
    """Return on success (and on 304 if `conditional`), else raise.

    `doing` says what was tried ("heartbeat"), for the sentence that `status` shows; `scope` names
    what a 403 lacks.
    """
    status, code = answer.status, answer.problem.code if answer.problem is not None else None
    own = answer.is_json or answer.is_empty
    said = f"{doing}: {described(answer)}"
    if (200 <= status < 300 and own) or (conditional and status == 304):
        return
    if status in PASSING or status >= 500:
        raise TryAgain(said, hint=advice(answer), retry_after=answer.retry_after)
    # An empty 4xx is somebody's who has not read the contract, but for the two of authorization.
    if status < 400 or not answer.is_json and not (answer.is_empty and status in (401, 403)):
        raise NotThePlane(said, hint=advice(answer))
    if status == 401 or (status in (404, 410) and code == UNKNOWN_AGENT):
        raise KeyRefused(
            said,
            hint="the runtime key expired or was revoked, or the agent was deleted: "
            "byteor-firstboot reenroll --token-file - < FILE, with a fresh token, gives a new one",
        )
    if status == 403:
        raise RequestRefused(
            f"{said}: the runtime key lacks the scope {scope}",
            hint="grant the scope to this agent's key",
        )
    raise RequestRefused(
        said, hint="check that this agent's version is supported (byteor-agent --version)"
    )
