"""The answer table of contract 2.6, row by row for every request with the runtime key, against the
plane over TLS.

Each row is one way in which an answer can be bad, or good in an unexpected way; each request meets
each of them, in the loop that makes it. Whatever it was, the loop says what `loop` is to know of
it, and the next attempt works with the same identity.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from firstboot.api import client as requests_of_contract_2
from firstboot.api.answers import KeyRefused, NotThePlane, RequestRefused
from firstboot.api.stream import NoAnswer
from firstboot.api.transport import Transport, Unreachable
from firstboot.base.errors import TryAgain
from tests.integration.loops import Agent, raised

JSON = "application/json"
REQUESTS = ("heartbeat", "latest", "bundle", "status", "signing-keys", "artifacts")
CODES_OF_401 = (
    "credential_missing", "key_unknown", "key_expired", "key_revoked", "key_of_another_agent", "wrong_credential"
)  # fmt: skip
PATIENCE_S = 0.6  # instead of 60 s, where a row is about an answer that does not end


def problem(status: int, code: str = "x", **headers: str) -> tuple[str, dict[str, Any]]:
    return "problem", {
        "status": status,
        "code": code,
        "headers": {k.replace("_", "-"): v for k, v in headers.items()},
    }


def bare(status: int, body: str = "", content_type: str = JSON) -> tuple[str, dict[str, Any]]:
    return "status", {"status": status, "body": body, "content_type": content_type if body else ""}


@dataclasses.dataclass(frozen=True)
class Row:
    """`error` is what the loop raises, None for nothing; `but` names the requests for which it is
    something else.
    """

    name: str
    fault: tuple[str, dict[str, Any]]
    error: type | None
    retry_after: float | None = None
    but: dict[str, type | None] = dataclasses.field(default_factory=dict)


DROPPED = {"status": None}  # a report that the plane refuses for good is dropped, and said
FINAL = {**DROPPED, "artifacts": None}  # so is an artifact put into quarantine

ROWS: list[Row] = [
    Row(
        "200 with members that nobody knows",
        bare(200, '{"x_unknown": [1]}'),
        None,
        but={"bundle": TryAgain, "signing-keys": TryAgain, "artifacts": TryAgain},
    ),
    Row(
        "202",
        bare(202, "{}"),
        None,
        but=dict.fromkeys(("latest", "bundle", "signing-keys", "artifacts"), TryAgain),
    ),
    Row(
        "204",
        bare(204),
        None,
        but={"bundle": TryAgain, "signing-keys": TryAgain, "artifacts": TryAgain},
    ),
    Row("304", bare(304), NotThePlane),
    Row(
        "200 with nothing",
        bare(200),
        None,
        but={
            "latest": TryAgain,
            "bundle": TryAgain,
            "signing-keys": TryAgain,
            "artifacts": TryAgain,
        },
    ),
    *[
        Row(f"{status}", problem(status), RequestRefused, but=DROPPED)
        for status in (400, 404, 409, 410, 418, 421, 431, 451)
    ],
    *[Row(f"{status}", problem(status), RequestRefused, but=FINAL) for status in (413, 415, 422)],
    Row("407 of the plane", problem(407), RequestRefused, but=DROPPED),
    *[Row(f"401 {code}", problem(401, code), KeyRefused) for code in CODES_OF_401],
    Row("401 with nothing", bare(401), KeyRefused),
    Row("403 scope", problem(403, "scope_missing"), RequestRefused),
    Row("403 with nothing", bare(403), RequestRefused),
    Row("404 unknown agent", problem(404, "unknown_agent"), KeyRefused),
    Row("410 unknown agent", problem(410, "unknown_agent"), KeyRefused),
    *[
        Row(f"{status}", problem(status, Retry_After="7"), TryAgain, 7.0)
        for status in (408, 425, 500, 502, 503, 504, 599)
    ],
    Row("429 in seconds", problem(429, Retry_After="120"), TryAgain, 120.0),
    Row("429 as a date", problem(429, Retry_After="DATE"), TryAgain, 90.0),
    Row("429 absent", problem(429), TryAgain),
    Row("429 negative", problem(429, Retry_After="-5"), TryAgain),
    Row("429 absurd", problem(429, Retry_After="999999999"), TryAgain),
    Row("429 garbage", problem(429, Retry_After="soon"), TryAgain),
    Row("429 with a page", bare(429, "<html>slow down", "text/html"), TryAgain),
    *[
        Row(f"a page with {status}", ("html", {"status": status}), NotThePlane)
        for status in (200, 401, 403, 404, 407)
    ],
    # About this artifact alone, which waits; the loop goes on.
    Row("a page with 413", ("html", {"status": 413}), NotThePlane, but={"artifacts": None}),
    *[
        Row(f"a page with {status}", ("html", {"status": status}), TryAgain)
        for status in (500, 502, 503)
    ],
    Row("a text that is no JSON", bare(200, "ok", "text/plain"), NotThePlane),
    Row("JSON that is cut", bare(200, '{"a": ', JSON), NotThePlane),
    Row("JSON with a member twice", bare(200, '{"a": 1, "a": 2}', JSON), NotThePlane),
    Row("JSON of another kind", bare(200, "[" * 5000, JSON), NotThePlane),
    *[
        Row(
            f"{status} to somewhere",
            ("redirect", {"status": status}),
            NotThePlane,
            but={"bundle": Unreachable},
        )
        for status in (301, 302, 303, 307, 308)
    ],
    Row(
        "a captive portal's 302",
        ("redirect", {"location": "http://portal.invalid/"}),
        NotThePlane,
        but={"bundle": TryAgain},
    ),
    Row("300", bare(300, "{}"), NotThePlane),
    Row("no HTTP", ("garbage", {}), NoAnswer),
    Row("cut in the first line", ("cut", {"at": 10}), NoAnswer),
    # A head that ends early is a head to Python: where the status alone is the answer, it was
    # given.
    Row("cut in the head", ("cut", {"at": 20}), TryAgain, but={"heartbeat": None, "status": None}),
    Row("shorter than announced", ("wrong_length", {}), NoAnswer),
    Row("too large", ("huge", {"size": 3_000_000}), NoAnswer),
    Row("too large, not announced", ("huge", {"size": 3_000_000, "declared": False}), NoAnswer),
    Row("a byte at a time", ("drip", {"count": 1, "every_s": 0.1}), NoAnswer),
    Row("nothing at all", ("hang", {}), NoAnswer),
    Row("closed", ("drop", {}), NoAnswer),
    Row("reset", ("drop", {"reset": True}), NoAnswer),
    *[
        Row(f"TLS {mode}", ("tls", {"mode": mode}), Unreachable)
        for mode in ("expired", "not_yet_valid", "wrong_name", "unknown_ca", "handshake_failure")
    ],
]


@pytest.fixture
def agent(control_plane: Any, tmp_path: Path) -> Iterator[Agent]:
    made = Agent(control_plane, tmp_path / "root")
    yield made
    for api in made.apis:
        api.rest()


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time-outs of a row that is about time, instead of a minute."""
    patient = Transport.stream

    def stream(self: Transport, *arguments: Any, **keywords: Any) -> Any:
        return patient(self, *arguments, **{**keywords, "deadline_s": PATIENCE_S})

    monkeypatch.setattr(Transport, "stream", stream)
    monkeypatch.setattr(requests_of_contract_2, "DEADLINE_S", PATIENCE_S)


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_answer_to_every_request(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, row: Row, request_: str
) -> None:
    """The loop raises what the table says, with the plane's pause; then the same key works."""
    run_once = agent.prepare(request_)
    kind, options = row.fault
    options = json.loads(
        json.dumps(options).replace("DATE", formatdate(time.time() + 90, usegmt=True))
    )
    if kind in ("hang", "drip"):
        impatient(monkeypatch)
    agent.plane.fault(request_, kind, times=None, **options)
    error = raised(run_once)
    expected = row.but.get(request_, row.error)
    assert type(error) is (expected or type(None)), repr(error)
    if row.retry_after is not None and isinstance(error, TryAgain):
        assert error.retry_after is not None and abs(error.retry_after - row.retry_after) <= 2
    elif isinstance(error, TryAgain):
        assert error.retry_after is None
    monkeypatch.undo()
    agent.plane.clear_faults()
    assert raised(run_once) is None


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    "where", ["https://127.0.0.1:1", "https://plane.invalid"], ids=["refused", "no such name"]
)
def test_a_plane_that_is_not_there(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, request_: str, where: str
) -> None:
    """No connection, no name: the request certainly did not arrive, and nothing is lost by it."""
    run_once, there = agent.prepare(request_), Transport.stream

    def gone(self: Transport, method: str, url: str, **keywords: Any) -> Any:
        path = url[len(agent.plane.base_url) :]
        return there(
            self,
            method,
            (where if f"/{request_}" in path else agent.plane.base_url) + path,
            **keywords,
        )

    monkeypatch.setattr(Transport, "stream", gone)
    error = raised(run_once)
    assert type(error) is Unreachable and not error.maybe_arrived
    monkeypatch.undo()
    assert raised(run_once) is None


def test_a_report_that_is_refused_for_good_is_said(agent: Agent) -> None:
    """Dropped, so that the next ones go on; a problem until one is accepted."""
    run_once = agent.prepare("status")
    agent.plane.fault("status", "problem", status=422, code="malformed")
    run_once()
    (found,) = agent.reports.problems()
    assert found.code == "report_dropped" and "422" in found.detail and found.hint
    assert json.loads((agent.layout.agent / "reports.json").read_text())["delivered"] == 1
    assert not agent.plane.reports()
    document = json.loads((agent.layout.outcomes / "00000001.json").read_text())
    document["report"]["report_id"] = str(uuid.uuid4())
    (agent.layout.outcomes / "00000002.json").write_text(json.dumps(document))
    run_once()
    assert len(agent.plane.reports()) == 1 and agent.reports.problems() == []
