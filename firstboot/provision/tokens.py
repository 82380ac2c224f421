"""Remember which tokens this host has seen, and the intent to enroll with one; keep no token.

``identity/marks.json`` holds a random per-host key and, per token, HMAC-SHA256 truncated to 64 bits
with its class and the boot in which it was last presented (contract 4.3).

``identity/intent.json`` is what makes an enrollment safe to repeat, durable before the token is
presented: the Idempotency-Key with the body it belongs to, the agent name asked for, the token's
mark, a fingerprint of the host, and whether an attempt may have been answered without our hearing
it. Every retry, across crashes and reboots, repeats key and body; another body, token or host means
another key.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from firstboot.base import documents, files, inplace, log
from firstboot.base.documents import Digest, Identifier, Line, Rule
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret

VERSION = 1
KEY_BYTES = 32
MARK_BYTES = 8


class TokenClass(enum.Enum):
    """A token's history on this host: never presented, refused, or answered and sealed."""

    FRESH = "fresh"
    REFUSED = "refused"
    SPENT = "spent"


def _is_mark(mark: Any) -> bool:
    classes = [kind.value for kind in TokenClass]
    return isinstance(mark, dict) and mark.get("class") in classes


# Named here: an annotation's lambda would not see this module.
Version = Annotated[int, Rule(lambda v: v == VERSION, f"version {VERSION}")]
Mark = Annotated[str, Rule(lambda t: bool(re.fullmatch("[0-9a-f]{16}", t)), "a mark")]
Body = Annotated[str, Rule(lambda t: t.isascii() and t.isprintable(), "a line of JSON")]
ClassOfMark = Annotated[
    Mapping[str, Any], Rule(lambda marks: all(map(_is_mark, marks.values())), "marks")
]


@dataclass(frozen=True)
class _Stored:
    v: Version
    key: Digest  # 32 bytes in hex; no digest, but of its shape
    marks: ClassOfMark


class Marks:
    """The marks of this host, read once; every `put` is durable before it returns."""

    def __init__(self, layout: Layout, key: bytes, marks: dict[str, dict[str, Any]]) -> None:
        self._layout, self._key, self._marks = layout, key, marks

    @classmethod
    def load(cls, layout: Layout, *, repair: bool = True) -> Marks:
        """Read them; without a file a new key is drawn, and kept from the first `put` on.

        A damaged file is set aside (unless `repair` is False), and tokens that were seen look fresh
        again. LocalFault when the file is not private: its key would let others test guesses.
        """
        try:
            stored = documents.read(layout.marks, _Stored, private_to=layout.owner)
            if stored is not None:
                return cls(layout, bytes.fromhex(stored.key), dict(stored.marks))
        except Corrupt:
            log.warning(
                "marks.json is damaged: tokens that were spent or refused look fresh again",
                kept_as=files.set_aside(layout.marks) if repair else None,
            )
        return cls.none(layout)

    @classmethod
    def none(cls, layout: Layout) -> Marks:
        """Return marks that know no token, under a key that was just drawn."""
        return cls(layout, secrets.token_bytes(KEY_BYTES), {})

    def mark(self, token: Secret) -> str:
        """Return the mark of `token`."""
        return self._mark(token.reveal().encode())

    def _mark(self, token: bytes) -> str:
        return hmac.new(self._key, token, hashlib.sha256).digest()[:MARK_BYTES].hex()

    def classify(self, token: Secret) -> TokenClass:
        """Return the class of `token`; one without a mark is fresh."""
        found = self._marks.get(self.mark(token))
        return TokenClass(found["class"]) if found else TokenClass.FRESH

    def presented_in(self, token: Secret) -> str | None:
        """Return the id of the boot in which `token` was last presented."""
        return self._marks.get(self.mark(token), {}).get("boot_id")

    def put(self, token: Secret, kind: TokenClass, *, boot_id: str | None) -> None:
        """Give `token` a class, durably."""
        self.put_mark(self.mark(token), len(token.reveal()), kind, boot_id=boot_id)

    def put_mark(self, mark: str, length: int, kind: TokenClass, *, boot_id: str | None) -> None:
        """Give a class to a token that only its `mark` tells."""
        self._marks[mark] = {"class": kind.value, "length": length, "boot_id": boot_id}
        files.write_json(
            self._layout.marks, {"v": VERSION, "key": self._key.hex(), "marks": self._marks}
        )

    def lengths(self, *classes: TokenClass) -> set[int]:
        """Return how long the tokens of `classes` are."""
        kinds = [kind.value for kind in classes]
        return {
            length
            for mark in self._marks.values()
            if mark["class"] in kinds and isinstance(length := mark.get("length"), int)
        }

    def recognises(self, candidate: bytes, *classes: TokenClass) -> bool:
        """Return True when `candidate` is a token of one of `classes`."""
        found = self._marks.get(self._mark(candidate))
        return found is not None and TokenClass(found["class"]) in classes


@dataclass(frozen=True)
class Intent:
    """One enrollment that was decided on, as ``intent.json`` holds it."""

    key: Identifier  # a UUID
    body: Body
    name: Line
    token_mark: Mark
    token_length: int
    host: Mapping[str, Any]
    # An attempt went out whose answer never came: it may have spent the token.
    unanswered: bool = False
    # Refused: the key is not used again; kept only to name the agent that may exist.
    ended: bool = False
    v: Version = VERSION

    def save(self, layout: Layout) -> None:
        """Make it durable; LocalFault if the disk does not take it: then present nothing."""
        files.write_json(layout.intent, asdict(self))

    @staticmethod
    def load(layout: Layout, *, repair: bool = True) -> Intent | None:
        """Return the intent on disk; a damaged one is said, and set aside if `repair`."""
        try:
            return documents.read(layout.intent, Intent)
        except Corrupt as error:
            if not _was_wiped(layout.intent):
                aside = files.set_aside(layout.intent) if repair else None
                log.warning(str(error), kept_as=aside)
            elif repair:
                inplace.wipe_file(layout.intent)
            return None

    @staticmethod
    def wipe(layout: Layout) -> None:
        """Overwrite and remove the intent, which has done its work."""
        inplace.wipe_file(layout.intent)


def _was_wiped(path: Path) -> bool:
    """Return True for a file of zeros: a wipe was cut between overwriting and unlinking."""
    try:
        return not (files.read(path, limit=files.JSON_LIMIT) or b"?").strip(b"\0")
    except LocalFault:
        return False
