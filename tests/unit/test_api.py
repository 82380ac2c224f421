"""The requests of contract 2 as they are sent: paths, headers, ids before they reach a URL, bounded
paging.
"""

from __future__ import annotations

import json
import socket
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.api import client as requests_of_contract_2
from firstboot.api import connection, messages, transport
from firstboot.api.client import PlaneApi
from firstboot.api.connection import Unreachable
from firstboot.api.stream import NoAnswer
from firstboot.api.transport import Reply, Transport
from firstboot.base.clock import Clock
from firstboot.base.documents import IDENTIFIER
from firstboot.base.errors import Refused, TryAgain
from firstboot.base.secret import Secret
from tests.integration.host import on_this_machine


class Recorder:
    """A transport that answers 200 with `body` and keeps what was asked."""

    def __init__(self, *bodies: bytes, status: int = 200) -> None:
        self.asked: list[str] = []
        self.sent: list[Any] = []
        self._bodies, self._status = bodies or (b'{"agents": [], "next": null}',), status

    def request(self, method: str, url: str, **keywords: Any) -> Reply:
        self.asked.append(f"{method} {url}")
        self.sent.append(keywords)
        body = self._bodies[min(len(self.asked), len(self._bodies)) - 1]
        return Reply(self._status, {"content-type": "application/json"}, body, None)

    def close(self) -> None:
        pass


ENVIRONMENT = {"org_id": "o", "project_id": "p", "environment_id": "e"}


def test_the_paths_are_those_of_the_contract() -> None:
    """Section 2, requests 1, 2, 3 and 9."""
    recorder = Recorder()
    api = PlaneApi("https://plane", recorder)  # type: ignore[arg-type]
    beat = messages.Heartbeat(
        status="ok", agent_version="1", boot_id="b", sequence=1, uptime_s=1, sent_at="t"
    )
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
    assert_refused(bad)


@given(st.text().filter(lambda text: not IDENTIFIER.match(text)))
def test_no_text_of_another_shape_reaches_a_url(bad: str) -> None:
    """Whatever it is, in whichever place of whichever path."""
    assert_refused(bad)


def assert_refused(bad: str) -> None:
    recorder = Recorder()
    api = PlaneApi("https://plane", recorder)  # type: ignore[arg-type]
    for place in ENVIRONMENT:
        with pytest.raises(ValueError, match="not an id"):
            api.list_agents(Secret("t" * 20), **{**ENVIRONMENT, place: bad})
        with pytest.raises(ValueError, match="not an id"):
            api.enroll(
                Secret("t" * 20), idempotency_key="k", body=b"{}", **{**ENVIRONMENT, place: bad}
            )
    with pytest.raises(ValueError, match="not an id"):
        api.heartbeat(bad, Secret("k" * 20), messages.Heartbeat("ok", "1", "b", 1, 1, "t"))
    assert not recorder.asked


def test_each_request_carries_its_own_credential_and_headers() -> None:
    """The token and the idempotency key in request 1 only, the runtime key in request 3, none in
    request 9.
    """
    recorder = Recorder(b"{}")
    api = PlaneApi("https://plane", recorder)  # type: ignore[arg-type]
    api.enroll(Secret("token" * 4), idempotency_key="k-1", body=b'{"name": "n"}', **ENVIRONMENT)
    api.heartbeat("agt_1", Secret("runtime" * 4), messages.Heartbeat("ok", "1", "b", 1, 1, "t"))
    api.health()
    enroll, beat, health = recorder.sent
    assert enroll["bearer"] == Secret("token" * 4) and enroll["body"] == b'{"name": "n"}'
    assert enroll["headers"] == {"Idempotency-Key": "k-1", "Content-Type": "application/json"}
    assert beat["bearer"] == Secret("runtime" * 4) and beat["headers"] == {
        "Content-Type": "application/json"
    }
    assert (health["bearer"], health["body"], health["headers"]) == (None, None, {})


def test_a_list_of_several_pages_is_read_to_its_end() -> None:
    """The cursor is a query value, whatever characters it holds."""
    recorder = Recorder(
        b'{"agents": [{"agent_id": "a"}], "next": "p&2=/#\\n"}', b'{"agents": [{"agent_id": "b"}]}'
    )
    rows = PlaneApi("https://plane", recorder).list_agents(Secret("t" * 20), **ENVIRONMENT)  # type: ignore[arg-type]
    assert [row.agent_id for row in rows] == ["a", "b"]
    assert recorder.asked[1].endswith("/agents?next=p%262%3D%2F%23%0A")


def test_an_endless_list_ends_and_is_not_taken_for_a_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plane that always names a next page does not hold us, and what is missing is not called
    absent.
    """
    monkeypatch.setattr(requests_of_contract_2, "LONGEST_LISTING_PAGES", 5)
    recorder = Recorder(b'{"agents": [{"agent_id": "a"}], "next": "again"}')
    with pytest.raises(TryAgain, match="does not end"):
        PlaneApi("https://plane", recorder).list_agents(Secret("t" * 20), **ENVIRONMENT)  # type: ignore[arg-type]
    assert len(recorder.asked) == 5


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, Refused),
        (403, Refused),
        (302, TryAgain),
        (404, TryAgain),
        (500, TryAgain),
        (200, TryAgain),
    ],
)
def test_a_list_that_cannot_be_had_is_an_error(status: int, error: type) -> None:
    """Never an empty list."""
    recorder = Recorder(b'{"agents": []}' if status != 200 else b"<html>", status=status)
    with pytest.raises(error, match=str(status)):
        PlaneApi("https://plane", recorder).list_agents(Secret("t" * 20), **ENVIRONMENT)  # type: ignore[arg-type]


@given(st.integers(100, 599), st.binary(max_size=100))
def test_any_answer_is_parsed_as_far_as_it_goes(status: int, body: bytes) -> None:
    """No status with no body raises; a 2xx to enrollment that is no enrollment says why."""
    api = PlaneApi("https://plane", Recorder(body, status=status))  # type: ignore[arg-type]
    api.health()
    api.heartbeat("agt_1", Secret("k" * 20), messages.Heartbeat("ok", "1", "b", 1, 1, "t"))
    found = api.enroll(Secret("t" * 20), idempotency_key="k", body=b"{}", **ENVIRONMENT)
    assert found.enrolled is None and found.is_empty == (body == b"")
    assert (found.complaint is not None) == (found.is_json and status in (200, 201))


class Answering(Recorder):
    """A transport that gives one reply to everything."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    def request(self, method: str, url: str, **keywords: Any) -> Reply:
        super().request(method, url, **keywords)
        return self._reply


class YearsOff(Clock):
    """A host whose clock was never set."""

    def wall(self) -> float:
        return 1000.0


@pytest.mark.parametrize(("date", "expected"), [(1_700_000_000.0, 90.0), (None, None)])
def test_a_retry_after_date_is_judged_by_the_planes_own_clock(
    date: float | None, expected: float | None
) -> None:
    """A first boot's clock may be years off; without a Date header it is all there is."""
    reply = Reply(429, {"retry-after": formatdate(1_700_000_090, usegmt=True)}, b"{}", date)
    assert (
        PlaneApi("https://plane", Answering(reply), clock=YearsOff()).health().retry_after
        == expected
    )  # type: ignore[arg-type]


def test_a_portals_page_is_told_from_the_planes_word() -> None:
    """No problem, no JSON, and the media type to say so; the plane's own 403 has its code."""
    portal = Reply(
        403, {"content-type": "text/html; charset=utf-8"}, b"<html>pay here</html>", None
    )
    plane = Reply(
        403, {"content-type": "application/problem+json"}, b'{"code": "scope_missing"}', None
    )
    answers = [PlaneApi("https://plane", Answering(reply)).health() for reply in (portal, plane)]  # type: ignore[arg-type]
    assert [(answer.is_json, answer.media_type) for answer in answers] == [
        (False, "text/html"),
        (True, "application/problem+json"),
    ]
    assert answers[0].problem is None
    assert answers[1].problem is not None and answers[1].problem.code == "scope_missing"


def test_a_cursor_that_no_url_can_carry_is_an_answer_to_try_again() -> None:
    """Half a surrogate pair is a text of JSON, and none of UTF-8: not a crash, and not a
    request.
    """
    recorder = Recorder(b'{"agents": [], "next": "\\ud800"}')
    with pytest.raises(TryAgain, match="agent list"):
        PlaneApi("https://plane", recorder).list_agents(Secret("t" * 20), **ENVIRONMENT)  # type: ignore[arg-type]
    assert len(recorder.asked) == 1


class Hanging(connection._Lookup):
    """A resolver that answers nobody."""

    waits: list[float] = []

    def start(self) -> None:
        pass

    def is_alive(self) -> bool:
        return True

    def join(self, timeout: float | None = None) -> None:
        self.waits.append(timeout or 0.0)


def test_a_long_upload_waits_a_minute_for_the_way_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deadline is for the body, which tells the watchdog that it makes progress."""
    monkeypatch.setattr(connection, "_Lookup", Hanging)
    monkeypatch.setattr(connection.current, "resolver", connection.Resolver())
    with pytest.raises(Unreachable, match="resolved"):
        Transport(environ={}).request("POST", "https://x.example/", body=b"x", deadline_s=4000.0)
    assert max(Hanging.waits) <= 60.0


def test_a_long_upload_waits_a_minute_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever took the body and says nothing, or one byte a second, holds up no watchdog."""
    monkeypatch.setattr(transport, "DEADLINE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url, began = f"http://127.0.0.1:{server.getsockname()[1]}/", time.monotonic()
        with pytest.raises(NoAnswer):
            Transport(environ={}).request("POST", url, body=b"x", deadline_s=4000.0)
    assert time.monotonic() - began < on_this_machine(5.0)
