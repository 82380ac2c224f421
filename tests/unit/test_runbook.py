"""Keep the runbook in step with the code: codes, states, phrases of messages, and every hint.

``python -m tests.unit.test_runbook`` rewrites its index of messages and hints.
"""

from __future__ import annotations

import re

from firstboot.commands.status import STATES
from tests.controlplane import spoil
from tests.unit import texts
from tests.unit.test_pages import json_section, problem_codes, sections
from tests.unit.texts import TOP

RUNBOOK = TOP / ".github/RUNBOOK.md"
MARK = "<!-- index: written by python -m tests.unit.test_runbook -->\n"
ELSEWHERE = (
    "certificate has expired",
    "unable to get local issuer certificate",
    "connection refused",
)
LONGEST = 110


def wrapped(text: str, indent: str) -> str:
    """Wrap at the width of the page; words stay whole."""
    lines, line = [], indent
    for word in text.split():
        if len(line) + len(word) > LONGEST - 1 and line.strip():
            lines.append(line.rstrip())
            line = " " * (indent.index("-") + 2)
        line += f"{word} "
    return "\n".join([*lines, line.rstrip()])


def index() -> str:
    """Return the index: each hint, and below it the messages that it follows."""
    lines = []
    for hint, messages in texts.hints().items():
        lines.append(wrapped(shown(hint), "- hint: "))
        lines += [wrapped(shown(message), "  - ") for message in messages]
    return "\n".join(lines) + "\n"


def shown(text: str) -> str:
    """Write a text so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", text)


def page() -> str:
    return RUNBOOK.read_text().split(MARK)[0]


def test_the_index_has_every_hint_of_the_code() -> None:
    """If this fails: ``python -m tests.unit.test_runbook``, and read what changed."""
    assert len(texts.hints()) > 50
    assert RUNBOOK.read_text().split(MARK)[1] == index()


def test_every_problem_code_has_a_chapter() -> None:
    """Each code that status can show stands in the chapters, as the JSON page lists them."""
    listed = set(re.findall(r"`([a-z_]+)`", page()))
    for pattern in problem_codes():
        assert any(re.fullmatch(pattern, code) for code in listed), pattern
    for code in re.findall(r"^\| `([a-z_]+)`", json_section("byteor-agent status"), re.MULTILINE):
        assert code in listed or not re.search("_(?:failing|refused|failed|ed)$", code), code


def test_every_state_that_needs_somebody_has_a_chapter() -> None:
    """All but those of a host that is well."""
    for state, _ in STATES.values():
        assert f"`{state}`" in page() or state == "enrolled", state


def test_every_reason_code_has_a_row() -> None:
    """Of deployments and of key sets; approvals together."""
    codes = {
        code
        for code in [*texts.codes("Untrusted", "Refusal", "Gate"), *spoil.CODES]
        if re.fullmatch("[a-z_]+", code)
    }
    assert len(codes) > 15
    for code in codes:
        assert f"`{code}`" in page() or code.startswith("approval_"), code


def test_every_phrase_is_one_of_the_code() -> None:
    """What stands in quotation marks is a part of a message, so that a search finds it."""
    text = "\n".join(texts.literals())
    phrases = re.findall("“([^”]+)”", re.sub(r"\s+", " ", page()))
    assert len(phrases) > 20
    for phrase in phrases:
        assert phrase in text or phrase in ELSEWHERE or phrase == "quotation marks", phrase


def test_the_chapters_are_where_links_expect_them() -> None:
    """The four parts of the page."""
    assert {
        "First boot does not enroll",
        "The agent has problems",
        "A deployment is not active",
        "Operations",
    } <= set(sections(page()))


if __name__ == "__main__":
    head = page().split("\n## Every hint\n")[0].rstrip("\n")
    about = "Each hint of the code, and the messages that it follows; … stands for what differs."
    RUNBOOK.write_text(f"{head}\n\n## Every hint\n\n{about}\n\n{MARK}{index()}")
