"""Token to identity, exactly once: present a durable intent, and say what the answer means.

The answer table of contract 2.1 is data (`meaning`); `present` does one attempt and changes nothing but the intent's
``unanswered`` flag, which is durable before the first byte goes out: if we are killed while the plane answers, the
next run still knows that the token may be spent. Exactly once rests on a plane that knows the Idempotency-Key;
against one that ignores it, a lost answer spends the token, and the refusal says which agent to look for.
"""

from __future__ import annotations

import enum
from dataclasses import replace

from firstboot.api.client import Answer, PlaneApi
from firstboot.base.errors import Refused, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.settings import Settings
from firstboot.provision.tokens import Intent

# Contract 2.1: the statuses that refuse for good, when their body is JSON (else it is a proxy or captive portal).
REFUSING = frozenset({400, 401, 403, 404, 410, 413, 422})
REFUSING_CODES = frozenset({"name_taken", "token_used"})  # with 409
# After a lost answer these say that the token was probably spent by it.
SPENT_AFTER_LOSS = frozenset({401, 410})
# Answers that prove that this attempt enrolled nothing.
NOTHING_HAPPENED = frozenset({408, 425, 429})

ADVICE = {
    400: "the request was malformed for this plane: check name, org_id, project_id and environment_id",
    401: "the enrollment token is unknown, expired or used: mint a new one for this environment",
    403: "the token lacks the scope agent:enroll or belongs to another environment: mint one for this environment",
    404: "there is no such organisation, project or environment: check the three ids",
    409: "the token was used or the name is taken: choose another name, or mint a new token",
    "name_taken": "another agent has this name: set another one (name:), or delete that agent; then run --again",
    "token_used": "the enrollment token was used: mint a new one",
    410: "the enrollment token was used: mint a new one",
    413: "the request was too large for this plane",
    422: "the request was malformed for this plane: check the configured name",
}


class Meaning(enum.Enum):
    """What one answer to request 1 means for first boot."""

    ENROLLED = "enrolled"
    MALFORMED = (
        "malformed"  # a success without a usable id or key: repeated with the same key, for a while
    )
    TRANSIENT = "transient"
    REFUSED = "refused"
    ASK_WITHOUT_NAME = "ask without name"  # 400 or 422 to a host name: once more with an empty body
    PROBABLY_SPENT = "probably spent"


def meaning(answer: Answer, intent: Intent) -> Meaning:
    """Return what `answer` means, given what was sent and whether an earlier answer was lost."""
    problem, status = answer.problem, answer.status
    if status in (200, 201):
        if answer.enrolled is not None:
            return Meaning.ENROLLED
        return Meaning.MALFORMED if answer.is_json else Meaning.TRANSIENT
    refusing = status in REFUSING or (
        status == 409 and problem is not None and problem.code in REFUSING_CODES
    )
    if not answer.is_json or not refusing:
        return Meaning.TRANSIENT
    if intent.unanswered and (status in SPENT_AFTER_LOSS or status == 409):
        return Meaning.PROBABLY_SPENT
    if status in (400, 422) and '"hostname"' in intent.body:
        return Meaning.ASK_WITHOUT_NAME
    return Meaning.REFUSED


def present(
    api: PlaneApi, layout: Layout, intent: Intent, *, settings: Settings, token: Secret
) -> Answer:
    """Send the intent once to the environment that `settings` name; TryAgain when no answer came."""
    if not intent.unanswered:
        replace(intent, unanswered=True).save(layout)
    try:
        answer = api.enroll(
            token,
            org_id=settings.org_id or "",
            project_id=settings.project_id or "",
            environment_id=settings.environment_id or "",
            idempotency_key=intent.key,
            body=intent.body.encode(),
        )
    except TryAgain as error:
        if not error.maybe_arrived and not intent.unanswered:
            intent.save(layout)
        raise
    if not intent.unanswered and (
        answer.status in NOTHING_HAPPENED or meaning(answer, intent) is Meaning.REFUSED
    ):
        intent.save(layout)
    return answer


class MalformedSuccess(TryAgain):
    """A 2xx answer without a well-formed id or key; `pause_s` until it is asked for again."""

    def __init__(self, answer: Answer, *, pause_s: float) -> None:
        super().__init__(f"the plane answered {answer.status} without a usable agent id and key")
        self.pause_s = pause_s


def malformed_for_good(answer: Answer) -> Refused:
    """After all repeats of a malformed success."""
    return Refused(
        f"the plane answers {answer.status}, but {answer.complaint}",
        hint="the token may be spent; the next run repeats with the same key; ask the plane's operator",
    )


def transient(answer: Answer) -> TryAgain:
    """An answer that says nothing about the token."""
    what = (
        f"the plane answered {answer.status}"
        if answer.is_json
        else (
            f"something answered {answer.status} with {answer.media_type or 'no media type'}, not the plane's JSON"
        )
    )
    hint = (
        None
        if answer.is_json
        else "a proxy or a captive portal stands between this host and the plane"
    )
    return TryAgain(what, retry_after=answer.retry_after, hint=hint)


def refusal(answer: Answer, intent: Intent, *, lost: bool) -> Refused:
    """The error for an answer that ends the intent: one sentence and what to do."""
    said = f" ({answer.problem.said()})" if answer.problem is not None else ""
    if lost:
        return Refused(
            f"the plane answered {answer.status}{said} after an answer was lost: the token was probably spent by it",
            hint=f"look for {intent.name} in the agent list, delete it, mint a new token, provide it and run again",
        )
    code = answer.problem.code if answer.problem is not None else None
    advice = ADVICE.get(
        code if answer.status == 409 and code is not None else answer.status, ADVICE[answer.status]
    )
    return Refused(f"the plane refused the token: {answer.status}{said}", hint=advice)
