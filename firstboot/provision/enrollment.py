"""Turn a token into an identity, exactly once: present a durable intent, and judge the answer.

The answer table of contract 2.1 is `meaning`; `present` does one attempt and changes nothing but
the intent's ``unanswered`` flag, which is durable before the first byte goes out: if we are killed
while the control plane answers, the next run still knows that the token may be spent. Exactly once
rests on a control plane that knows the Idempotency-Key; against one that ignores it, a lost answer
spends the token, and the refusal says which agent to look for.

A refusal is a problem document. A gateway's own JSON (Kong, AWS) says nothing about the token: it
is asked again with growing pauses, and `status` shows it from the fourth such answer on.
"""

from __future__ import annotations

import enum
from dataclasses import replace

from firstboot.api import answers
from firstboot.api.client import Answer, PlaneApi
from firstboot.base.errors import Refused, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.settings import Settings
from firstboot.provision.tokens import Intent

# The statuses that refuse for good, when the body is a problem document.
REFUSING = frozenset({400, 401, 403, 404, 410, 413, 422})
REFUSING_CODES = frozenset({"name_taken", "token_used"})  # with 409
# After a lost answer these say that the token was probably spent by it.
SPENT_AFTER_LOSS = frozenset({401, 409, 410})
# The pauses after an answer that is not to be believed: three times over ten minutes.
PAUSES_S = (60.0, 180.0, 360.0)

MINT = "mint a new one for this environment"
AGAIN = "then byteor-firstboot run --again"
# By the code of the answer where that says more than its status.
ADVICE: dict[int | str, str] = {
    400: f"check name, org_id, project_id and environment_id, {AGAIN}",
    401: f"the enrollment token is unknown, expired or used: {MINT}",
    403: f"the token belongs to another environment, or lacks the scope agent:enroll: {MINT}",
    404: f"check org_id, project_id and environment_id: there is no such place; {AGAIN}",
    409: f"the token was used, or the name is taken: {MINT}, or choose another name, {AGAIN}",
    410: f"the enrollment token was used: {MINT}",
    413: f"the request is too large: choose a shorter name, {AGAIN}",
    422: f"check the configured name, {AGAIN}",
    "name_taken": f"another agent has this name: choose another, or delete that agent, {AGAIN}",
    "token_expired": f"the enrollment token has expired: {MINT}",
    "token_unknown": f"the control plane does not know this enrollment token: {MINT}",
    "token_used": f"the enrollment token was used: {MINT}",
}


class Meaning(enum.Enum):
    """The meaning of one answer to request 1 for first boot."""

    ENROLLED = "enrolled"
    MALFORMED = "malformed"  # a success without a usable id or key: repeated for a while
    TRANSIENT = "transient"
    GATEWAY = "gateway"  # a refusing status in JSON that is no problem document
    REFUSED = "refused"
    ASK_WITHOUT_NAME = "ask without name"  # 400 or 422 to a host name: once more, an empty body
    PROBABLY_SPENT = "probably spent"


def meaning(answer: Answer, intent: Intent) -> Meaning:
    """Judge `answer`, given what was sent and whether an earlier answer was lost."""
    status, problem = answer.status, answer.problem
    if status in (200, 201) and answer.is_json:
        return Meaning.ENROLLED if answer.enrolled is not None else Meaning.MALFORMED
    code = problem.code if problem is not None else None
    refusing = status in REFUSING or (status == 409 and code in REFUSING_CODES)
    if not answer.is_json or not refusing:
        return Meaning.TRANSIENT
    lost = intent.unanswered and status in SPENT_AFTER_LOSS
    if status in (400, 422) and '"hostname"' in intent.body:
        return Meaning.ASK_WITHOUT_NAME
    if not answer.is_problem:
        return Meaning.GATEWAY
    return Meaning.PROBABLY_SPENT if lost else Meaning.REFUSED


def present(
    api: PlaneApi, layout: Layout, intent: Intent, settings: Settings, token: Secret
) -> Answer:
    """Send the intent once to the environment that `settings` name; TryAgain without an answer."""
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
    if not intent.unanswered and _enrolled_nothing(answer, intent):
        intent.save(layout)
    return answer


def _enrolled_nothing(answer: Answer, intent: Intent) -> bool:
    """Return True for an answer that proves that this attempt spent nothing."""
    judged = meaning(answer, intent)
    if judged in (Meaning.REFUSED, Meaning.GATEWAY):
        return True
    # What stands before the control plane answered in its place; a 5xx may hide a success.
    return judged is Meaning.TRANSIENT and answer.status < 500 and answer.status != 409


class Unbelieved(TryAgain):
    """An answer that says nothing for certain; `pause_s` until it is asked for again."""

    def __init__(self, answer: Answer, judged: Meaning, *, pause_s: float) -> None:
        said = f"the control plane answered {answer.status} without a usable agent id and key"
        hint = None
        if judged is Meaning.GATEWAY:
            said = (
                f"{answer.host} answers {answer.status} in a form that is not the control plane's"
            )
            hint = "check api_base_url and the three ids; if they are right, the token"
        super().__init__(said, hint=hint)
        self.pause_s = pause_s


def malformed_for_good(answer: Answer) -> Refused:
    """Return the error after all repeats of a malformed success."""
    return Refused(
        f"the control plane answers {answer.status}, but {answer.complaint}",
        hint="the token may be spent; the next run repeats with the same key; "
        "ask the control plane's operator",
    )


def transient(answer: Answer) -> TryAgain:
    """Return the error for an answer that says nothing about the token."""
    return TryAgain(
        answers.described(answer), retry_after=answer.retry_after, hint=answers.advice(answer)
    )


def refusal(answer: Answer, intent: Intent, settings: Settings, *, lost: bool) -> Refused:
    """Return the error for an answer that ends the intent: one sentence and what to do."""
    said = f" ({answer.problem.said()})" if answer.problem is not None else ""
    if lost:
        return Refused(
            f"the control plane answered {answer.status}{said} after an answer was lost: "
            "the token was probably spent by it",
            hint=f"look for {intent.name} in the agent list, delete it, mint a new token, "
            "provide it and run again",
        )
    code = answer.problem.code if answer.problem is not None else None
    if answer.status == 404:
        said += f": {settings.org_id}/{settings.project_id}/{settings.environment_id}"
    return Refused(
        f"the control plane refused the token: {answer.status}{said}",
        hint=ADVICE.get(code or "", ADVICE[answer.status]),
    )
