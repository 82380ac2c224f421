"""The typed reader: a document is checked member by member, and the damaged one is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.base import documents
from firstboot.base.documents import Digest, Identifier, Line, Malformed, Time, lenient
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.secret import Secret


@dataclass(frozen=True)
class Part:
    name: Identifier
    size: int = 0


@dataclass(frozen=True)
class Whole:
    agent_id: Identifier
    at: Optional[Time] = None
    digest: Optional[Digest] = None
    said: Optional[Line] = None
    period: float = 30.0
    again: bool = False
    key: Optional[Secret] = None
    parts: tuple[Part, ...] = ()
    first: Optional[Part] = None
    rest: Optional[Mapping[str, Any]] = None
    hint: Optional[int] = lenient()


GOOD: dict[str, Any] = {
    "v": 1,
    "agent_id": "agt_1",
    "at": "2026-01-01T00:00:00Z",
    "digest": "a" * 64,
    "said": "ok",
    "period": 5,
    "again": True,
    "key": "k" * 20,
    "parts": [{"name": "a", "size": 1}, {"name": "b"}],
    "first": {"name": "c"},
    "rest": {"anything": [1]},
    "hint": 3,
    "unknown": "ignored",
}
ODD = [
    None,
    True,
    7,
    -1,
    1.5,
    10**400,
    float("inf"),
    "",
    "a\r\nb",
    "\ud800",
    "x" * 5000,
    [],
    [[]],
    {},
]


def test_a_document_becomes_a_dataclass() -> None:
    """Members in their types, unknown ones ignored, absent ones at their default."""
    whole = documents.parse(Whole, GOOD)
    assert whole.parts == (Part("a", 1), Part("b"))
    assert isinstance(whole.period, float)
    assert whole.key is not None
    assert whole.key.reveal() == "k" * 20
    assert documents.parse(Whole, {"agent_id": "a"}) == Whole("a")


@pytest.mark.parametrize("member", [name for name in GOOD if name not in ("v", "unknown")])
def test_an_odd_member_is_named_or_taken_as_what_it_may_be(member: str) -> None:
    """Nothing but Malformed, which names the member; a lenient one counts as absent."""
    refused = 0
    for value in ODD:
        try:
            whole = documents.parse(Whole, {**GOOD, member: value})
        except Malformed as error:
            assert str(error).startswith(member)
            refused += 1
        else:
            json.dumps(str(whole), ensure_ascii=False).encode()
    assert (refused == 0) == (member == "hint")


@pytest.mark.parametrize("value", [None, 1, "text", [], {}])
def test_what_is_no_such_document_is_malformed(value: object) -> None:
    """Also one without a member that has no default."""
    with pytest.raises(Malformed):
        documents.parse(Whole, value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_json_value_makes_the_reader_fall(value: Any) -> None:
    """Whatever stands in a member: a value of its type, or Malformed."""
    for member in GOOD:
        try:
            documents.parse(Whole, {**GOOD, member: value})
        except Malformed:
            pass


def test_a_file_is_read_and_its_damage_named(tmp_path: Path) -> None:
    """Corrupt for what it holds; a file that cannot be looked at is a LocalFault, and no verdict."""
    path = tmp_path / "whole.json"
    assert documents.read(path, Whole) is None
    path.write_text(json.dumps(GOOD))
    assert documents.read(path, Whole) == documents.parse(Whole, GOOD)
    path.write_text(json.dumps({**GOOD, "first": {"name": "/"}}))
    with pytest.raises(Corrupt, match=r"whole.json is damaged: first.name is not an identifier"):
        documents.read(path, Whole)
    path.write_text(json.dumps(GOOD))
    path.chmod(0o644)
    with pytest.raises(LocalFault):
        documents.read(path, Whole, private_to=path.stat().st_uid)
