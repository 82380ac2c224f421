"""Messages from a plane that may lie, and what our requests look like; proxies; ids before they reach a URL."""

from __future__ import annotations

import json
from email.utils import formatdate
from typing import Any, Dict, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot import wire
from firstboot.agent.answers import KeyRefused, RequestRefused, check
from firstboot.api import Answer, PlaneApi
from firstboot.errors import Refused, TryAgain
from firstboot.provision.enrollment import Meaning, meaning, refusal
from firstboot.provision.intent import Intent
from firstboot.proxies import proxy_for
from firstboot.secret import Secret
from firstboot.transport import Reply

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
NAMES = st.sampled_from(
    [
        "agent_id",
        "id",
        "api_key",
        "runtime_api_key",
        "name",
        "scopes",
        "expires_at",
        "signing_keys",
        "heartbeat_interval_s",
        "agents",
        "next",
        "code",
        "detail",
        "title",
    ]
)
DOCUMENT = JSON | st.dictionaries(NAMES, JSON)


@given(st.binary(max_size=300))
def test_any_bytes_are_json_or_a_value_error(body: bytes) -> None:
    """Nothing else leaves the parser, whatever a proxy answers."""
    try:
        wire.load(body)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "body", [b"NaN", b'{"a": Infinity}', b"[" * 100_000, b"\xff", b"", b'{"a":}', b'"' + b"\xed\xa0\x80" + b'"']
)
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    """NaN, depth, encodings."""
    with pytest.raises(ValueError):
        wire.load(body)


@given(DOCUMENT)
def test_any_document_is_a_message_or_a_value_error(value: Any) -> None:
    """Every parser takes every document."""
    for parse in (wire.EnrollmentReply.parse, wire.agent_page):
        try:
            parse(value)
        except ValueError as error:
            assert str(error)
    problem = wire.Problem.parse(value)
    if problem is not None:
        said = problem.said()
        assert said.isprintable() and 0 < len(said) <= wire.LONGEST_SAID
    period = wire.HeartbeatReply.parse(value).heartbeat_interval_s
    assert period is None or 5 <= period <= 3600


@pytest.mark.parametrize(("id_", "key"), [("agent_id", "api_key"), ("id", "runtime_api_key"), ("id", "agent_api_key")])
def test_every_alias_of_the_reply_is_read(id_: str, key: str) -> None:
    """The names that the guide does not settle."""
    reply = wire.EnrollmentReply.parse(
        {id_: "agt_1", key: "k" * 40, "scopes": ["a", 1], "later": {}, "heartbeat_interval_s": 1}
    )
    assert (reply.agent_id, reply.api_key, reply.scopes, reply.heartbeat_interval_s) == ("agt_1", Secret("k" * 40), ("a",), 5.0)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"agent_id": "a"},
        {"api_key": "k" * 40},
        {"agent_id": "a/b", "api_key": "k" * 40},
        {"agent_id": "../x", "api_key": "k" * 40},
        {"agent_id": "a\n", "api_key": "k" * 40},
        {"agent_id": "a" * 129, "api_key": "k" * 40},
        {"agent_id": "a", "api_key": "k\n" * 20},
        {"agent_id": "a", "api_key": "k"},
        {"agent_id": 7, "api_key": "k" * 40},
        {"agent_id": "a", "api_key": ["k"]},
    ],
)
def test_a_reply_without_a_well_formed_id_or_key_names_what_is_missing(value: Any) -> None:
    """An id that could climb out of a path never gets in; the message never quotes a key."""
    with pytest.raises(ValueError) as caught:
        wire.EnrollmentReply.parse(value)
    assert "kkkk" not in str(caught.value)


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("3600", 3600),
        ("3601", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 400, None),
        ("٣", None),
        ("²", None),
        (formatdate(NOW + 60, usegmt=True), 60),
        (formatdate(NOW - 60, usegmt=True), None),
        (formatdate(NOW + 99999, usegmt=True), None),
        ("Fri, 99 Foo 2026", None),
    ],
)
def test_retry_after_is_believed_within_reason(header: Optional[str], seconds: Optional[float]) -> None:
    """Seconds or a date, up to an hour; all else is as if it were absent."""
    found = wire.retry_after(header, now=NOW)
    assert found == seconds or (found is not None and seconds is not None and abs(found - seconds) < 2)


@pytest.mark.parametrize("value", [True, None, "30", [], float("nan")])
def test_a_period_that_is_no_number_is_none(value: Any) -> None:
    """Booleans and texts are not periods; infinities are clamped."""
    assert wire.interval(value) is None
    assert wire.interval(float("inf")) == 3600 and wire.interval(-(10**400)) == 5


# -- the answer tables


def answer(status: int, body: Any = None, *, text: bytes = b"", **more: Any) -> Answer:
    is_json = body is not None
    problem = wire.Problem.parse(body) if status >= 400 else None
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
LOST = Intent(key="k", body='{"name": "n"}', name="n", token_mark="m", token_length=20, host={}, unanswered=True)
HOSTNAME = Intent(key="k", body='{"hostname": "n"}', name="n", token_mark="m", token_length=20, host={})


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_the_meaning_of_contract_2_1(status: int) -> None:
    """The table, row by row, for JSON and for a page of somebody else's."""
    found = meaning(answer(status, {"code": "x"}), INTENT)
    if status in (200, 201):
        assert found is Meaning.MALFORMED
    elif status in (400, 401, 403, 404, 410, 413, 422):
        assert found is Meaning.REFUSED
        assert refusal(answer(status, {"code": "x"}), INTENT, lost=False).hint
    else:
        assert found is Meaning.TRANSIENT
    assert meaning(answer(status, text=b"<html>"), INTENT) is Meaning.TRANSIENT
    lost = meaning(answer(status, {"code": "token_used"}), LOST)
    assert (lost is Meaning.PROBABLY_SPENT) == (status in (401, 409, 410))
    assert (meaning(answer(status, {"code": "x"}), HOSTNAME) is Meaning.ASK_WITHOUT_NAME) == (status in (400, 422))


@pytest.mark.parametrize("code", ["token_used", "name_taken", "in_progress", None])
def test_a_conflict_is_a_refusal_only_with_its_codes(code: Optional[str]) -> None:
    """Any other 409 is the first attempt still at work."""
    found = meaning(answer(409, {"code": code}), INTENT)
    assert found is (Meaning.REFUSED if code in ("token_used", "name_taken") else Meaning.TRANSIENT)


RUNTIME: List[tuple[Dict[str, Any], Optional[type]]] = [
    ({"status": 200, "body": {}}, None),
    ({"status": 201, "body": {}}, None),
    ({"status": 204}, None),
    ({"status": 304}, None),
    ({"status": 200, "text": b"<html>"}, TryAgain),
    ({"status": 401, "body": {"code": "key_expired"}}, KeyRefused),
    ({"status": 401}, KeyRefused),
    ({"status": 404, "body": {"code": "unknown_agent"}}, KeyRefused),
    ({"status": 410, "body": {"code": "unknown_agent"}}, KeyRefused),
    ({"status": 404, "body": {"code": "no_deployment"}}, RequestRefused),
    ({"status": 404, "text": b"<html>"}, TryAgain),
    ({"status": 403, "body": {"code": "scope_missing"}}, RequestRefused),
    ({"status": 400, "body": {}}, RequestRefused),
    ({"status": 409, "body": {}}, RequestRefused),
    ({"status": 418, "body": {}}, RequestRefused),
    ({"status": 451, "body": {}}, RequestRefused),
    ({"status": 407, "text": b"x"}, TryAgain),
    ({"status": 408, "body": {}}, TryAgain),
    ({"status": 425, "body": {}}, TryAgain),
    ({"status": 429, "body": {}, "retry_after": 9.0}, TryAgain),
    ({"status": 429, "text": b"slow down"}, TryAgain),
    ({"status": 500, "body": {}}, TryAgain),
    ({"status": 503, "text": b"<html>"}, TryAgain),
    ({"status": 599}, TryAgain),
    ({"status": 302}, TryAgain),
    ({"status": 301, "text": b"x"}, TryAgain),
]


@pytest.mark.parametrize(("given_", "error"), RUNTIME, ids=str)
def test_every_runtime_answer_has_the_meaning_of_contract_2_6(given_: Dict[str, Any], error: Optional[type]) -> None:
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


# -- paths and proxies


class Recorder:
    """A transport that answers 200 with `body` and keeps what was asked."""

    def __init__(self, body: bytes = b'{"agents": [], "next": null}') -> None:
        self.asked: List[str] = []
        self._body = body

    def request(self, method: str, url: str, **keywords: Any) -> Reply:
        self.asked.append(f"{method} {url}")
        return Reply(200, {"content-type": "application/json"}, self._body, None)

    def close(self) -> None:
        pass


ENVIRONMENT = {"org_id": "o", "project_id": "p", "environment_id": "e"}


def test_the_paths_are_those_of_the_contract() -> None:
    """Section 2, requests 1, 2, 3 and 9."""
    recorder = Recorder()
    api = PlaneApi("https://plane", recorder)  # type: ignore[arg-type]
    beat = wire.Heartbeat(status="ok", agent_version="1", boot_id="b", sequence=1, uptime_s=1, sent_at="t")
    api.enroll(Secret("t" * 20), idempotency_key="k", body=b"{}", **ENVIRONMENT)
    api.list_agents(Secret("t" * 20), **ENVIRONMENT)
    api.heartbeat("agt_1", Secret("k" * 20), beat)
    api.health()
    agents = "https://plane/api/v1/orgs/o/projects/p/environments/e/agents"
    assert recorder.asked == [
        f"POST {agents}",
        f"GET {agents}",
        "POST https://plane/api/v1/agents/agt_1/heartbeat",
        "GET https://plane/healthz",
    ]
    assert set(json.loads(beat.to_bytes())) == {
        "status",
        "agent_version",
        "boot_id",
        "sequence",
        "uptime_s",
        "sent_at",
        "deployment",
        "signing_keys_version",
        "spool",
        "problems",
    }


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a b", "a\n", "%2e", "é", "a" * 129])
def test_an_id_of_another_shape_never_reaches_a_url(bad: str) -> None:
    """Refused before anything is sent."""
    recorder = Recorder()
    with pytest.raises(ValueError):
        PlaneApi("https://plane", recorder).list_agents(Secret("t" * 20), **{**ENVIRONMENT, "org_id": bad})  # type: ignore[arg-type]
    assert not recorder.asked


def test_an_endless_list_ends() -> None:
    """A plane that always names a next page does not hold us."""
    recorder = Recorder(b'{"agents": [{"agent_id": "a"}], "next": "again"}')
    try:
        PlaneApi("https://plane", recorder).list_agents(Secret("t" * 20), **ENVIRONMENT)  # type: ignore[arg-type]
    except (TryAgain, Refused):
        pass
    assert len(recorder.asked) <= 1000


PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("api.example", "", False),
        ("api.example", "*", True),
        ("api.example", "example", True),
        ("api.example", ".example", True),
        ("api.example", "*.example", True),
        ("example", ".example", True),
        ("badexample", "example", False),
        ("API.Example", "api.EXAMPLE", True),
        ("api.example", "other,api.example:443", True),
        ("api.example", "api.example:8443", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("2001:db8::1", "2001:db8::/32", True),
        ("2001:db8::1", "[2001:db8::1]", True),
        ("169.254.169.254", "", True),
        ("fe80::1", "", True),
        ("fd00:ec2::254", "", True),
        ("127.0.0.1", "", False),
        ("api.example", ",, ,", False),
    ],
)
def test_no_proxy_in_all_its_forms(host: str, no_proxy: str, direct: bool) -> None:
    """Names, suffixes, addresses, nets, ports; metadata addresses never see a proxy."""
    chosen = proxy_for(host, 443, proxy=None, no_proxy=(), environ={"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy})
    assert (chosen is None) == direct
    settings = proxy_for(host, 443, proxy=Secret(PROXY), no_proxy=no_proxy.split(","), environ={})
    assert (settings is None) == direct
