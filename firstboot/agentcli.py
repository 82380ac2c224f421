"""``byteor-agent``: its words, and what each one calls. Imports happen inside, for what `cli` says of it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from firstboot.base import log, systemd
from firstboot.base.errors import ByteorError, Invalid, NotLaunched
from firstboot.commandline import EXEC, EXIT_CODES, KINDS, UPLOAD, Parser, command, grammar


def split(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """What is ours, and for `exec` the command after ``--``: argparse must not look at the options of that one."""
    if "--" in argv and "exec" in argv[: argv.index("--")]:
        at = argv.index("--")
        return argv[:at], argv[at + 1 :]
    return argv, None


def parser(words: list[str] | None, own: list[str]) -> Parser:
    """The grammar; `words` is the command of `exec`, `own` what is ours to parse."""
    top, commands = grammar(
        "byteor-agent",
        "The runtime of an enrolled host: heartbeats, signed deployments and artifacts, with its own runtime key.",
        "byteor-agent status",
    )
    command(commands, "run", _run, "the loops; what byteor-agent.service calls")
    launch = command(
        commands,
        "exec",
        _exec,
        "run a command with this host's identity in its environment; root only",
    )
    launch.usage = "%(prog)s [-h] [--root DIR] [-v] [--user USER] -- COMMAND [ARGUMENT ...]"
    launch.description, launch.epilog = EXEC, None
    launch.usage_code = NotLaunched.exit_code
    launch.add_argument(
        "--user",
        metavar="USER",
        help="the user (name or id) to run COMMAND as; without it, as the caller",
    )
    launch.set_defaults(words=words)
    command(
        commands,
        "activate",
        _activate,
        "the root activator: judge and activate what the agent brought",
    )
    command(
        commands,
        "status",
        _status,
        "loops, last answers, next attempts, problems with hints",
        json=True,
    )
    command(
        commands,
        "deployments",
        _deployments,
        "what was deployed, with verdicts and reasons",
        json=True,
    )
    upload = command(
        commands, "upload", _upload, "hand an artifact to the spool; returns when it is durable"
    )
    upload.description, upload.epilog = UPLOAD, EXIT_CODES
    upload.add_argument(
        "file", metavar="FILE", type=Path, help="a regular file, or the directory of an incident"
    )
    upload.add_argument("--kind", required=True, choices=KINDS)
    upload.add_argument(
        "--wait", action="store_true", help="stay until the plane has it, or refuses it"
    )
    retry = command(
        commands, "retry", _retry, "try a failed deployment or a refused artifact once more"
    )
    retry.add_argument(
        "id",
        metavar="ID",
        help="as `deployments` shows it (with or without its sequence), or `status`",
    )
    if "exec" in own:  # what stands before or after it may be what the top parser complains about
        top.usage_code = NotLaunched.exit_code
    return top


def _run(arguments: argparse.Namespace) -> int:
    from firstboot.agent.supervisor import start

    return start(arguments.layout, config=arguments.config)


def _exec(arguments: argparse.Namespace) -> int:
    from firstboot.commands.execute import launch

    if not arguments.words:
        raise NotLaunched("exec needs a command", hint="byteor-agent exec --user USER -- COMMAND")
    launch(arguments.layout, arguments.words, user=arguments.user, environ=os.environ)


def _status(arguments: argparse.Namespace) -> int:
    from firstboot.commands.agent_status import status

    return status(arguments.layout, as_json=arguments.json)


def _activate(arguments: argparse.Namespace) -> int:
    from firstboot.activate.activator import run
    from firstboot.provision.image import in_force

    return run(arguments.layout, in_force(arguments.layout, config=arguments.config))


def _deployments(arguments: argparse.Namespace) -> int:
    from firstboot.commands.history import deployments

    return deployments(arguments.layout, as_json=arguments.json)


def _retry(arguments: argparse.Namespace) -> int:
    from firstboot.activate import activator, again
    from firstboot.commands.retry import retry_artifact
    from firstboot.exchange.wake import wake
    from firstboot.provision.image import in_force

    if retry_artifact(arguments.layout, arguments.id):
        return 0
    named = again.retry_deployment(arguments.layout, arguments.id)
    if named is None:
        raise Invalid(
            f"there is no deployment or refused artifact {arguments.id}",
            hint="byteor-agent deployments; byteor-agent status",
        )
    log.notice(f"{named} is tried once more")
    if arguments.layout.is_host and systemd.booted():
        systemd.start("byteor-activate.service")
        return 0
    activator.run(arguments.layout, in_force(arguments.layout, config=arguments.config))
    wake(arguments.layout)  # there is something to report
    return 0


def _upload(arguments: argparse.Namespace) -> int:
    from firstboot.base.secret import Secret
    from firstboot.commands.upload import upload
    from firstboot.identity import store

    Secret(
        os.environ.get("BYTEOR_AGENT_API_KEY", "")
    )  # known from here on, and so found by its value
    try:
        store.required(
            arguments.layout
        )  # who may open it: the key is then known, and found wherever it stands
    except ByteorError:
        pass
    return upload(arguments.layout, arguments.file, kind=arguments.kind, wait=arguments.wait)
