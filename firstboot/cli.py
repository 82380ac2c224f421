"""``byteor-firstboot``, and what both commands do alike: parse, call what a word needs, map its error to exit code and hint.

Imports of the subcommands' modules happen inside their functions: an enrolled host's boot must not load what only an
enrollment needs, and the resident agent must never load what only root needs. No secret is ever an argument.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from firstboot import agentcli
from firstboot.base import log, systemd
from firstboot.base.errors import ByteorError, Invalid, NoToken
from firstboot.commandline import command, from_stdin, grammar, seconds

if TYPE_CHECKING:
    from firstboot.provision.sources import Inputs

INTERRUPTED = 130


def firstboot_main(argv: list[str] | None = None) -> int:
    """Entry point of ``byteor-firstboot``."""
    return _main("byteor-firstboot", _firstboot_parser(), argv)


def agent_main(argv: list[str] | None = None) -> int:
    """Entry point of ``byteor-agent``."""
    own, words = agentcli.split(sys.argv[1:] if argv is None else argv)
    return _main("byteor-agent", agentcli.parser(words, own), own)


def _main(program: str, parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    arguments = parser.parse_args(argv)
    log.set_up(program, verbose=arguments.verbose)
    sys.excepthook = _unexpected
    try:
        return int(arguments.handler(arguments))
    except ByteorError as error:
        if isinstance(error, NoToken) and systemd.under_systemd():
            # A host that is to have no token is not broken: one line in its journal, and none of them an error.
            log.notice(f"{error}; {error.hint}")
            return error.exit_code
        log.error(str(error))
        if error.hint:
            log.hint(error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A bug, in one line and by place alone: the message and the values of a traceback may hold a secret."""
    places = " < ".join(
        f"{frame.name} {frame.filename}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(trace))
    )
    log.error(f"unexpected {kind.__name__} in {places}")
    log.hint("this is a bug of byteor-firstboot: please report this line")


def _firstboot_parser() -> argparse.ArgumentParser:
    parser, commands = grammar(
        "byteor-firstboot",
        "Enroll this host once, seal its identity, erase the token, hand off to byteor-agent.",
        "byteor-firstboot run --token-file - < token",
    )
    run = command(commands, "run", _run, "the whole of first boot; safe any number of times")
    _token_options(run)
    run.add_argument(
        "--again",
        action="store_true",
        help="present a refused token at once, not only in the next boot",
    )
    again = command(
        commands, "reenroll", _reenroll, "replace this host's identity with a fresh token"
    )
    _token_options(again)
    preflight = command(
        commands,
        "preflight",
        _preflight,
        "check everything that can be checked without the token",
        json=True,
    )
    preflight.add_argument(
        "--token-file", metavar="PATH|-", help="read the bare token from PATH or stdin"
    )
    check = command(
        commands,
        "check-userdata",
        _check_userdata,
        "offline: would this user data enroll a host?",
        json=True,
    )
    check.add_argument("file", metavar="FILE|-")
    erase = command(
        commands,
        "erase",
        _erase,
        "erase spent tokens wherever they are, verify, write the receipt",
        json=True,
    )
    erase.add_argument("--refused", action="store_true", help="erase refused tokens too")
    verify = command(
        commands, "verify", _verify, "the install guide's four validation checks", json=True
    )
    verify.add_argument(
        "--operator-token",
        type=from_stdin,
        metavar="-",
        help="read an operator token from stdin for the agent-list check",
    )
    verify.add_argument(
        "--upload-test",
        action="store_true",
        help="upload a small diagnostic artifact, for the fourth check",
    )
    command(
        commands,
        "status",
        _status,
        "where this host is on the path, and what a human must do",
        json=True,
    )
    trust = command(
        commands, "trust", _trust, "whose signatures count here, and what was refused", json=True
    )
    trust.add_argument(
        "--reset",
        action="store_true",
        help="start over: from the pinned keys, else from the plane over TLS",
    )
    command(
        commands,
        "unseal",
        _unseal,
        "open the identity and hand it to the agent (its unit's pre-start step)",
    )
    return parser


def _token_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file", metavar="PATH|-", help="read the bare token from PATH or stdin"
    )
    parser.add_argument(
        "--give-up-after",
        type=seconds,
        metavar="SECONDS",
        help="exit 6 when a transient failure lasts longer (default: never)",
    )


# -- byteor-firstboot


def _inputs(arguments: argparse.Namespace) -> Inputs:
    from firstboot.provision.sources import Inputs

    token_file = getattr(arguments, "token_file", None)
    return Inputs(
        config=arguments.config,
        token_file=token_file,
        stdin=sys.stdin.buffer.read(65537) if token_file == "-" else None,
        environ=os.environ,
        credentials=systemd.credentials_directory(),
    )


def _run(arguments: argparse.Namespace) -> int:
    from firstboot.provision.run import Options, run

    options = Options(again=arguments.again, give_up_after=arguments.give_up_after)
    return run(arguments.layout, _inputs(arguments), options)


def _reenroll(arguments: argparse.Namespace) -> int:
    from firstboot.provision.run import Options, run

    return run(
        arguments.layout,
        _inputs(arguments),
        Options(reenroll=True, give_up_after=arguments.give_up_after),
    )


def _preflight(arguments: argparse.Namespace) -> int:
    from firstboot.provision.preflight import command

    return command(arguments.layout, _inputs(arguments), as_json=arguments.json)


def _check_userdata(arguments: argparse.Namespace) -> int:
    from firstboot.commands.rehearse import check_userdata

    try:
        data = (
            sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
        )
    except OSError as error:
        raise Invalid(f"cannot read {arguments.file}: {error.strerror}") from error
    return check_userdata(data, as_json=arguments.json)


def _erase(arguments: argparse.Namespace) -> int:
    from firstboot.provision.cleanup import erase_again

    return erase_again(
        arguments.layout, _inputs(arguments), refused=arguments.refused, as_json=arguments.json
    )


def _verify(arguments: argparse.Namespace) -> int:
    from firstboot.base.secret import Secret
    from firstboot.commands.verify import Asked, verify

    def upload() -> str:
        from firstboot.commands.upload import upload_test

        return upload_test(arguments.layout)

    token = Secret(sys.stdin.read(8192).strip()) if arguments.operator_token else None
    return verify(
        arguments.layout, Asked(token, arguments.upload_test, upload), as_json=arguments.json
    )


def _status(arguments: argparse.Namespace) -> int:
    from firstboot.base.clock import Clock
    from firstboot.commands.agent_status import look
    from firstboot.commands.page import summary
    from firstboot.commands.status import status

    clock = Clock()
    agent = look(arguments.layout, clock)
    return status(
        arguments.layout,
        _inputs(arguments),
        agent=agent,
        page=summary(agent, now=clock.wall()),
        as_json=arguments.json,
    )


def _trust(arguments: argparse.Namespace) -> int:
    from firstboot.commands.trust import reset, show
    from firstboot.exchange.wake import wake
    from firstboot.provision.image import in_force

    layout, settings = arguments.layout, in_force(arguments.layout, config=arguments.config)
    if not arguments.reset:
        return show(layout, settings, as_json=arguments.json)
    return reset(layout, settings, as_json=arguments.json, tell=lambda: wake(layout))


def _unseal(arguments: argparse.Namespace) -> int:
    from firstboot.provision.unseal import unseal

    return unseal(arguments.layout)
