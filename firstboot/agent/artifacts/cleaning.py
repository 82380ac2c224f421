"""One part of an incident bundle without its secrets: JSON by its structure, text by shape, other bytes in their places.

Programs write what they know into such parts, and nobody knows what that is. So what is under a name of a secret goes
whatever it looks like, what looks like one goes wherever it stands, and the values that one part gives to the three
``BYTEOR_`` variables go from all others too.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from typing import Any

from firstboot.api.multipart import LARGEST
from firstboot.base.documents import load
from firstboot.base.redaction import IDENTITY, names_a_secret, redact
from firstboot.base.secret import MASK, Secret

# Of what stands inside these nothing can be read here.
_CLOSED = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"PK\x03\x04",
    b"7z\xbc\xaf\x27\x1c",
    b"\x04\x22\x4d\x18",
)
_GZIP = b"\x1f\x8b"
# A value that is given to one of the three: name=value and its like, set name value, "name", "value", name and value apart.
_NAMES, _QUOTE, _IS = (
    "(?:" + "|".join(IDENTITY) + ")",
    r"""(?:\\{0,8}["'])?""",
    r"\s{0,8}[:=]\s{0,8}",
)
_VARIABLE = re.compile(
    r"(?:\bset(?:env|(?:\s{1,4}-[A-Za-z-]{1,16}){1,4})\s{1,8}" + _NAMES + r"\s{1,8}"
    r"|\b" + _NAMES + _QUOTE + "(?:" + _IS + r"|(?<=[\"'])\s{0,8},\s{0,8}(?=\\{0,8}[\"'])"
    r"|\s{0,64}[,;]?\s{0,64}" + _QUOTE + "[Vv]al(?:ue)?" + _QUOTE + _IS + "))"
    + _QUOTE + "(?!" + _NAMES + r""")([^\s"',;&)}\]\\\x00]{1,8192})"""
)  # fmt: skip
# A mapping that says name and value apart, as process and container tools do; in any case.
_NAME_MEMBERS, _VALUE_MEMBERS = ("name", "key", "variable"), ("value", "val")
# A name that is nobody's word, so that what follows it in a longer list is its value.
_OF_ENVIRONMENT = re.compile(r"[A-Z0-9]+(?:_[A-Z0-9]+)+")
_USER_OPTIONS = ("-u", "--user", "--proxy-user")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\v\x1b")) + b"\x7f"

Kinds = list[str]


def learn(data: bytes) -> None:
    """Remember what a part gives to the three variables as secrets of this process."""
    if b"BYTEOR_" not in data:
        return
    for value in _VARIABLE.findall(data.decode("utf-8", "surrogateescape")):
        if value != MASK:
            Secret(value)
    try:
        _learn(load(data))
    except (ValueError, RecursionError):
        pass


def _learn(value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in [
            *value.items(),
            *((said, value[member]) for said, member in _apart(value)),
        ]:
            if name in IDENTITY and isinstance(inner, str):
                Secret(inner)
    if isinstance(value, list):
        for name, inner in zip(value, value[1:]):
            if (
                isinstance(name, str)
                and name in IDENTITY
                and isinstance(inner, str)
                and inner not in IDENTITY
            ):
                Secret(inner)
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        _learn(inner)


def clean(data: bytes) -> tuple[bytes, Kinds, bool]:
    """Return the part without secrets, the kinds of what was replaced, and whether all of it could be looked at.

    What holds none comes back byte for byte.
    """
    if data.startswith(_CLOSED):
        return _unpacked(data)
    found = clean_text(data)
    if found is not None:
        return (*found, True)
    text, kinds = redact(data.decode("latin-1"), keep_length=True)
    return (text.encode("latin-1") if kinds else data), kinds, True


def clean_text(data: bytes) -> tuple[bytes, Kinds] | None:
    """The same for a text in UTF-8 or UTF-16, also with a byte of another encoding; None when it is no text."""
    for bom, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(bom):
            text, kinds = redact(
                data[2:].decode(encoding, "surrogatepass" if len(data) % 2 == 0 else "replace")
            )
            return (bom + text.encode(encoding, "surrogatepass") if kinds else data), kinds
    wide = _wide(data)
    if wide is not None:
        text, kinds = redact(data.decode(wide, "surrogatepass"))
        return (text.encode(wide, "surrogatepass") if kinds else data), kinds
    try:
        text, kinds = _text(data.decode("utf-8"))
    except UnicodeDecodeError:
        if data.translate(None, _CONTROLS) != data:
            return None
        text, kinds = _text(data.decode("utf-8", "surrogateescape"))
    return (text.encode("utf-8", "surrogateescape") if kinds else data), kinds


def _wide(data: bytes) -> str | None:
    """The encoding of a text in UTF-16 that does not say so: every second byte of its beginning is zero."""
    for zeros, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        letters = data[1 - zeros : 256 : 2]
        if (
            len(data) >= 8
            and not data[zeros:256:2].strip(b"\0")
            and letters.isascii()
            and b"\0" not in letters
        ):
            try:
                data.decode(encoding, "surrogatepass")
            except UnicodeDecodeError:
                continue
            return encoding
    return None


def _unpacked(data: bytes) -> tuple[bytes, Kinds, bool]:
    """A rotated log is looked into; what is packed otherwise, or twice, is not."""
    if not data.startswith(_GZIP):
        return data, [], False
    try:
        unpacking = zlib.decompressobj(wbits=31)
        inner = unpacking.decompress(data, LARGEST)
    except zlib.error:
        return data, [], False
    if not unpacking.eof or unpacking.unused_data or inner.startswith(_CLOSED):
        return data, [], False
    fresh, kinds, _ = clean(inner)
    if not kinds:
        return data, [], True
    packing = zlib.compressobj(wbits=31)
    return packing.compress(fresh) + packing.flush(), kinds, True


def _text(text: str) -> tuple[str, Kinds]:
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _json(text, indent=1)
        except (ValueError, RecursionError):
            pass
        lines, kinds = [], []
        for line in text.split("\n"):  # a log of one JSON document a line
            try:
                line, found = _json(line) if line.startswith("{") else (line, [])
                kinds += found
            except (ValueError, RecursionError):
                pass
            lines.append(line)
        text = "\n".join(lines)
    else:
        kinds = []
    # An environment as the kernel shows it: values end at NUL.
    pieces = [redact(piece) for piece in text.split("\0")]
    return "\0".join(piece for piece, _ in pieces), _each_once(
        [*kinds, *(kind for _, found in pieces for kind in found)]
    )


def _json(text: str, indent: Any = None) -> tuple[str, Kinds]:
    kinds: Kinds = []
    value = _walk(load(text.encode()), kinds, hidden=False)
    return (json.dumps(value, indent=indent) if kinds else text), _each_once(kinds)


def _walk(value: Any, kinds: Kinds, *, hidden: bool) -> Any:
    """The value without secrets; `hidden`: it stands under the name of one."""
    if isinstance(value, str):
        if hidden:
            found = ["value"] if value not in ("", MASK) else []
            clean_text = MASK if value else value
        else:
            clean_text, found = redact(value)
        kinds.extend(found)
        return clean_text
    if isinstance(value, list):
        return [
            _walk(
                inner,
                kinds,
                hidden=hidden or (at > 0 and _introduces(value[at - 1], inner, len(value))),
            )
            for at, inner in enumerate(value)
        ]
    if isinstance(value, dict):
        apart = {member for said, member in _apart(value) if names_a_secret(said)}
        fresh: dict[str, Any] = {}
        for name, inner in value.items():
            shown = _walk(name, kinds, hidden=False)
            while shown in fresh:
                shown += "'"
            fresh[shown] = _walk(
                inner, kinds, hidden=hidden or names_a_secret(name) or name in apart
            )
        return fresh
    if hidden and isinstance(value, (int, float)) and not isinstance(value, bool):
        kinds.append("value")
        return MASK
    return value


def _apart(value: dict[str, Any]) -> list[tuple[str, str]]:
    """What a mapping such as {"name": "API_KEY", "value": …} names, with the member of the value; nothing for another one."""
    names = [
        said
        for member, said in value.items()
        if member.lower() in _NAME_MEMBERS and isinstance(said, str)
    ]
    return [
        (name, member) for name in names for member in value if member.lower() in _VALUE_MEMBERS
    ]


def _introduces(name: Any, value: Any, count: int) -> bool:
    """Whether an element of a list of `count` says that the next one is a secret: an option, a pair, a variable."""
    if not isinstance(name, str) or (
        isinstance(value, str) and (value.startswith("-") or value in IDENTITY)
    ):
        return False
    if name.startswith("-"):
        return (
            names_a_secret(name)
            if name not in _USER_OPTIONS
            else isinstance(value, str) and ":" in value
        )
    return names_a_secret(name) and (count == 2 or _OF_ENVIRONMENT.fullmatch(name) is not None)


def _each_once(kinds: Kinds) -> Kinds:
    return list(dict.fromkeys(kinds))
