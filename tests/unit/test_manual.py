"""Manual pages and completions: made from the command table, complete, and clean."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstboot.cli import PROGRAMS, parser
from firstboot.provision.schema import CHECKS
from tests.unit.texts import TOP

PAGES = ("man5/byteor-firstboot.yaml.5", *(f"man8/{name}.8" for name in PROGRAMS))


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a package is built with."""
    out = tmp_path_factory.mktemp("manual")
    subprocess.run(
        [sys.executable, "-B", str(TOP / "image-build/manual.py"), str(out)], check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1796040060"},
    )  # fmt: skip
    return out


def words(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a program with its long options; the first are those of all."""
    top = parser(program, whole=True)
    (below,) = [one for one in top._actions if isinstance(one, argparse._SubParsersAction)]
    for name, one in {"": top, **below.choices}.items():
        yield name, [word for action in one._actions for word in action.option_strings[-1:]]


def plain(text: str) -> str:
    return re.sub(r"\\f[BIR]|\\&", "", text).replace("\\-", "-")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_and_option_stands_in_page_and_completions(
    manual: Path, program: str
) -> None:
    """The page has a section for each command, with the options that it alone takes."""
    page = plain((manual / f"man8/{program}.8").read_text())
    sections = dict(
        part.partition("\n")[::2] for part in re.split(r"^\.S[SH] ", page, flags=re.M)[1:]
    )
    common = dict(words(program))[""]
    bash, zsh = ((manual / name).read_text() for name in (f"bash/{program}", f"zsh/_{program}"))
    for command, options in words(program):
        section = sections[command or "OPTIONS"]
        for option in options:
            assert option in (sections["OPTIONS"] if option in common else section), option
            assert option in bash and option in zsh, option
        assert command in bash.split("subparsers=")[1].partition("\n")[0] and command in zsh
    assert "6 gave up waiting" in sections["EXIT STATUS"]


def test_the_settings_page_is_the_reference_page(manual: Path) -> None:
    """Every key, in its order, and no trace of Markdown."""
    text = (manual / PAGES[0]).read_text()
    keys = re.findall(r"^\.TP\n\\fB([a-z_]+)\\fR$", text.split(".SH WHERE")[0], re.MULTILINE)
    assert keys == list(CHECKS)
    assert not re.search(r"`|\*\*|\]\(|\|", text)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_clean(manual: Path, name: str) -> None:
    """Neither man nor mandoc has anything to say about it."""
    judges = (["man", "--warnings", "-l"], ["mandoc", "-Tlint"])
    missing = [words[0] for words in judges if shutil.which(words[0]) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)} (Debian: man-db mandoc)")
    for judge in judges:
        done = subprocess.run(
            [*judge, str(manual / name)], capture_output=True, text=True, check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
        )  # fmt: skip
        said = done.stderr if judge[0] == "man" else done.stdout + done.stderr
        assert done.returncode == 0 and said == "", said


def complete(manual: Path, *typed: str) -> list[str]:
    """Return what bash offers after these words, the last one unfinished."""
    script = """
        source "$1"; program=$2; shift; function=$(complete -p "$program" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        "$function" "$program" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2> /dev/null
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", str(manual / "bash" / typed[0]), *typed],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [word.strip() for word in done.stdout.split()]


def test_bash_completes_commands_options_and_files(manual: Path, tmp_path: Path) -> None:
    """After ``byteor-firstboot re`` and a tab comes ``reenroll``, and so on."""
    assert complete(manual, "byteor-firstboot", "re") == ["reenroll"]
    assert complete(manual, "byteor-agent", "dep") == ["deployments"]
    assert complete(manual, "byteor-firstboot", "status", "--wa") == ["--wait"]
    assert complete(manual, "byteor-agent", "upload", "--kind", "sn") == ["snapshot"]
    (tmp_path / "user-data").touch()
    found = complete(manual, "byteor-firstboot", "check-userdata", f"{tmp_path}/us")
    assert found == [f"{tmp_path}/user-data"]


def test_zsh_offers_the_commands(manual: Path) -> None:
    """Its completion system loads the file and calls it; what it offers is ours."""
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not on this machine (Debian: apt-get install zsh)")
    # The completion's own words, caught in place of the terminal that would show them.
    script = """
        fpath=("$1" $fpath); autoload -Uz compinit; compinit -u -D
        print -r -- "$_comps[byteor-firstboot]"
        _describe() { print -rl -- "${(P@)2}" }; _arguments() { print -rl -- "$@" }
        autoload -Uz +X _byteor-firstboot && source "$1/_byteor-firstboot"
        _shtab_byteor_firstboot_commands
    """
    done = subprocess.run(
        ["zsh", "-f", "-c", script, "zsh", str(manual / "zsh")], capture_output=True, text=True
    )
    assert done.stdout.startswith("_byteor-firstboot\n"), done
    offered = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert {command.word for command in PROGRAMS["byteor-firstboot"].commands} <= offered, done
