"""Sealed bytes to plain bytes and back: AES-256-GCM in one versioned format.

The file is JSON of four lines, and nothing else opens:

    {"v": 1,
    "header": {"purpose": "byteor identity", …},
    "nonce": "<24 hex digits>",
    "sealed": "<hex: ciphertext and 16-byte tag>"}

Everything before the nonce's line, version and header, is the associated data, as its bytes stand
in the file: there is no second way to write the same header. The 96-bit nonce is fresh and random:
one key seals a handful of files in its life, far from the 2^32 that NIST SP 800-38D allows for
random nonces, so the key is used as it is, without derivation.
There is one error for every failure to open. Model: age ``primitives.go``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, NoReturn

from firstboot.base.errors import Corrupt

KEY_BYTES = 32
NONCE_BYTES = 12
SEALED_LIMIT = 1 << 21  # bytes of a sealed file; without certificates about 2 KiB

# ASCII on purpose: json.dumps escapes the rest, and a line end inside a header cannot be forged.
_FORMAT = re.compile(
    rb'(?P<bound>\{"v": 1,\n"header": (?P<header>\{[ -~]*\}),\n)'
    rb'"nonce": "(?P<nonce>[0-9a-f]{24})",\n"sealed": "(?P<sealed>(?:[0-9a-f]{2}){16,})"\}\n'
)


def seal(plain: bytes, *, key: bytes, purpose: str, header: Mapping[str, Any]) -> bytes:
    """Return the file's bytes; `header` (JSON-able, cleartext) and `purpose` are authenticated."""
    text = json.dumps({**header, "purpose": purpose}, sort_keys=True, allow_nan=False)
    bound = f'{{"v": 1,\n"header": {text},\n'.encode("ascii")
    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed = _cipher(key).encrypt(nonce, plain, bound)
    return bound + f'"nonce": "{nonce.hex()}",\n"sealed": "{sealed.hex()}"}}\n'.encode("ascii")


def unverified_header(sealed: bytes) -> dict[str, Any]:
    """Return the header that nothing vouches for yet: for choosing a key and for refusing."""
    try:
        header = json.loads(_parts(sealed)["header"])
    except (ValueError, RecursionError) as error:
        _fail(error)
    return header if isinstance(header, dict) else _fail()


def open(sealed: bytes, *, key: bytes, purpose: str) -> bytes:
    """Return the plain bytes; Corrupt for another key, purpose or version, or a changed bit."""
    from cryptography.exceptions import InvalidTag

    parts = _parts(sealed)
    try:
        nonce, content = (
            bytes.fromhex(parts[name].decode("ascii")) for name in ("nonce", "sealed")
        )
        plain: bytes = _cipher(key).decrypt(nonce, content, parts["bound"])
    except (InvalidTag, ValueError) as error:
        _fail(error)
    if unverified_header(sealed).get("purpose") != purpose:
        _fail()
    return plain


def _parts(sealed: bytes) -> re.Match[bytes]:
    return _FORMAT.fullmatch(sealed) or _fail()


def _fail(error: Exception | None = None) -> NoReturn:
    raise Corrupt("the sealed file was changed, or its key is another") from error


def _cipher(key: bytes) -> Any:
    # Imported here: a host that is not enrolled pays neither the time nor the memory.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(key) != KEY_BYTES:
        raise ValueError("a sealing key has 32 bytes")  # AESGCM would take 16 and 24 too
    return AESGCM(key)
