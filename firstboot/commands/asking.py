"""Ask a person on the terminal before something is removed."""

from __future__ import annotations

import sys

from firstboot.base import log
from firstboot.base.errors import LocalFault


def confirmed(why: str, question: str) -> bool:
    """Say why on stderr and ask; True for yes only. LocalFault where nobody can answer."""
    if not sys.stdin.isatty():
        raise LocalFault(f"{why}; nothing is removed", hint="add --yes")
    log.warning(why)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
