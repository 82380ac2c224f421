"""Keep the README in step with the code: help texts and exit codes.

``python tests/unit/test_readme.py`` rewrites the help texts.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from firstboot import cli

README = Path(__file__).resolve().parents[2] / "README.md"
COMMANDS = ("byteor-firstboot", "byteor-agent")


def help_of(*words: str) -> str:
    """Return what ``COMMAND [WORD] --help`` prints, 100 columns wide."""
    path = Path(sys.executable).parent / words[0]
    environ = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(
        [str(path), *words[1:], "--help"], capture_output=True, text=True, check=True, env=environ
    ).stdout


def block_of(command: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- help: {command} -->\n(?:```text\n.*?```\n)?", re.DOTALL)


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="argparse lays out help differently in other Pythons"
)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_in_the_readme_is_what_the_command_prints(command: str) -> None:
    """A change of a command's help changes the README."""
    found = block_of(command).search(README.read_text())
    assert found is not None
    assert found.group() == f"<!-- help: {command} -->\n```text\n{help_of(command)}```\n"


def test_every_exit_code_of_the_readme_is_in_the_help() -> None:
    """The table and --help list the same codes."""
    table = README.read_text().split("## Exit codes\n\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    text = help_of("byteor-firstboot")
    assert [int(row) for row in rows] == list(range(11))
    assert all(re.search(rf"\b{row}\b", text) for row in rows)


def helps(program: str) -> dict[str, str]:
    """Return the help text of every command, by its word."""
    whole = cli.parser(program, whole=True)
    below = [a for a in whole._actions if isinstance(a, argparse._SubParsersAction)]
    return {word: parser.format_help() for word, parser in below[0].choices.items()}


@pytest.mark.parametrize("program", COMMANDS)
def test_help_speaks_of_the_control_plane_in_full(program: str) -> None:
    """No option's help says less."""
    for word, text in helps(program).items():
        words = " ".join(text.split())
        assert not re.findall(r".{20}(?<!control )\bplane\b", words), word


@pytest.mark.parametrize("program", COMMANDS)
def test_the_contract_names_every_command(program: str) -> None:
    """Section 8 has a row for each, under its program."""
    contract = (README.parent / ".github/CONTRACT.md").read_text().split("## 8. Commands")[1]
    table = contract.split(f"| `{program}` |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z-]+)[ `]", table))
    assert set(helps(program)) <= named


if __name__ == "__main__":
    text = README.read_text()
    for name in COMMANDS:
        text = block_of(name).sub(
            lambda _, n=name: f"<!-- help: {n} -->\n```text\n{help_of(n)}```\n", text
        )
    README.write_text(text)
