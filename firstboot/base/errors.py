"""Define the errors: who must act, which exit code says so, and a hint for the reader.

Every error that a user can meet is one of these. ``str(error)`` is one sentence in lower case
without a secret in it; ``hint`` says what to do, in the raiser's words or the branch's `advice`.
Errors of libraries and of the operating system are translated where they enter (`files`,
`transport`, `seal`, `schema`) with ``raise ... from``. Exit codes are those of contract 8.
"""

from __future__ import annotations


class ByteorError(Exception):
    """Base of everything this package raises on purpose; exit code 1 is for bugs."""

    exit_code = 1
    advice = "this is a bug: please report this line"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint: str = hint or self.advice


class Usage(ByteorError):
    """The command line is wrong: its author must act; never quotes a value of an argument."""

    exit_code = 2
    advice = "see --help"


class NoToken(ByteorError):
    """Nothing to enroll with and not enrolled: a token must be provided."""

    exit_code = 3
    advice = "provide an enrollment token: byteor-firstboot run --help"


class Invalid(ByteorError):
    """Settings or user data are wrong: their author must act."""

    exit_code = 4
    advice = "correct it, then rerun the command"


class Refused(ByteorError):
    """The control plane said no, and will again: an operator must act there."""

    exit_code = 5
    advice = "check this agent and its scopes at the control plane"


class Untrusted(ByteorError):
    """Something signed, or that should be, cannot be trusted: ``Untrusted("malformed", "...")``.

    `code` is a refusal of contract 3, or one of a key set. The control plane must act, or an
    operator.
    """

    exit_code = 5
    advice = "compare byteor-firstboot trust with the control plane's keys, or deploy again there"

    def __init__(self, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class TryAgain(ByteorError):
    """A transient failure: nobody must act yet.

    `retry_after` is what the control plane asked for, in seconds, if it asked. `maybe_arrived` is
    False only when the request certainly never reached it (no connection, no TLS session).
    """

    exit_code = 6
    advice = "retried automatically; if it persists, check the network and the control plane"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
        maybe_arrived: bool = True,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after
        self.maybe_arrived = maybe_arrived


class LocalFault(ByteorError):
    """This host cannot do its part (disk, permissions, missing tool): its owner must act."""

    exit_code = 7
    advice = "fix the cause on this host, then rerun the command"


class Corrupt(LocalFault):
    """A file of ours does not hold what we wrote there."""

    advice = "restore the file, or move it away"


class NoRoom(LocalFault):
    """The disk is full, or would be; `needed`: the bytes that must be free, 0 if not known."""

    def __init__(self, message: str, *, hint: str | None = None, needed: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.needed = needed


class Foreign(ByteorError):
    """The identity on this disk was given to another host."""

    exit_code = 8
    advice = "enroll this host with a token of its own"


class NotErased(ByteorError):
    """Enrolled, but a copy of the token stays in a file that we could have written."""

    exit_code = 9
    advice = "fix the cause, then rerun: byteor-firstboot erase"


class CheckFailed(ByteorError):
    """A validation check of the install guide did not pass."""

    exit_code = 10
    advice = "the lines of the failed checks say what to do"


class NotLaunched(ByteorError):
    """`exec` did not start its command: 125 to 127 are no codes of a command, as with env."""

    exit_code = 125
    advice = "byteor-agent exec --help"
