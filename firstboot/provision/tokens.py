"""Which tokens this host has seen, without keeping one: a keyed mark and a class for each (contract 4.3).

``identity/marks.json`` holds a random per-host key and, per token, HMAC-SHA256 truncated to 64 bits, the token's length
(so that copies of a spent token can be recognised anywhere), its class and the boot in which it was last presented.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
from typing import Any

from firstboot.base import files, log
from firstboot.base.errors import Corrupt
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret

VERSION = 1
KEY_BYTES = 32
MARK_BYTES = 8
LONGEST_TOKEN = 4096  # characters (contract 4.1)


class TokenClass(enum.Enum):
    FRESH = "fresh"
    REFUSED = "refused"
    SPENT = "spent"


def _checked(stored: dict[str, Any]) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """Return key and marks; one of the errors of damaged data otherwise."""
    key = bytes.fromhex(stored["key"])
    if stored["v"] != VERSION or len(key) != KEY_BYTES:
        raise ValueError("not a key of ours")
    for mark in stored["marks"].values():
        TokenClass(mark["class"])
        # `erase` looks for texts of these lengths: a damaged one must not send it over the whole disk.
        if not (isinstance(mark["length"], int) and 0 < mark["length"] <= LONGEST_TOKEN):
            raise ValueError("not a mark of ours")
    return key, dict(stored["marks"])


class Marks:
    """The marks of this host, read once; every `put` is durable before it returns."""

    def __init__(self, layout: Layout, key: bytes, marks: dict[str, dict[str, Any]]) -> None:
        self._layout, self._key, self._marks = layout, key, marks

    @classmethod
    def load(cls, layout: Layout, *, repair: bool = True) -> Marks:
        """Read them; without a file a new key is drawn, and kept from the first `put` on.

        A damaged file is set aside (unless `repair` is False), and tokens that were seen look fresh again.
        """
        try:
            stored = files.read_json(layout.marks, private_to=layout.owner)
            if stored is None:
                return cls(layout, secrets.token_bytes(KEY_BYTES), {})
            return cls(layout, *_checked(stored))
        except (Corrupt, KeyError, ValueError, TypeError, AttributeError):
            aside = files.set_aside(layout.marks) if repair else None
            log.warning(
                "marks.json is damaged: tokens that were spent or refused look fresh again",
                kept_as=aside,
            )
            return cls(layout, secrets.token_bytes(KEY_BYTES), {})

    def mark(self, token: Secret) -> str:
        return self._mark(token.reveal().encode())

    def _mark(self, token: bytes) -> str:
        return hmac.new(self._key, token, hashlib.sha256).digest()[:MARK_BYTES].hex()

    def classify(self, token: Secret) -> TokenClass:
        found = self._marks.get(self.mark(token))
        return TokenClass(found["class"]) if found else TokenClass.FRESH

    def presented_in(self, token: Secret) -> str | None:
        found = self._marks.get(self.mark(token))
        return found.get("boot_id") if found else None

    def put(self, token: Secret, kind: TokenClass, *, boot_id: str | None) -> None:
        self.put_mark(self.mark(token), len(token.reveal()), kind, boot_id=boot_id)

    def put_mark(self, mark: str, length: int, kind: TokenClass, *, boot_id: str | None) -> None:
        self._marks[mark] = {"class": kind.value, "length": length, "boot_id": boot_id}
        files.write_json(
            self._layout.marks, {"v": VERSION, "key": self._key.hex(), "marks": self._marks}
        )

    def lengths(self, *classes: TokenClass) -> frozenset[int]:
        wanted = {kind.value for kind in classes}
        return frozenset(
            int(mark["length"]) for mark in self._marks.values() if mark["class"] in wanted
        )

    def recognises(self, candidate: bytes, *classes: TokenClass) -> bool:
        found = self._marks.get(self._mark(candidate))
        return found is not None and TokenClass(found["class"]) in classes
