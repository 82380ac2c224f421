"""Add an option that is on or off."""

from __future__ import annotations

import argparse


def flag(parser: argparse.ArgumentParser, name: str, help: str) -> None:
    """Add `name`, which takes no value."""
    parser.add_argument(name, action="store_true", help=help)
