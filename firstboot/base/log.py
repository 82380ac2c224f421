"""Lines for people on stderr, with a priority that journald understands, and facts as key=value.

Under systemd (``JOURNAL_STREAM``) a line begins with ``<6>`` and the like, which journald turns into its priority;
at a terminal it begins with the program's name. Nothing here is machine output: that goes to stdout. `redacted` is
the second net; the first is that secrets are of type `Secret`, which prints as ``<secret>``.
"""

from __future__ import annotations

import os
import sys

from firstboot.base.secret import redacted

ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7

_program = "byteor"
_verbose = False


def set_up(program: str, *, verbose: bool) -> None:
    """Name the program that prefixes every line; `verbose` lets debug lines through."""
    global _program, _verbose
    _program, _verbose = program, verbose


def error(message: str, **facts: object) -> None:
    _write(ERROR, f"error: {message}", facts)


def hint(message: str) -> None:
    _write(ERROR, f"hint: {message}", {})


def warning(message: str, **facts: object) -> None:
    _write(WARNING, f"warning: {message}", facts)


def notice(message: str, **facts: object) -> None:
    _write(NOTICE, message, facts)


def info(message: str, **facts: object) -> None:
    _write(INFO, message, facts)


def debug(message: str, **facts: object) -> None:
    if _verbose:
        _write(DEBUG, message, facts)


def _write(priority: int, message: str, facts: dict[str, object]) -> None:
    text = " ".join(
        [message, *(f"{key}={_word(value)}" for key, value in facts.items() if value is not None)]
    )
    # One line each: text of a server or a file must not be able to forge a second journal entry.
    line = "".join(c if c.isprintable() else " " for c in redacted(text))
    prefix = (
        f"<{priority}>"
        if os.environ.get("JOURNAL_STREAM")
        else ""
        if line.startswith("hint: ")
        else f"{_program}: "
    )
    try:
        sys.stderr.write(f"{prefix}{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # a closed stderr must not stop a boot


def _word(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return f'"{text}"' if (" " in text or not text) else text
