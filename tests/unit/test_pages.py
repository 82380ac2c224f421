"""Keep the pages in step with the code, with each other, and in plain English."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from firstboot.base import redaction
from firstboot.base.layout import Layout, Row
from firstboot.commands.status import STATES
from firstboot.provision.erase import places
from firstboot.provision.erase.receipt import NOT_LOOKED_AT, RESULTS
from firstboot.provision.schema import CHECKS, IMAGE_ONLY
from tests.controlplane import spoil
from tests.unit import texts
from tests.unit.texts import TOP

REFERENCE = TOP / ".github/reference"
PAGES = sorted([*TOP.glob("*.md"), *(TOP / ".github").rglob("*.md")])
LONGEST_LINE, LONGEST_ROW = 110, 160  # characters; of prose, of a table


def name_of(path: Path) -> str:
    return str(path.relative_to(TOP))


def sections(text: str) -> dict[str, str]:
    """Return heading -> text up to the next heading, of any level."""
    pieces = re.split(r"^#{1,4} +(.+)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2]))


def first_column(text: str) -> list[str]:
    """Return what stands in backquotes in the first column of the tables of `text`."""
    cells = re.findall(r"^\|([^|]+)\|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.replace(" ", "-")


# -- form


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_to_a_page_and_to_a_heading_of_it(path: Path) -> None:
    """A reader who clicks arrives."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            assert anchor in map(slug, sections(there.read_text())), target


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_is_readable_as_plain_text_too(path: Path) -> None:
    """No endless lines; help texts are as wide as the commands print them."""
    text = re.sub(r"```text\n.*?```", "", path.read_text(), flags=re.DOTALL)
    for line in text.splitlines():
        limit = LONGEST_ROW if line.startswith("|") else LONGEST_LINE
        assert len(line) <= limit, line


TRACKED = subprocess.run(
    ["git", "ls-files", "units", "image-build"], cwd=TOP, capture_output=True, text=True
).stdout.split()
TEXTS = [*PAGES, *(TOP / name for name in TRACKED if not name.endswith(".py"))]


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_people_read_of_a_control_plane(path: Path) -> None:
    """Never of a mere plane, but for the member of the JSON that has the name."""
    text = re.sub(r"```text\n.*?```|`plane`", "", path.read_text(), flags=re.DOTALL)
    words = re.sub(r"[\s#]+", " ", text)
    assert not re.findall(r".{0,20}(?<!control )(?<!control-)\bplanes?\b.{0,20}", words, re.I)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_page_knows_the_machine_that_it_was_written_on(path: Path) -> None:
    """Paths of a workplace and edition marks have no place here."""
    assert not re.search(r"(?<![\w.])/(?:work|tmp|root|home)/|²", path.read_text())


def test_the_tests_that_a_page_names_are_there() -> None:
    """With their folder or without, as a reader of CONTRIBUTING looks for them."""
    for page in PAGES:
        for name in re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", page.read_text()):
            assert [*(TOP / "tests").rglob(name)], (page, name)


# -- what the code cites


def cited(pattern: str) -> set[str]:
    """Return the section numbers that code, units and tests cite by `pattern`."""
    found: set[str] = set()
    for folder in ("firstboot", "tests", "units", "image-build"):
        for path in (TOP / folder).rglob("*"):
            if path.suffix in (".py", ".service", ".path", ".yaml") and path.is_file():
                text = re.sub(r"\s+#?\s*", " ", path.read_text())
                for numbers in re.findall(pattern, text):
                    found |= set(re.findall(r"\d+(?:\.\d+)?", numbers))
    return found


NUMBERS = r"((?:\d+(?:\.\d+)?)(?:(?:, | and )\d+(?:\.\d+)?)*)"


@pytest.mark.parametrize(
    ("page", "pattern"),
    [
        ("CONTRACT.md", rf"\bcontract (?:section )?{NUMBERS}"),
        ("CLOUD-INIT.md", rf"CLOUD-INIT\.md,? (?:section )?{NUMBERS}"),
    ],
)
def test_every_section_that_the_code_cites_is_there(page: str, pattern: str) -> None:
    """A comment that cites a page cites what a reader can open."""
    headings = sections((TOP / ".github" / page).read_text())
    there = {match.group() for name in headings if (match := re.match(r"\d+(?:\.\d+)?", name))}
    assert cited(pattern), "the pattern finds nothing"
    assert cited(pattern) <= there


def test_no_comment_cites_a_page_that_is_not_here() -> None:
    """The measurements and the design travelled as files of other names."""
    done = subprocess.run(
        ["git", "grep", "-nE", r"leak-map|real-disk|design\.md|contract\.md"],
        cwd=TOP, capture_output=True, text=True,
    )  # fmt: skip
    ours = (name_of(Path(__file__)), "tests/unit/test_structure.py")
    assert [line for line in done.stdout.splitlines() if not line.startswith(ours)] == []


# -- settings


def test_the_settings_page_has_every_key() -> None:
    """Its table is the schema's list of keys."""
    page = sections((REFERENCE / "settings.md").read_text())
    assert first_column(page["Every key"]) == [*CHECKS]


def test_the_contract_has_every_key_and_where_it_may_stand() -> None:
    """The normative table lists the same keys, and those of the image alone as such."""
    table = sections((TOP / ".github/CONTRACT.md").read_text())["4.1 Schema"]
    assert set(first_column(table)) == set(CHECKS)
    for line in table.splitlines():
        for key in first_column(line):
            assert (key in IMAGE_ONLY) == ("image's file only" in line), key


# -- JSON


def json_section(command: str) -> str:
    page = sections((REFERENCE / "json.md").read_text())
    return page[command]


def test_the_json_page_has_every_state_of_first_boot() -> None:
    """`state` of ``status --json``: those of the next step, and those that are no step."""
    states = set(first_column(json_section("byteor-firstboot status").split("| `state` |")[-1]))
    assert states == {word for word, _ in STATES.values()} | {"invalid", "environment", "unknown"}


def test_the_json_page_has_every_result_of_erasing() -> None:
    """The results of the receipt's rows."""
    table = json_section("byteor-firstboot erase").split("| `result` |")[1]
    assert set(first_column(table)) == set(RESULTS)


def problem_codes() -> set[str]:
    """Return the code of every ``Problem(...)`` as a pattern."""
    return {re.escape(code).replace("…", "[a-z_]+") for code in texts.codes("Problem")}


def test_the_json_page_has_every_problem_code() -> None:
    """Each code that the code makes is listed, and nothing else."""
    patterns = problem_codes()
    listed = first_column(json_section("byteor-agent status").split("| Code |")[1])
    assert len(patterns) > 10
    for pattern in patterns:
        assert any(re.fullmatch(pattern, code) for code in listed), pattern
    for code in listed:
        assert any(re.fullmatch(pattern, code) for pattern in patterns), code


# -- deployments


def test_the_contract_has_every_refusal() -> None:
    """Each code with which the reference control plane can break a deployment."""
    text = (TOP / ".github/CONTRACT.md").read_text()
    for code in spoil.CODES:
        assert f"`{code}`" in text, code


# -- files


def test_the_files_page_has_every_path_of_ours() -> None:
    """The table of the layout, but for what belongs to the host or to cloud-init."""
    rows = [row.absolute for row in vars(Layout).values() if isinstance(row, Row)]
    listed = re.findall(r"^\| `(/[^`]+)`", (REFERENCE / "files.md").read_text(), re.MULTILINE)
    assert set(listed) == {path for path in rows if "byteor" in path}
    assert len(listed) == len(set(listed))


# -- erasing


def test_the_erasing_page_names_every_place_and_what_is_not_looked_at() -> None:
    """The places of the code, and the receipt's own sentences."""
    page = sections((REFERENCE / "erasing.md").read_text())
    for place in (*places.TREES, *places.FILES, places.LOGS):
        assert f"`{place}`" in page["What is searched"], place
    assert bullets(page["What is not"]) == list(NOT_LOOKED_AT)


# -- redaction


def bullets(text: str) -> list[str]:
    """Return the items of the first list in `text`, as bare words."""
    items = re.findall(r"^- (.+(?:\n  .+)*)", text, re.MULTILINE)
    return [" ".join(item.replace("`", "").split()) for item in items]


def test_the_artifacts_page_lists_what_redaction_promises() -> None:
    """The list of the module's docstring, word for word."""
    page = sections((REFERENCE / "artifacts.md").read_text())["Redaction"]
    assert bullets(page) == bullets(redaction.__doc__ or "")
    assert len(bullets(page)) > 5
