"""Token marks: what a host remembers of a token without keeping it, and what a damaged memory
means.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.provision.tokens import Marks, TokenClass

TOKEN = "bet_canary0123456789abcdef"
OTHER = "bet_other_0123456789abcdefg"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "var/lib/byteor/identity").mkdir(parents=True)
    return Layout(tmp_path)


def store(layout: Layout, content: str) -> None:
    layout.marks.write_text(content)
    layout.marks.chmod(0o600)


def test_a_mark_survives_and_says_nothing(layout: Layout) -> None:
    """Classes, boot ids and lengths are durable; the private file holds no token and nothing that
    equals it elsewhere.
    """
    marks, token, other = Marks.load(layout), Secret(TOKEN), Secret(OTHER)
    assert marks.classify(token) is TokenClass.FRESH
    assert marks.presented_in(token) is None
    marks.put(token, TokenClass.REFUSED, boot_id="b1")
    marks.put(other, TokenClass.SPENT, boot_id="b2")
    again = Marks.load(layout)
    assert (again.classify(token), again.presented_in(token)) == (TokenClass.REFUSED, "b1")
    assert (again.classify(other), again.presented_in(other)) == (TokenClass.SPENT, "b2")
    assert again.classify(Secret("bet_never_seen_before_00")) is TokenClass.FRESH
    assert TOKEN not in layout.marks.read_text() and OTHER not in layout.marks.read_text()
    assert stat.S_IMODE(layout.marks.stat().st_mode) == 0o600


def test_a_mark_is_the_first_64_bits_of_an_hmac_under_a_key_of_this_host(
    layout: Layout, tmp_path: Path
) -> None:
    """As contract 4.3 has it, so that marks of two hosts cannot be compared."""
    marks = Marks.load(layout)
    marks.put(Secret(TOKEN), TokenClass.SPENT, boot_id=None)
    stored = json.loads(layout.marks.read_text())
    key = bytes.fromhex(stored["key"])
    expected = hmac.new(key, TOKEN.encode(), hashlib.sha256).hexdigest()[:16]
    assert marks.mark(Secret(TOKEN)) == expected
    assert stored["marks"] == {expected: {"class": "spent", "length": len(TOKEN), "boot_id": None}}
    (tmp_path / "second/var/lib/byteor/identity").mkdir(parents=True)
    assert Marks.load(Layout(tmp_path / "second")).mark(Secret(TOKEN)) != expected


def test_looking_writes_nothing(layout: Layout) -> None:
    """The key is kept from the first mark on, not before: status and a host without a token leave
    no file.
    """
    marks = Marks.load(layout)
    marks.classify(Secret(TOKEN))
    marks.recognises(TOKEN.encode(), TokenClass.SPENT)
    assert not layout.marks.exists()


def test_a_copy_is_recognised_by_its_class(layout: Layout) -> None:
    """`erase` knows what an earlier look left of a spent token, and leaves a refused one alone."""
    marks = Marks.load(layout)
    marks.put(Secret(TOKEN), TokenClass.REFUSED, boot_id="b")
    marks.put(Secret(OTHER), TokenClass.SPENT, boot_id="b")
    assert marks.recognises(OTHER.encode(), TokenClass.SPENT)
    assert not marks.recognises(TOKEN.encode(), TokenClass.SPENT)
    assert marks.recognises(TOKEN.encode(), TokenClass.SPENT, TokenClass.REFUSED)
    assert not marks.recognises(b"\xff" * len(OTHER), TokenClass.SPENT)


def test_a_refused_token_can_become_spent(layout: Layout) -> None:
    """The cause was mended at the plane and a later boot enrolled with it: the last word counts."""
    marks = Marks.load(layout)
    marks.put(Secret(TOKEN), TokenClass.REFUSED, boot_id="b1")
    marks.put(Secret(TOKEN), TokenClass.SPENT, boot_id="b2")
    again = Marks.load(layout)
    assert again.classify(Secret(TOKEN)) is TokenClass.SPENT


KEY = "00" * 32


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "[" * 100_000,
        '{"v":1}',
        '{"v":1,"key":"zz","marks":{}}',
        '{"v":1,"key":"00","marks":{}}',
        '{"v":1,"key":5,"marks":{}}',
        f'{{"v":2,"key":"{KEY}","marks":{{}}}}',
        f'{{"v":1,"key":"{KEY}","marks":[1]}}',
        f'{{"v":1,"key":"{KEY}","marks":{{"a":1}}}}',
        f'{{"v":1,"key":"{KEY}","marks":{{"a":{{"length":20}}}}}}',
        f'{{"v":1,"key":"{KEY}","marks":{{"a":{{"class":[],"length":20}}}}}}',
        f'{{"v":1,"key":"{KEY}","marks":{{"a":{{"class":"?","length":20}}}}}}',
    ],
)
def test_damaged_marks_are_set_aside(
    layout: Layout, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is kept under another name, its consequence is said, and tokens look fresh again."""
    store(layout, content)
    marks = Marks.load(layout)
    assert marks.classify(Secret(TOKEN)) is TokenClass.FRESH
    assert layout.marks.with_name("marks.json.corrupt-1").read_text() == content
    assert "look fresh again" in capsys.readouterr().err
    marks.put(Secret(TOKEN), TokenClass.SPENT, boot_id=None)
    assert Marks.load(layout).classify(Secret(TOKEN)) is TokenClass.SPENT


def test_a_look_that_repairs_nothing_leaves_the_damaged_file(layout: Layout) -> None:
    """`status` changes nothing on disk."""
    store(layout, "{")
    assert Marks.load(layout, repair=False).classify(Secret(TOKEN)) is TokenClass.FRESH
    assert layout.marks.read_text() == "{"


def test_marks_that_others_can_read_are_not_used(layout: Layout) -> None:
    """The key in them would let anybody test guesses; and who could read them may have written
    them.
    """
    store(layout, "{}")
    layout.marks.chmod(0o644)
    with pytest.raises(LocalFault, match="others"):
        Marks.load(layout)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)
MARK = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {}, optional={"class": JSON | st.just("spent"), "length": JSON, "boot_id": JSON}
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000)
@given(
    stored=st.fixed_dictionaries(
        {},
        optional={
            "v": st.just(1) | JSON,
            "key": st.just(KEY) | JSON,
            "marks": JSON | st.dictionaries(st.text(max_size=3), MARK, max_size=3),
        },
    )
)
def test_any_json_is_marks_or_set_aside(layout: Layout, stored: dict[str, Any]) -> None:
    """No shape of the file is a traceback."""
    store(layout, json.dumps(stored))
    marks = Marks.load(layout, repair=False)
    assert isinstance(marks.classify(Secret(TOKEN)), TokenClass)
