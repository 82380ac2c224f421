"""The error tree: who must act, which exit code says so, and a hint for the person who reads it.

Every error that a user can meet is one of these. ``str(error)`` is one sentence in lower case without a secret in
it; ``hint`` says what to do. Errors of libraries and of the operating system are translated at the door
(`files`, `transport`, `envelope`, `settings`) with ``raise ... from``. Exit codes are those of contract section 8.
"""

from __future__ import annotations

DONE = 0
USAGE = 2


class ByteorError(Exception):
    """Base of everything this package raises on purpose; exit code 1 is for what nobody foresaw."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class Usage(ByteorError):
    """The command line is wrong: its author must act; never quotes a value of an argument."""

    exit_code = USAGE


class NoToken(ByteorError):
    """Nothing to enroll with and not enrolled: whoever launches hosts must provide a token."""

    exit_code = 3


class Invalid(ByteorError):
    """Settings or user data are wrong: their author must act."""

    exit_code = 4


class Refused(ByteorError):
    """The control plane said no, for good: an operator must act there."""

    exit_code = 5


class Untrusted(ByteorError):
    """Something signed, or that should be, cannot be trusted; `code` is a refusal of contract 3, or one of the key sets.

    The plane must act, or the operator: ``Untrusted("bad_signature", "one sentence")``.
    """

    exit_code = 5

    def __init__(self, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class TryAgain(ByteorError):
    """A transient failure: nobody must act yet.

    `retry_after` is what the plane asked for, in seconds, if it asked. `maybe_arrived` is False only when the
    request certainly never reached the plane (no connection, no TLS session).
    """

    exit_code = 6

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


class Corrupt(LocalFault):
    """A file of ours does not hold what we wrote there."""


class Foreign(ByteorError):
    """The identity on this disk was given to another host."""

    exit_code = 8


class NotErased(ByteorError):
    """Enrolled, but a copy of the token stays in a file that we could have written."""

    exit_code = 9


class CheckFailed(ByteorError):
    """A validation check of the guide did not pass."""

    exit_code = 10


class NotLaunched(ByteorError):
    """`exec` did not start its command: the exit codes from 125 on are not those of a command, as with env and docker."""

    exit_code = 125
