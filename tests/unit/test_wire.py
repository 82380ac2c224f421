"""What a lying server says becomes a value or a ValueError, nothing else; what we write is what the
contract shows.
"""

from __future__ import annotations

import json
import math
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.api import messages
from firstboot.base import documents

NOW = 1_700_000_000.0
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
NAMES = st.sampled_from(
    [
        *(
            "agent_id",
            "id",
            "api_key",
            "runtime_api_key",
            "agent_api_key",
            "name",
            "scopes",
            "expires_at",
            "signing_keys",
        ),
        *("heartbeat_interval_s", "code", "title", "detail", "agents", "next", "last_heartbeat_at"),
    ]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=20,
)
PARSERS = [
    messages.Problem.parse,
    messages.EnrollmentReply.parse,
    messages.HeartbeatReply.parse,
    messages.agent_page,
    messages.interval,
]
ID, KEY = "agt_1", "brk_0123456789"


@pytest.mark.parametrize("parse", PARSERS)
@given(value=ANYTHING)
def test_any_json_is_a_value_or_a_value_error(parse: Any, value: Any) -> None:
    """No shape of JSON gets another exception out of a parser; what is said of it is one short
    printable line.
    """
    try:
        parsed = parse(value)
    except ValueError:
        return
    if isinstance(parsed, messages.Problem):
        assert_one_line(parsed.said())


def assert_one_line(said: str) -> None:
    assert 0 < len(said) <= messages.LONGEST_SAID
    assert said.isprintable() and len(said.splitlines()) == 1
    said.encode("utf-8")


@given(body=st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_json_or_a_value_error(body: bytes) -> None:
    """Bytes from outside never get another exception out of the loader."""
    try:
        documents.load(body)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"NaN",
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b"{}{}",
        b"{'a': 1}",
        b"\xff",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"9" * 100_000,
        b"9" * 4000,
        b'{"a":}',
        b'"\xed\xa0\x80"',
        b"1e400",
        b'{"a": -1e400}',
        b'{"a": 1, "a": 2}',
        b'[{"b": {"a": 1, "\\u0061": 1}}]',
        b"<html>",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    """Constants that JSON does not have, trailing text, endless nesting, endless numbers, a member
    twice.
    """
    with pytest.raises(ValueError, match="not JSON"):
        documents.load(body)


# -- enrollment


@pytest.mark.parametrize("id_name", ["agent_id", "id"])
@pytest.mark.parametrize("key_name", ["api_key", "runtime_api_key", "agent_api_key"])
def test_enrollment_is_read_by_every_alias(id_name: str, key_name: str) -> None:
    """The aliases of contract 2.1; what is unknown is ignored; what is optional may be missing or
    malformed.
    """
    reply = messages.EnrollmentReply.parse(
        {id_name: ID, key_name: KEY, "unknown": [1], "scopes": ["a", 1], "signing_keys": 7}
    )
    assert (reply.agent_id, reply.api_key.reveal(), reply.scopes) == (ID, KEY, ("a",))
    assert (reply.name, reply.expires_at, reply.heartbeat_interval_s) == (None, None, None)
    assert reply.signing_keys == ()
    assert KEY not in repr(reply)


def test_the_key_sets_of_an_enrollment_reply_are_kept_as_they_came() -> None:
    """Envelopes that nobody has judged yet; a malformed one ends the list and is no failure of the
    enrollment.
    """
    envelope = {
        "payload": "e30=",
        "payloadType": "t",
        "signatures": [{"keyid": "k", "sig": "AAAA"}],
    }
    reply = messages.EnrollmentReply.parse(
        {"id": ID, "api_key": KEY, "signing_keys": [envelope, 7, envelope]}
    )
    assert reply.signing_keys == (envelope,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"agent_id": "../x"},
        {"agent_id": ID + "\n"},
        {"agent_id": "a" * 129},
        {"agent_id": "é"},
        {"agent_id": 7},
        {"agent_id": None},
        {"agent_id": ""},
        {"agent_id": "a/b"},
        {"api_key": "short"},
        {"api_key": KEY + "\r\nX: y"},
        {"api_key": KEY + " "},
        {"api_key": KEY + "é"},
        {"api_key": "k" * 4097},
        {"api_key": [KEY]},
    ],
    ids=str,
)
def test_a_malformed_id_or_key_is_named_and_not_repeated(wrong: dict[str, Any]) -> None:
    """Such a reply is no enrollment; the sentence names the member and never holds the key."""
    with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
        messages.EnrollmentReply.parse({"agent_id": ID, "api_key": KEY, **wrong})
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        ([], "object"),
        (None, "object"),
        ({}, "agent_id"),
        ({"agent_id": ID}, "api_key"),
        ({"api_key": KEY}, "agent_id"),
    ],
)
def test_what_is_missing_is_named(value: Any, missing: str) -> None:
    """For the sentence that ends an enrollment which never becomes whole."""
    with pytest.raises(ValueError, match=missing):
        messages.EnrollmentReply.parse(value)


def test_what_enrollment_sends() -> None:
    """A configured name, else the host name, else an empty object."""
    assert messages.enrollment_body(name="edge", hostname="h") == {"name": "edge"}
    assert messages.enrollment_body(hostname="h") == {"hostname": "h"}
    assert messages.enrollment_body() == {}


# -- intervals


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (30, 30.0),
        (0, 5.0),
        (-1e308, 5.0),
        (10**400, 3600.0),
        (-(10**400), 5.0),
        (math.inf, 3600.0),
        (-math.inf, 5.0),
        (math.nan, None),
        (True, None),
        (False, None),
        ("30", None),
        (None, None),
        ([30], None),
    ],
    ids=lambda value: str(value)[:8],
)
def test_an_interval_is_clamped(value: Any, expected: Any) -> None:
    """5 to 3600 seconds whatever the plane says; None for what is no number."""
    assert messages.interval(value) == expected
    assert (
        messages.HeartbeatReply.parse({"heartbeat_interval_s": value}).heartbeat_interval_s
        == expected
    )


@given(st.integers() | st.floats(allow_nan=False))
def test_every_number_is_an_interval_within_bounds(value: float) -> None:
    """No number escapes the clamp."""
    found = messages.interval(value)
    assert type(found) is float and 5.0 <= found <= 3600.0


# -- problems


@given(st.text(min_size=1), st.text(), st.text())
def test_what_the_plane_said_is_one_short_printable_line(
    code: str, title: str, detail: str
) -> None:
    """No control character, line break, lone surrogate or length of a server reaches a journal or
    terminal.
    """
    problem = messages.Problem.parse({"code": code, "title": title, "detail": detail})
    assert problem is not None
    assert_one_line(problem.said())


def test_a_problem_says_code_and_detail_else_title_else_nothing() -> None:
    """Detail before title; something is always said."""
    assert (
        messages.Problem("name_taken", "Conflict", "held\x1b[2J\nby x").said()
        == "name_taken: held [2J by x"
    )
    assert messages.Problem("name_taken", "Conflict", None).said() == "name_taken: Conflict"
    assert messages.Problem(None, None, None).said() == "no reason given"
    assert messages.Problem(None, None, "\n\x00\u2028").said() == "no reason given"
    assert messages.Problem.parse({"code": 7, "title": ["x"], "detail": {}}) == messages.Problem(
        None, None, None
    )
    assert messages.Problem.parse([]) is None


# -- Retry-After


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("3600", 3600.0),
        ("3601", None),
        ("-1", None),
        ("+5", None),
        ("2.5", 2.5),
        ("2, 2", 2.0),
        ("5,0.5, 30", 30.0),
        ("2,", None),
        ("2, soon", None),
        (".5", None),
        ("1e3", None),
        ("1_0", None),
        ("9" * 5000, None),
        ("٣", None),
        ("²", None),
        ("", None),
        ("soon", None),
        ("Thu, 99 Foo 2023 99:99:99 GMT", None),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), None),
        (formatdate(NOW + 7200, usegmt=True), None),
    ],
    ids=lambda value: str(value)[:32],
)
def test_retry_after(header: Any, expected: Any) -> None:
    """Seconds or a date, up to an hour; all else is as if nothing had been asked."""
    assert messages.retry_after(header, now=NOW) == expected


def test_a_retry_after_date_is_gmt_in_every_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The obsolete forms without a zone are GMT by definition, not the host's local time."""
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        for form in (
            "%a, %d %b %Y %H:%M:%S GMT",
            "%a %b %d %H:%M:%S %Y",
            "%a, %d %b %Y %H:%M:%S -0000",
        ):
            assert messages.retry_after(time.strftime(form, time.gmtime(NOW + 60)), now=NOW) == 60.0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text() | st.from_regex(r"\w{3}, \d\d \w{3} \d+ \d+:\d+:\d+ [+-]?\w+"), st.floats(0, 4e9))
def test_any_retry_after_is_bounded(header: str, now: float) -> None:
    """Whatever the header: nothing raised, nothing below zero or over an hour."""
    found = messages.retry_after(header, now=now)
    assert found is None or 0 <= found <= 3600


# -- the agent list


def test_an_agent_page_keeps_what_is_well_formed() -> None:
    """Rows without an id are skipped; the cursor is a text or nothing."""
    rows = [{"agent_id": ID, "name": 7, "last_heartbeat_at": "x"}, {"agent_id": 7}, "row", {}]
    page, following = messages.agent_page({"agents": rows, "next": "c"})
    assert page == (messages.ListedAgent(ID, None, "x"),) and following == "c"
    assert messages.agent_page({"agents": [], "next": 7}) == ((), None)
    with pytest.raises(ValueError, match="not an agent list"):
        messages.agent_page({"agents": {}})


def test_a_heartbeat_is_written_as_the_contract_shows() -> None:
    """Every member of contract 2.2, and nothing else."""
    beat = messages.Heartbeat(
        "ok", "1.0", "b", 3, 60, "2026-01-01T00:00:00Z", (("code", "detail"),), 1, 2, 4
    )
    assert json.loads(beat.to_bytes()) == {
        "status": "ok",
        "agent_version": "1.0",
        "boot_id": "b",
        "sequence": 3,
        "uptime_s": 60,
        "sent_at": "2026-01-01T00:00:00Z",
        "deployment": None,
        "signing_keys_version": 4,
        "spool": {"pending": 1, "quarantined": 2},
        "problems": [{"code": "code", "detail": "detail"}],
    }


def test_what_a_list_says_is_fit_for_a_terminal_and_a_url() -> None:
    """A name with control characters or half a surrogate pair reads as none; such a cursor is never
    asked for.
    """
    rows = [
        {"agent_id": ID, "name": name} for name in ("\x1b[2J", "\ud800", "é", "n" * 201, "edge 1")
    ]
    page, _ = messages.agent_page({"agents": rows})
    assert [row.name for row in page] == [None, None, None, None, "edge 1"]
    for cursor in ("\ud800", "a\udfffb", "c" * 2049):
        with pytest.raises(ValueError, match="next page"):
            messages.agent_page({"agents": [], "next": cursor})
