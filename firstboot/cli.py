"""The two commands: parse, load what the subcommand needs, call it, map its error to exit code and hint.

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
from typing import TYPE_CHECKING, List, Optional, Tuple, Type

from firstboot import log, systemd
from firstboot.commandline import EXEC, EXIT_CODES, KINDS, UPLOAD, Parser, command, from_stdin, grammar, seconds
from firstboot.errors import ByteorError, Invalid, NotLaunched, NoToken

if TYPE_CHECKING:
    from firstboot.provision.sources import Inputs

INTERRUPTED = 130


def firstboot_main(argv: Optional[List[str]] = None) -> int:
    """Entry point of ``byteor-firstboot``."""
    return _main("byteor-firstboot", _firstboot_parser(), argv)


def agent_main(argv: Optional[List[str]] = None) -> int:
    """Entry point of ``byteor-agent``."""
    own, words = _split(sys.argv[1:] if argv is None else argv)
    parser = _agent_parser(words)
    if "exec" in own:  # what stands before or after it may be what the top parser complains about
        parser.usage_code = NotLaunched.exit_code
    return _main("byteor-agent", parser, own)


def _split(argv: List[str]) -> Tuple[List[str], Optional[List[str]]]:
    """What is ours, and for `exec` the command after ``--``: argparse must not look at the options of that one."""
    if "--" in argv and "exec" in argv[: argv.index("--")]:
        at = argv.index("--")
        return argv[:at], argv[at + 1 :]
    return argv, None


def _main(program: str, parser: argparse.ArgumentParser, argv: Optional[List[str]]) -> int:
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


def _unexpected(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
    """A bug, in one line and by place alone: the message and the values of a traceback may hold a secret."""
    places = " < ".join(f"{frame.name} {frame.filename}:{frame.lineno}" for frame in reversed(traceback.extract_tb(trace)))
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
    run.add_argument("--again", action="store_true", help="present a refused token at once, not only in the next boot")
    again = command(commands, "reenroll", _reenroll, "replace this host's identity with a fresh token")
    _token_options(again)
    preflight = command(commands, "preflight", _preflight, "check everything that can be checked without the token", json=True)
    preflight.add_argument("--token-file", metavar="PATH|-", help="read the bare token from PATH or stdin")
    check = command(commands, "check-userdata", _check_userdata, "offline: would this user data enroll a host?", json=True)
    check.add_argument("file", metavar="FILE|-")
    erase = command(commands, "erase", _erase, "erase spent tokens wherever they are, verify, write the receipt", json=True)
    erase.add_argument("--refused", action="store_true", help="erase refused tokens too")
    verify = command(commands, "verify", _verify, "the install guide's four validation checks", json=True)
    verify.add_argument(
        "--operator-token", type=from_stdin, metavar="-", help="read an operator token from stdin for the agent-list check"
    )
    verify.add_argument("--upload-test", action="store_true", help="upload a small diagnostic artifact, for the fourth check")
    command(commands, "status", _status, "where this host is on the path, and what a human must do", json=True)
    trust = command(commands, "trust", _trust, "whose signatures count here, and what was refused", json=True)
    trust.add_argument("--reset", action="store_true", help="start over: from the pinned keys, else from the plane over TLS")
    command(commands, "unseal", _unseal, "open the identity and hand it to the agent (its unit's pre-start step)")
    return parser


def _token_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--token-file", metavar="PATH|-", help="read the bare token from PATH or stdin")
    parser.add_argument(
        "--give-up-after",
        type=seconds,
        metavar="SECONDS",
        help="exit 6 when a transient failure lasts longer (default: never)",
    )


def _agent_parser(words: Optional[List[str]]) -> Parser:
    parser, commands = grammar(
        "byteor-agent",
        "The runtime of an enrolled host: heartbeats, signed deployments and artifacts, with its own runtime key.",
        "byteor-agent status",
    )
    command(commands, "run", _agent_run, "the loops; what byteor-agent.service calls")
    launch = command(commands, "exec", _exec, "run a command with this host's identity in its environment; root only")
    launch.usage = "%(prog)s [-h] [--root DIR] [-v] [--user USER] -- COMMAND [ARGUMENT ...]"
    launch.description, launch.epilog = EXEC, None
    launch.usage_code = NotLaunched.exit_code
    launch.add_argument("--user", metavar="USER", help="the user (name or id) to run COMMAND as; without it, as the caller")
    launch.set_defaults(words=words)
    command(commands, "activate", _activate, "the root activator: judge and activate what the agent brought")
    command(commands, "status", _agent_status, "loops, last answers, next attempts, problems with hints", json=True)
    command(commands, "deployments", _deployments, "what was deployed, with verdicts and reasons", json=True)
    upload = command(commands, "upload", _upload, "hand an artifact to the spool; returns when it is durable")
    upload.description, upload.epilog = UPLOAD, EXIT_CODES
    upload.add_argument("file", metavar="FILE", type=Path, help="a regular file, or the directory of an incident")
    upload.add_argument("--kind", required=True, choices=KINDS)
    upload.add_argument("--wait", action="store_true", help="stay until the plane has it, or refuses it")
    retry = command(commands, "retry", _retry, "try a failed deployment or a refused artifact once more")
    retry.add_argument("id", metavar="ID", help="as `deployments` shows it (with or without its sequence), or `status`")
    return parser


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
    from firstboot.provision.sequence import Options, run

    options = Options(again=arguments.again, give_up_after=arguments.give_up_after)
    return run(arguments.layout, _inputs(arguments), options)


def _reenroll(arguments: argparse.Namespace) -> int:
    from firstboot.provision.sequence import Options, run

    return run(arguments.layout, _inputs(arguments), Options(reenroll=True, give_up_after=arguments.give_up_after))


def _preflight(arguments: argparse.Namespace) -> int:
    from firstboot.provision.preflight import command

    return command(arguments.layout, _inputs(arguments), as_json=arguments.json)


def _check_userdata(arguments: argparse.Namespace) -> int:
    from firstboot.provision.check import check_userdata

    try:
        data = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read {arguments.file}: {error.strerror}") from error
    return check_userdata(data, as_json=arguments.json)


def _erase(arguments: argparse.Namespace) -> int:
    from firstboot.provision.erasure import erase_again

    return erase_again(arguments.layout, _inputs(arguments), refused=arguments.refused, as_json=arguments.json)


def _verify(arguments: argparse.Namespace) -> int:
    from firstboot.secret import Secret
    from firstboot.verify import Asked, verify

    def upload() -> str:
        from firstboot.agent.upload import upload_test

        return upload_test(arguments.layout)

    token = Secret(sys.stdin.read(8192).strip()) if arguments.operator_token else None
    return verify(arguments.layout, Asked(token, arguments.upload_test, upload), as_json=arguments.json)


def _status(arguments: argparse.Namespace) -> int:
    from firstboot.agent.page import summary
    from firstboot.agent.status import look
    from firstboot.clock import Clock
    from firstboot.provision.status import status

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
    from firstboot.activate.trust_command import reset, show

    return (reset if arguments.reset else show)(arguments.layout, as_json=arguments.json)


def _unseal(arguments: argparse.Namespace) -> int:
    from firstboot.provision.unseal import unseal

    return unseal(arguments.layout)


# -- byteor-agent


def _agent_run(arguments: argparse.Namespace) -> int:
    from firstboot.agent.supervisor import start

    return start(arguments.layout, config=arguments.config)


def _exec(arguments: argparse.Namespace) -> int:
    from firstboot.launch import launch

    if not arguments.words:
        raise NotLaunched("exec needs a command", hint="byteor-agent exec --user USER -- COMMAND")
    launch(arguments.layout, arguments.words, user=arguments.user, environ=os.environ)


def _agent_status(arguments: argparse.Namespace) -> int:
    from firstboot.agent.status import status

    return status(arguments.layout, as_json=arguments.json)


def _activate(arguments: argparse.Namespace) -> int:
    from firstboot.activate.activator import run

    if arguments.config is None:
        return run(arguments.layout)
    # Of an agent whose identity is its environment: no first boot has frozen any settings there.
    from firstboot.provision.image import settings_of

    return run(arguments.layout, settings=settings_of(arguments.layout, config=arguments.config))


def _deployments(arguments: argparse.Namespace) -> int:
    from firstboot.activate.listing import deployments

    return deployments(arguments.layout, as_json=arguments.json)


def _retry(arguments: argparse.Namespace) -> int:
    from firstboot.activate import activator, again
    from firstboot.agent.retry import retry_artifact

    if retry_artifact(arguments.layout, arguments.id):
        return 0
    named = again.retry_deployment(arguments.layout, arguments.id)
    if named is None:
        raise Invalid(
            f"there is no deployment or refused artifact {arguments.id}", hint="byteor-agent deployments; byteor-agent status"
        )
    log.notice(f"{named} is tried once more")
    if arguments.layout.is_host and systemd.booted():
        systemd.start("byteor-activate.service")
        return 0
    return activator.run(arguments.layout)


def _upload(arguments: argparse.Namespace) -> int:
    from firstboot.agent.upload import upload

    return upload(arguments.layout, arguments.file, kind=arguments.kind, wait=arguments.wait)
