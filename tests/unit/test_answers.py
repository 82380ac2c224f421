"""The answer tables of contract 2.1 and 2.6 as data: every status, with the plane's JSON and with
somebody else's page.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from firstboot.api import messages
from firstboot.api.answers import KeyRefused, NotThePlane, RequestRefused, check
from firstboot.api.client import Answer
from firstboot.base.errors import TryAgain
from firstboot.exchange.settings import Settings
from firstboot.provision.enrollment import Meaning, meaning, refusal
from firstboot.provision.tokens import Intent


def answer(status: int, body: Any = None, *, text: bytes = b"", **more: Any) -> Answer:
    is_json = body is not None
    problem = messages.Problem.parse(body) if status >= 400 else None
    return Answer(
        status,
        is_json,
        not is_json and not text,
        "application/json" if is_json else "text/html",
        problem,
        more.get("retry_after"),
        None,
        enrolled=more.get("enrolled"),
    )


INTENT = Intent(key="k", body='{"name": "n"}', name="n", token_mark="m", token_length=20, host={})
LOST = Intent(
    key="k",
    body='{"name": "n"}',
    name="n",
    token_mark="m",
    token_length=20,
    host={},
    unanswered=True,
)
HOSTNAME = Intent(
    key="k", body='{"hostname": "n"}', name="n", token_mark="m", token_length=20, host={}
)


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_the_meaning_of_contract_2_1(status: int) -> None:
    """The table, row by row, for JSON and for a page of somebody else's."""
    found = meaning(answer(status, {"code": "x"}), INTENT)
    if status in (200, 201):
        assert found is Meaning.MALFORMED
    elif status in (400, 401, 403, 404, 410, 413, 422):
        assert found is Meaning.REFUSED
        assert refusal(answer(status, {"code": "x"}), INTENT, Settings(), lost=False).hint
    else:
        assert found is Meaning.TRANSIENT
    assert meaning(answer(status, text=b"<html>"), INTENT) is Meaning.TRANSIENT
    asked_again = meaning(answer(status, {"message": "Forbidden"}), INTENT)
    assert (asked_again is Meaning.GATEWAY) == (found is Meaning.REFUSED)
    lost = meaning(answer(status, {"code": "token_used"}), LOST)
    assert (lost is Meaning.PROBABLY_SPENT) == (status in (401, 409, 410))
    for body in ({"code": "x"}, {"message": "x"}, {}):
        nameless = meaning(answer(status, body), HOSTNAME) is Meaning.ASK_WITHOUT_NAME
        assert nameless == (status in (400, 422))


@pytest.mark.parametrize(
    ("media", "body", "expected"),
    [
        ("application/json", {"message": "no Route matched with those values"}, False),
        ("application/json", {"message": "Forbidden", "title": "x"}, False),
        ("application/json", {}, False),
        ("application/json", {"code": 403, "title": "x", "detail": 7}, False),
        ("application/json", [], False),
        ("application/problem+json", {}, True),
        ("application/json", {"code": "token_used"}, True),
        ("application/json", {"type": "about:blank", "title": "Forbidden"}, True),
        ("text/html", {"title": "Forbidden", "detail": "no"}, True),
    ],
    ids=str,
)
def test_what_may_be_a_refusal_is_a_problem_document(media: str, body: Any, expected: bool) -> None:
    """A gateway's own JSON says nothing about a token (contract 2.1)."""
    found = answer(403, body)
    assert replace(found, media_type=media).is_problem is expected


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://user:pw@other.example:8443/path?token=x#y", "https://other.example:8443/path"),
        ("/login?next=%2F", "/login"),
        ("//other.example/x", "other.example/x"),
        ("https://" + "x" * 300, "https://" + "x" * 192),
        ("https://[", None),
        ("https://other.example/\x1b[2J", None),
        ("", None),
        (None, None),
    ],
)
def test_a_redirect_is_said_with_its_target(location: str | None, target: str | None) -> None:
    """Without what may be secret in it, and without what no terminal should see."""
    assert messages.target(location) == target
    found = replace(answer(301, text=b"x"), target=target, host="plane.example")
    with pytest.raises(NotThePlane) as caught:
        check(found, doing="heartbeat")
    said = f" to {target}" if target else ""
    assert str(caught.value) == f"heartbeat: plane.example answered 301, a redirect{said}"


@pytest.mark.parametrize("code", ["token_used", "name_taken", "in_progress", None])
def test_a_conflict_is_a_refusal_only_with_its_codes(code: str | None) -> None:
    """Any other 409 is the first attempt still at work."""
    found = meaning(answer(409, {"code": code}), INTENT)
    assert found is (Meaning.REFUSED if code in ("token_used", "name_taken") else Meaning.TRANSIENT)


RUNTIME: list[tuple[dict[str, Any], type | None]] = [
    ({"status": 200, "body": {}}, None),
    ({"status": 201, "body": {}}, None),
    ({"status": 204}, None),
    ({"status": 304}, NotThePlane),
    ({"status": 200, "text": b"<html>"}, NotThePlane),
    ({"status": 401, "body": {"code": "key_expired"}}, KeyRefused),
    ({"status": 401, "text": b"<html>"}, NotThePlane),
    ({"status": 403, "text": b"<html>"}, NotThePlane),
    ({"status": 401}, KeyRefused),
    ({"status": 404, "body": {"code": "unknown_agent"}}, KeyRefused),
    ({"status": 410, "body": {"code": "unknown_agent"}}, KeyRefused),
    ({"status": 404, "body": {"code": "no_deployment"}}, RequestRefused),
    ({"status": 404, "text": b"<html>"}, NotThePlane),
    ({"status": 403, "body": {"code": "scope_missing"}}, RequestRefused),
    ({"status": 400, "body": {}}, RequestRefused),
    ({"status": 409, "body": {}}, RequestRefused),
    ({"status": 418, "body": {}}, RequestRefused),
    ({"status": 451, "body": {}}, RequestRefused),
    ({"status": 407, "text": b"x"}, NotThePlane),
    ({"status": 408, "body": {}}, TryAgain),
    ({"status": 425, "body": {}}, TryAgain),
    ({"status": 429, "body": {}, "retry_after": 9.0}, TryAgain),
    ({"status": 429, "text": b"slow down"}, TryAgain),
    ({"status": 500, "body": {}}, TryAgain),
    ({"status": 503, "text": b"<html>"}, TryAgain),
    ({"status": 599}, TryAgain),
    ({"status": 302}, NotThePlane),
    ({"status": 301, "text": b"x"}, NotThePlane),
]


@pytest.mark.parametrize(("given_", "error"), RUNTIME, ids=str)
def test_every_runtime_answer_has_the_meaning_of_contract_2_6(
    given_: dict[str, Any], error: type | None
) -> None:
    """Success, try again, key refused, request refused; the plane's Retry-After is kept."""
    found = answer(**given_)
    if error is None:
        check(found, doing="heartbeat")
        return
    with pytest.raises(error) as caught:
        check(found, doing="heartbeat")
    assert "heartbeat" in str(caught.value) and type(caught.value) is error
    if isinstance(caught.value, TryAgain):
        assert caught.value.retry_after == given_.get("retry_after")
