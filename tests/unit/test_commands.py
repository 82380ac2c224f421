"""The command lines: every command parses, loads only its own, and quotes no value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from firstboot import cli

SECRET = "betSECRETvalue0123456789"
COMMANDS = [
    (program, command.word) for program, found in cli.PROGRAMS.items() for command in found.commands
]


def call(program: str, *argv: str) -> int:
    return (cli.firstboot_main if program == "byteor-firstboot" else cli.agent_main)(list(argv))


def modules_of(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("program", cli.PROGRAMS)
def test_the_whole_grammar_can_be_had_at_once(program: str) -> None:
    """Every row's module and functions are there; no option has two meanings."""
    parser = cli.parser(program, whole=True)
    assert all(command.word in parser.format_help() for command in cli.PROGRAMS[program].commands)


@pytest.mark.parametrize(("program", "word"), COMMANDS)
@pytest.mark.parametrize(
    "odd",
    [
        ["--token", SECRET],
        [f"--token={SECRET}"],
        [f"-t{SECRET}"],
        [SECRET],
        ["x", SECRET],
        ["x", "y", SECRET],
        ["--token-file", SECRET],
        [f"--token-file={SECRET}"],
        ["--operator-token", SECRET],
        ["--give-up-after", SECRET],
        [f"--json={SECRET}"],
        [f"--verbose={SECRET}"],
        [f"-v{SECRET}"],
        ["--config", SECRET],
        ["--root", SECRET],
        ["--kind", SECRET, "x"],
        ["--kind", "diagnostic", SECRET],
        ["--user", SECRET, "--", "true"],
    ],
    ids=" ".join,
)
def test_no_usage_error_quotes_a_value(
    program: str, word: str, odd: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It may be a token that was typed in the wrong place; there is a hint each time."""
    code = call(program, "--root", str(tmp_path), word, *odd)
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert code != 0 and "Traceback" not in said.err
    assert "\nhint: " in said.err


@pytest.mark.parametrize("program", cli.PROGRAMS)
def test_a_mistyped_command_is_not_quoted_either(
    program: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor is a token in its place."""
    assert call(program, SECRET) == 2
    assert capfd.readouterr().err == (
        f"{program}: error: there is no such command\nhint: {program} --help\n"
    )


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (["--token", SECRET], "run has no option --token"),
        ([SECRET], "run got an argument too many"),
        (["--token-file", SECRET], "argument --token-file: there is no file of that name"),
    ],
)
def test_a_token_in_argv_is_answered_with_the_way_to_give_one(
    odd: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The option is named, and stdin and a file are offered."""
    assert call("byteor-firstboot", "run", *odd) == 2
    err = capfd.readouterr().err
    assert said in err and "give - and the token on stdin, or name its file" in err


def test_a_command_loads_only_what_is_its_own() -> None:
    """Both programs start without any command's module; the agent's boot loads no provision."""
    assert not {name for name in modules_of("import firstboot.cli") if "commands" in name}
    run = "import firstboot.cli as c; c.parser('byteor-agent').parse_args(['run'])"
    assert not {"yaml", "cryptography", "firstboot.identity.store"} & modules_of(run)
    unseal = "import firstboot.cli as c; c.parser('byteor-firstboot').parse_args(['unseal'])"
    assert not {"yaml", "requests", "firstboot.provision.sources"} & modules_of(unseal)
    assert "email" not in modules_of("import firstboot.provision.unseal")


def test_an_ordinary_boot_loads_no_requests() -> None:
    """A host that is enrolled asks nobody: a fifth of what `run` and `erase` would cost."""
    code = "import firstboot.commands.enroll, firstboot.provision.run, firstboot.provision.cleanup"
    assert not {"requests", "urllib3", "http.client"} & modules_of(code)
