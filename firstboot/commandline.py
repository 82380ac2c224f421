"""The grammar that both commands share: how they speak, what every subcommand takes, and the types of its arguments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable, NoReturn

from firstboot import __version__
from firstboot.base.errors import USAGE
from firstboot.base.layout import Layout

EXIT_CODES = """\
exit codes: 0 done · 1 unexpected · 2 usage · 3 no token and not enrolled · 4 settings or user data invalid
  5 the plane refused · 6 gave up on a transient failure · 7 local fault · 8 identity belongs to another host
  9 enrolled, but a copy of the token could not be erased · 10 a validation check failed"""

EXEC = """\
Run COMMAND in place of this process, with BYTEOR_API_BASE_URL, BYTEOR_AGENT_ID and BYTEOR_AGENT_API_KEY set in its
environment and written nowhere. With --user it gets that user's groups, HOME, USER, LOGNAME and SHELL. Core dumps
are off in it. Signals and exit code are COMMAND's own.

example: byteor-agent exec --user byteor -- /usr/bin/byteor-runtime --verbose
exit codes of our own: 125 not started (no root, no identity, no such user) · 126 not executable · 127 not found"""

UPLOAD = """\
Copy FILE into the spool and print its id; the agent uploads it when it can, oldest first, once per content. For root and
byteor-agent. What is shaped like a credential is replaced in a diagnostic that is a text, and in a directory that is
packed as an incident bundle (spec.kv, spec_validation.json, runtime.json, policy_audit.json, environment.json, and
whatever else it holds). A snapshot, and a bundle that is a file already, is sent as it is.

example: byteor-agent upload /var/tmp/incident-7 --kind incident-bundle --wait"""
KINDS = ("incident-bundle", "snapshot", "diagnostic")

Handler = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """argparse whose errors speak like ours."""

    usage_code = USAGE  # what a usage error exits with; `exec` has its own, as env and docker do

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog.split()[0]}: error: {message}\nhint: {self.prog} --help\n")
        sys.exit(self.usage_code)


def grammar(
    program: str, description: str, example: str
) -> tuple[Parser, argparse._SubParsersAction[Parser]]:
    parser = Parser(
        prog=program,
        description=description,
        epilog=f"example: {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    common(parser, top=True)
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    return parser, parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )


def command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    handler: Handler,
    text: str,
    *,
    json: bool = False,
) -> Parser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=EXIT_CODES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common(parser, top=False)
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.set_defaults(handler=handler)
    return parser


def common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    """What every command takes, before its name or after it; the later word wins."""

    def default(value: object) -> object:
        return value if top else argparse.SUPPRESS

    parser.add_argument(
        "--root",
        type=root,
        default=default(Layout()),
        metavar="DIR",
        dest="layout",
        help="work on the tree under DIR instead of this system",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=default(None),
        metavar="FILE",
        help="read FILE in place of /etc/byteor/firstboot.yaml",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=default(False), help="say more on stderr"
    )


def root(text: str) -> Layout:
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return Layout(path)


def from_stdin(text: str) -> str:
    if text != "-":  # argparse's own message would quote the secret
        raise argparse.ArgumentTypeError(
            "a token is never an argument: give - and the token on stdin"
        )
    return text


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("SECONDS is a number that is not negative")
    return value
