"""Hold a secret as a text that is never printed or serialised.

A token or key is wrapped where it enters the process and unwrapped, by `reveal`, only where it is
spent: in the ``Authorization`` header, in the sealed bytes, in the search for its copies. Every
secret registers itself, so that `redacted` (used by `log` as a second net) can take it out of any
text, however it got there.
"""

from __future__ import annotations

import hmac
from typing import NoReturn

MASK = "<secret>"
# Shorter texts would redact ordinary words; no credential of the contract is shorter than this.
REGISTERED_LENGTH = 8

_known: set[str] = set()


class Secret:
    """Hold one credential; compared in constant time."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text
        if len(text) >= REGISTERED_LENGTH:
            _known.add(text)

    def reveal(self) -> str:
        """Return the secret's text: call it only in the expression that spends it."""
        return self._text

    def __str__(self) -> str:
        return MASK

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not serialised")

    __getstate__ = __reduce__


def known() -> list[bytes]:
    """Return every secret that this process has seen, longest first: one may be part of another."""
    return [text.encode("utf-8", "surrogatepass") for text in sorted(_known, key=len, reverse=True)]


def redacted(text: str) -> str:
    """Replace every secret that this process has seen by ``<secret>``."""
    # Longest first: one may be a part of another.
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text
