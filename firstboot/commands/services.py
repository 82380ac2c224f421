"""The commands that only units call: ``unseal``, ``shield``, the agent's ``run`` and ``activate``.

Three processes with different privileges: each imports only what is its own.
"""

from __future__ import annotations

import argparse


def unseal_command(arguments: argparse.Namespace) -> int:
    """Open the identity and hand it to the agent."""
    from firstboot.provision.unseal import unseal

    return unseal(arguments.layout)


def shield_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the step."""
    parser.add_argument("step", choices=("up", "bind", "down"), help="see byteor-shield.service")


def shield_command(arguments: argparse.Namespace) -> int:
    """Take one step of the shield; imports nothing but `base`, since it runs before cloud-init."""
    from firstboot.provision.erase.shield import Shield

    getattr(Shield(arguments.layout), arguments.step)()
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Run the agent until it is told to stop."""
    from firstboot.agent.signals import Signals

    signals = Signals()
    signals.follow()  # before what takes long to import
    from firstboot.agent.supervisor import start

    return start(arguments.layout, signals, config=arguments.config)


def activate_command(arguments: argparse.Namespace) -> int:
    """Judge what the agent fetched, and activate it."""
    from firstboot.activate.activator import run
    from firstboot.provision.sources import in_force

    return run(arguments.layout, lambda: in_force(arguments.layout, config=arguments.config))
