"""Parse both command lines from one table, run the command, turn its error into an exit code.

Each command is a row: its word, its module in `commands`, one line of help. The module offers
``<word>_command(arguments)`` and, where the command has flags of its own,
``<word>_arguments(parser)``; it is imported only when its command is chosen. So the boot of an
enrolled host loads nothing that only enrollment needs, and the agent nothing that only root needs.

A secret is never an argument, and no usage error quotes a value: it may be a token that was typed
in the wrong place.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, NamedTuple, NoReturn

from firstboot import __version__
from firstboot.base import files, log, systemd
from firstboot.base.errors import ByteorError, NotLaunched, NoToken, Usage
from firstboot.base.layout import Layout

INTERRUPTED = 130

EXIT_CODES = """\
exit codes: 0 done · 1 unexpected · 2 usage · 3 no token and not enrolled
  4 settings or user data invalid · 5 refused by the control plane
  6 gave up waiting · 7 local fault · 8 identity belongs to another host
  9 enrolled, but a copy of the token could not be erased · 10 a check failed"""
NO_TOKEN_HERE = "a token is never an argument: give - and the token on stdin, or name its file"
TOKEN_ON_STDIN = "a token is never an argument: give - and the token on stdin"


class Command(NamedTuple):
    """One row: the word, its module in `commands`, one line of help, if it prints JSON."""

    word: str
    module: str
    help: str
    json: bool = False


class Program(NamedTuple):
    """One program: a sentence, an example, and its commands."""

    purpose: str
    example: str
    commands: tuple[Command, ...]


FIRSTBOOT = (
    Command("run", "enroll", "do all of first boot; safe to repeat at any time"),
    Command("reenroll", "enroll", "replace this host's identity, using a fresh token"),
    Command("unenroll", "unenroll", "stop the agent and remove this host's identity"),
    Command("generalize", "generalize", "make this system safe to image", json=True),
    Command("preflight", "rehearse", "check everything but the token itself", json=True),
    Command("check-userdata", "rehearse", "check offline if user data would enroll", json=True),
    Command(
        "erase", "enroll", "erase spent tokens everywhere, verify, write the receipt", json=True
    ),
    Command("verify", "verify", "run the install guide's four validation checks", json=True),
    Command("status", "status", "show enrollment and anything that needs attention", json=True),
    Command("trust", "trust", "show trusted signing keys and any rejected key set", json=True),
    Command(
        "unseal", "services", "internal: open the identity for the agent, before its unit starts"
    ),
    Command("shield", "services", "internal: keep cloud-init's cache in memory (units call it)"),
)
AGENT = (
    Command("run", "services", "run the agent; byteor-agent.service calls this"),
    Command("exec", "execute", "run a command with this host's identity in its environment"),
    Command(
        "activate", "services", "internal: verify and activate what the agent fetched, as root"
    ),
    Command("status", "agent_status", "show the agent's health and its problems", json=True),
    Command("deployments", "history", "list deployments with verdicts and reasons", json=True),
    Command("upload", "upload", "queue an artifact; returns once it is safely on disk"),
    Command("retry", "history", "retry a failed deployment or a refused artifact"),
    Command("metrics", "metrics", "print the agent's health in the Prometheus text format"),
    Command("diagnose", "diagnose", "write one redacted archive of what support needs"),
)
PROGRAMS = {
    "byteor-firstboot": Program(
        "Enroll this host once, seal its identity, erase the token, hand off to byteor-agent.",
        "byteor-firstboot run --token-file - < token",
        FIRSTBOOT,
    ),
    "byteor-agent": Program(
        "Run an enrolled host: heartbeats, signed deployments and artifacts, with its own key.",
        "byteor-agent status",
        AGENT,
    ),
}


def firstboot_main(argv: list[str] | None = None) -> int:
    """Run ``byteor-firstboot``."""
    return _main("byteor-firstboot", sys.argv[1:] if argv is None else argv, None)


def agent_main(argv: list[str] | None = None) -> int:
    """Run ``byteor-agent``."""
    argv = sys.argv[1:] if argv is None else argv
    # What follows -- is the command of `exec`: argparse must not look at its options.
    at = argv.index("--") if "--" in argv else len(argv)
    words = argv[at + 1 :] if "exec" in argv[:at] else None
    return _main("byteor-agent", argv if words is None else argv[:at], words)


def _open_standard_files() -> None:
    """Put /dev/null where the caller closed stdin, stdout or stderr.

    Else a lock file or a socket of ours would get that number, and be written to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _main(program: str, argv: list[str], words: list[str] | None) -> int:
    _open_standard_files()
    log.set_up(program, verbose=False)
    sys.excepthook = _unexpected
    try:
        with _translated():
            arguments, extra = parser(program).parse_known_args(argv)
            if extra:
                _refuse(f"{program} {arguments.command}", arguments, extra[0])
            arguments.words = words
            log.set_up(program, verbose=arguments.verbose)
            return int(arguments.handler(arguments))
    except ByteorError as error:
        if isinstance(error, NoToken) and systemd.under_systemd():
            # A host that is to have no token is not broken: one line, and it is no error.
            log.notice(f"{error}; {error.hint}")
            return error.exit_code
        log.error(str(error))
        log.hint(error.hint)
        # `exec` answers as env and docker do: 2 would be taken for its command's own.
        is_usage_of_exec = isinstance(error, Usage) and words is not None
        return NotLaunched.exit_code if is_usage_of_exec else error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1


@contextmanager
def _translated() -> Iterator[None]:
    """Make a file that the system refuses a fault of this host, where no branch expected it."""
    try:
        yield
    except OSError as error:
        if not isinstance(error.filename, str):
            raise
        files.fail("use", Path(error.filename), error)


def _unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Report a bug by its place alone: the message and the values may hold a secret."""
    import traceback

    places = " < ".join(
        f"{frame.name} {frame.filename}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(trace))
    )
    log.error(f"unexpected {kind.__name__} in {places}")
    log.hint("this is a bug of byteor-firstboot: please report this line")


def _refuse(called: str, arguments: argparse.Namespace, extra: str) -> NoReturn:
    """Raise Usage for an argument that the command does not take, naming only an option."""
    hint = f"{called} --help"
    if "operator_token" in arguments:
        hint = TOKEN_ON_STDIN + " (--operator-token -)"
    elif "token_file" in arguments:
        hint = NO_TOKEN_HERE + " (--token-file)"
    option = re.match(r"--[a-z-]{1,24}", extra)
    said = f"has no option {option[0]}" if option else "got an argument too many"
    if extra.startswith("-") and option is None:
        said = "has no such option"
    raise Usage(f"{called} {said}", hint=hint)


# -- the grammar


class Parser(argparse.ArgumentParser):
    """An argparse that raises `Usage` and fills a command's grammar when it is chosen."""

    fill: Callable[[Parser], None] | None = None

    def __init__(self, **keywords: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, **keywords)
        for name, kind in (("path", _path), ("seconds", _seconds), ("stdin", _stdin)):
            self.register("type", name, kind)

    def parse_known_args(self, *arguments: Any, **keywords: Any) -> Any:
        self.complete()
        return super().parse_known_args(*arguments, **keywords)

    def complete(self) -> None:
        """Add what the command itself takes, once."""
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)

    def error(self, message: str) -> NoReturn:
        # argparse quotes what it was given: only what it says of names passes.
        found = re.match(r"(argument [^:]+: |)(.*)", message, re.DOTALL)
        of, said = found.groups() if found else ("", "")
        if said not in OURS and not re.match(
            r"expected |the following arguments are|not all", said
        ):
            said = "this value is not accepted"
            if of == "argument COMMAND: ":
                of, said = "", "there is no such command"
        raise Usage(f"{of}{said}", hint=f"{self.prog} --help")


NO_FILE = f"there is no file of that name; {NO_TOKEN_HERE}"
NO_DIRECTORY = "this is not a directory"
NO_SECONDS = "SECONDS is a number that is not negative"
OURS = (NO_FILE, NO_DIRECTORY, NO_SECONDS, TOKEN_ON_STDIN)


def _path(text: str) -> str:
    if text != "-" and "/" not in text and not os.path.lexists(text):
        raise argparse.ArgumentTypeError(NO_FILE)
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(NO_SECONDS)
    return value


def _stdin(text: str) -> str:
    if text != "-":
        raise argparse.ArgumentTypeError(TOKEN_ON_STDIN)
    return text


def _root(text: str) -> Layout:
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(NO_DIRECTORY)
    return Layout(path)


def parser(program: str, *, whole: bool = False) -> Parser:
    """Return the grammar of `program`; `whole` with every command's own, for manual pages."""
    purpose, example, commands = PROGRAMS[program]
    top = Parser(prog=program, description=purpose, epilog=f"example: {example}\n\n{EXIT_CODES}")
    _common(top, top=True)
    top.add_argument("--version", action="version", version=f"{program} {__version__}")
    below = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in commands:
        one = below.add_parser(
            command.word, help=command.help, description=command.help, epilog=EXIT_CODES
        )
        one.fill = partial(_fill, command)
        if whole:
            one.complete()
    return top


def _fill(command: Command, parser: Parser) -> None:
    """Import the command's module and add what it takes."""
    module = importlib.import_module(f"firstboot.commands.{command.module}")
    name = command.word.replace("-", "_")
    _common(parser, top=False)
    if command.json:
        parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    getattr(module, f"{name}_arguments", lambda parser: None)(parser)
    parser.set_defaults(handler=getattr(module, f"{name}_command"))


def _common(parser: Parser, *, top: bool) -> None:
    """Add what every command takes, before its name or after it; the later one wins."""

    def default(value: object) -> object:
        return value if top else argparse.SUPPRESS

    parser.add_argument(
        "--root",
        type=_root,
        default=default(Layout()),
        metavar="DIR",
        dest="layout",
        help="work on the tree under DIR instead of this system",
    )
    parser.add_argument(
        "--config",
        type=lambda text: Path(_path(text)),
        default=default(None),
        metavar="FILE",
        help="read FILE in place of /etc/byteor/firstboot.yaml",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=default(False), help="say more on stderr"
    )
