"""Write lines for people to stderr, with a priority for journald and facts as key=value.

Under systemd (``JOURNAL_STREAM``) a line begins with ``<6>`` and the like, which journald turns
into its priority (the levels of syslog(3)); at a terminal it begins with the program's name.
Machine output goes to stdout, never through here. `redacted` is the second net; the first is that
secrets are of type `Secret`, which prints as ``<secret>``.
"""

from __future__ import annotations

import os
import sys
import syslog
from collections.abc import Iterator
from contextlib import contextmanager

from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import redacted

_program = "byteor"
_verbose = False


def set_up(program: str, *, verbose: bool) -> None:
    """Name the program that prefixes every line; `verbose` lets debug lines through."""
    global _program, _verbose
    _program, _verbose = program, verbose


def error(message: str, **facts: object) -> None:
    """Say why the program ends, or what it could not do."""
    _write(3, f"error: {message}", facts)


def hint(message: str) -> None:
    """Say what to do about the error before."""
    _write(3, f"hint: {message}", {})


def warning(message: str, **facts: object) -> None:
    """Say what went wrong while the program goes on."""
    _write(4, f"warning: {message}", facts)


@contextmanager
def warned(about: str | None = None) -> Iterator[None]:
    """Go on after a LocalFault in the block: it is a warning, behind the words `about`."""
    try:
        yield
    except LocalFault as fault:
        warning(str(fault) if about is None else f"{about}: {fault}", hint=fault.hint)


def notice(message: str, **facts: object) -> None:
    """Say what an operator wants to know."""
    _write(5, message, facts)


def info(message: str, **facts: object) -> None:
    """Say what is done in the normal course."""
    _write(6, message, facts)


def debug(message: str, **facts: object) -> None:
    """Say more, with ``--verbose``."""
    if _verbose:
        _write(7, message, facts)


def audit(layout: Layout, action: str) -> None:
    """Leave one line about a command that changes this host, and who gave it, in the journal.

    By stderr where that is the journal, else by the syslog socket. Nothing for another tree.
    """
    if not layout.is_host:
        return
    sudo = os.environ.get("SUDO_UID", "")
    who = {"uid": os.getuid(), "sudo_uid": sudo if sudo.isdigit() else None}
    if _stderr_is_the_journal():
        notice(f"audit: {action}", **who)
    else:
        syslog.openlog(_program)
        said = " ".join(f"{key}={_word(value)}" for key, value in who.items() if value is not None)
        syslog.syslog(syslog.LOG_NOTICE | syslog.LOG_AUTHPRIV, f"audit: {action} {said}")


def _stderr_is_the_journal() -> bool:
    """Return True when stderr is the stream that systemd named (systemd.exec(5))."""
    try:
        facts = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


def one_line(text: str) -> str:
    """Return `text` with a space for each control character: it cannot forge another line."""
    return "".join(c if c.isprintable() else " " for c in text)


def _write(priority: int, message: str, facts: dict[str, object]) -> None:
    said = [f"{key}={_word(value)}" for key, value in facts.items() if value is not None]
    line = one_line(redacted(" ".join([message, *said])))
    prefix = "" if message.startswith("hint: ") else f"{_program}: "
    if os.environ.get("JOURNAL_STREAM"):
        prefix = f"<{priority}>"
    if sys.stderr is None:
        return  # closed by the caller
    try:
        sys.stderr.write(f"{prefix}{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # a closed stderr must not stop a boot


def _word(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return f'"{text}"' if (" " in text or not text) else text
