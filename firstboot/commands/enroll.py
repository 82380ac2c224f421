"""``byteor-firstboot run``, ``reenroll`` and ``erase``: the commands that see a token.

What they need is imported when one runs: `status` and `preflight` take `inputs` from here.
"""

from __future__ import annotations

import argparse
import os
import sys

from firstboot.base import log, systemd
from firstboot.commands.flags import flag
from firstboot.provision.sources import Inputs

LONGEST_STDIN = 65537  # bytes; one more than any source may hold, so that too much is noticed


def inputs(arguments: argparse.Namespace) -> Inputs:
    """Return where a token and settings may come from, as the command line and systemd say."""
    token_file = getattr(arguments, "token_file", None)
    return Inputs(
        config=arguments.config,
        token_file=token_file,
        stdin=sys.stdin.buffer.read(LONGEST_STDIN) if token_file == "-" else None,
        environ=os.environ,
        credentials=systemd.credentials_directory(),
    )


def token_file(parser: argparse.ArgumentParser) -> None:
    """Add ``--token-file``."""
    parser.add_argument(
        "--token-file", type="path", metavar="PATH|-", help="read the bare token from PATH or stdin"
    )


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``run``."""
    reenroll_arguments(parser)
    flag(parser, "--again", "present a refused token at once, not only in the next boot")


def reenroll_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``reenroll``."""
    token_file(parser)
    parser.add_argument(
        "--give-up-after",
        type="seconds",
        metavar="SECONDS",
        help="exit 6 when a transient failure lasts longer (default: never)",
    )


def run_command(arguments: argparse.Namespace) -> int:
    """Do all of first boot."""
    return _run(arguments, again=arguments.again)


def reenroll_command(arguments: argparse.Namespace) -> int:
    """Replace the identity that is here.

    With a bare token (``--token-file``) the routing is that of the identity: no source, which
    others than the operator may have written since, can send the token elsewhere.
    """
    log.audit(arguments.layout, "reenroll")
    return _run(arguments, reenroll=True)


def _run(arguments: argparse.Namespace, *, again: bool = False, reenroll: bool = False) -> int:
    from firstboot.provision.run import Options, run

    options = Options(again, reenroll, arguments.give_up_after)
    return run(arguments.layout, inputs(arguments), options)


def erase_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``erase``."""
    flag(parser, "--refused", "erase refused tokens too")
    flag(parser, "--journal", "if this boot's journal holds a token, remove all of this host's log")
    flag(parser, "--yes", "do not ask before removing the log")


def erase_command(arguments: argparse.Namespace) -> int:
    """Look everywhere again and erase."""
    from firstboot.provision.cleanup import UNIT, erase_again

    if not systemd.inside(UNIT):  # at every boot, and nobody gave it
        log.audit(arguments.layout, "erase" + " --refused" * arguments.refused)
    return erase_again(
        arguments.layout,
        inputs(arguments),
        refused=arguments.refused,
        as_json=arguments.json,
        journal=(_may_empty if not arguments.yes else lambda: True) if arguments.journal else None,
    )


def _may_empty() -> bool:
    from firstboot.commands.asking import confirmed

    why = "the journal holds a token, and emptying it removes all of this host's log"
    return confirmed(why, "remove it?")
