"""Takes what is shaped like a credential out of a text before it leaves this host: a third net, after types and `secret`.

Diagnostics and artifacts hold other programs' words: journal lines, command output, configuration. What they hold of
secrets is unknown, so whatever looks like one goes, at the price of some harmless text. It cannot find a secret that
looks like an ordinary word; who collects a diagnostic must not put such into it.

>>> redact("GET / Authorization: Bearer abc.def")
('GET / Authorization: <secret>', ['authorization'])
"""

from __future__ import annotations

import re

from firstboot.base.secret import MASK, redacted

IDENTITY = ("BYTEOR_API_BASE_URL", "BYTEOR_AGENT_ID", "BYTEOR_AGENT_API_KEY")

# How far a structure is followed that does not end, in characters.
FARTHEST = 1 << 16
MOST_PASSES = 4  # what one pattern took away can show something to an earlier one

# Every repeat that something must follow is bounded, and short: no text makes a pattern take quadratic time.
_QUOTE = r"""(?:\\{0,8}["'])"""  # also one of JSON within a JSON text
# Of a name and what stands between it and its value, in shell, JSON, YAML, TOML, INI, URLs and headers.
_BETWEEN = _QUOTE + r"?\s{0,8}(?:=>|:=|[:=])\s{0,8}"
_QUOTED = (
    r"(?:(?P<escapes>\\{1,8})\"(?:[^\"\\\n]|(?!(?P=escapes)\")\\{1,31}\"?){1,65536}(?:(?P=escapes)\")?"
    r"|\"{3}(?:(?!\"{3})[\s\S]){0,65536}(?:\"{3})?|'{3}(?:(?!'{3})[\s\S]){0,65536}(?:'{3})?"
    r"|\"(?:\\.|[^\"\\\n]){1,65536}\"?|'(?:\\.|[^'\\\n]){1,65536}'?)"
)
# A value: quoted, else up to white space or what ends a value. One that opens a structure goes with all of it.
_VALUE = r"(?!" + MASK + ")(?P<value>" + _QUOTED + r"|[^\s\"',;&)}\]]{1,65536})"
# Where something must follow: taken or left as a whole.
_ATOMIC_VALUE = "(?=(?P<atom>" + _VALUE + "))(?P=atom)"
_NAME = (
    r"(?:(?:(?-i:[A-Za-z][a-z0-9]{0,40}(?:[A-Z][a-z0-9]{0,40}){0,8}(?=[A-Z])))?"  # of a name like clientSecret
    r"(?:pass(?:words?|wd|phrases?)?|pwd|psk|secrets?|tokens?|keys?|credentials?|auth|cookies?|sess(?:ion)?_?id|signature|sig)"
    # What no ordinary word ends in: also after other words without anything between.
    r"|[A-Za-z0-9]{0,40}?(?:passwords?|passwd|passphrases?|secrets?|tokens?|credentials?"
    r"|(?:api|secret|private|access|account|master|shared|signing|encryption|ssh)keys?))"
    r"(?:[_.-]?(?:data|value|text|base64|b64))?(?:_?[0-9]{1,3})?"
)
_WHOLE_NAME = r"(?:(?:[A-Za-z0-9]{1,40}[_.-]){0,6}" + _NAME + "|" + "|".join(IDENTITY) + ")"
_SET = r"(?<![A-Za-z0-9])(?:setenv|set(?:\s{1,4}-[A-Za-z-]{1,16}){1,4})\s{1,8}"  # of csh and fish
_SAID_APART = _QUOTE + r"?\s{0,64}[,;]?\s{0,64}" + _QUOTE + "?val(?:ue)?" + _BETWEEN


def _any_case(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


# What was found -> pattern; what its group `kept` matches stays. The order matters: whole blocks, then values.
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "private_key",
        # A block that is cut off (the tail of a journal) is a secret as well.
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:(?!-----END )[\s\S]){0,65536}(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
        ),
    ),
    (
        "identity",
        re.compile(r"(?P<kept>\b(?:" + "|".join(IDENTITY) + ")" + _BETWEEN + ")" + _VALUE),
    ),
    ("authorization", _any_case(r"(?P<kept>\b(?:proxy-)?authorization" + _BETWEEN + r")[^\r\n]+")),
    (
        "authorization",
        _any_case(r"(?<![A-Za-z0-9.])(?:Bearer|Basic)[ \t]{1,8}[A-Za-z0-9._~+/=-]{8,65536}"),
    ),
    (
        "jwt",
        re.compile(
            r"\beyJ[A-Za-z0-9_-]{5,8192}\.[A-Za-z0-9_-]{2,8192}(?:\.[A-Za-z0-9_-]{0,8192})?"
        ),
    ),
    (
        "url_password",
        re.compile(r"(?P<kept>\b[A-Za-z][A-Za-z0-9+.-]{1,20}://)[^\s/?#@\"'<>]{1,1024}(?=@)"),
    ),
    (
        "token",
        # Of this plane, and of those whose tokens tell their kind: they are found wherever they stand.
        re.compile(
            r"(?<![A-Za-z0-9])(?:be[tk]_[A-Za-z0-9_-]{4,4096}|b(?:rk|op)_[A-Za-z0-9_-]{16,4096}"
            r"|gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_\w{20,255}|glpat-[\w-]{16,255}"
            r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}|sk-[A-Za-z0-9_-]{20,255}|(?:AKIA|ASIA)[A-Z0-9]{16})(?![A-Za-z0-9])"
        ),
    ),
    # A block of YAML, and a list there: the lines that are farther in.
    (
        "value",
        _any_case(
            r"(?P<kept>^(?P<indent>[ \t]{0,64})(?:[^\n:]{0,80}[^A-Za-z0-9\n:])?"
            + _NAME
            + _QUOTE
            + r"?[ \t]{0,8}:[ \t]{0,8})"
            r"(?:[|>][0-9+-]{0,2}[ \t]{0,8}(?:\r?\n(?:(?P=indent)[ \t][^\n]*|[ \t]{0,64}(?=\r?\n)))+"
            r"|(?:\r?\n(?P=indent)[ \t]{0,64}-[ \t][^\n]*)+)"
        ),
    ),
    (
        "value",
        _any_case(r"(?P<kept>\b(?:set-)?cookie" + _QUOTE + r"?[ \t]{0,8}:[ \t]{0,8})[^\r\n]+"),
    ),
    # Name and value apart: of containers, in XML's attributes, as a pair, as shells set it.
    (
        "value",
        _any_case(
            r"(?P<kept>(?<![A-Za-z0-9])(?:name|key|variable)"
            + _BETWEEN
            + _QUOTE
            + "?"
            + _WHOLE_NAME
            + _SAID_APART
            + ")"
            + _VALUE
        ),
    ),
    (
        "value",
        _any_case(
            r"(?P<kept>[\[(]\s{0,64}"
            + _QUOTE
            + _WHOLE_NAME
            + _QUOTE
            + r"\s{0,8},\s{0,64})(?=\\{0,8}[\"'])"
            + _ATOMIC_VALUE
            + r"(?=\s{0,64}[\])])"
        ),
    ),
    ("value", _any_case("(?P<kept>" + _SET + _WHOLE_NAME + r"\s{1,8})" + _VALUE)),
    ("value", _any_case(r"(?P<kept>(?<![A-Za-z0-9])" + _NAME + _BETWEEN + ")" + _VALUE)),
    # An argument list in JSON or Python: "--password", "hunter2".
    (
        "value",
        _any_case(
            r"(?P<kept>"
            + _QUOTE
            + "--?"
            + _WHOLE_NAME
            + _QUOTE
            + r"\s{0,8},\s{0,64})(?!\\{0,8}[\"'](?:-|"
            + MASK
            + r"))"
            r"(?=\\{0,8}[\"'])" + _VALUE
        ),
    ),
    ("value", _any_case(r"(?P<kept>(?<!\S)--?" + _WHOLE_NAME + r"\s{1,8})(?!-)" + _VALUE)),
    # Of curl: user and password; not the two numbers of a container's user.
    (
        "value",
        _any_case(
            r"(?P<kept>(?<!\S)(?:-u|--user|--proxy-user)(?:\s{1,8}|=)[\"']?(?![0-9]{1,10}:[0-9]{1,10}(?![^\s\"']))[^\s:\"'/<>]{1,256}:)"
            + _VALUE
        ),
    ),
    # Of netrc, and a line of a configuration that says no more than this.
    (
        "value",
        _any_case(
            r"(?P<kept>(?<!\S)(?:login|machine)\s{1,8}\S{1,256}\s{1,8}password\s{1,8})" + _VALUE
        ),
    ),
    (
        "value",
        _any_case(
            r"(?P<kept>^[ \t]{0,64}(?:password|passwd|passphrase|requirepass|masterauth)[ \t]{1,64})"
            + _ATOMIC_VALUE
            + r"(?=[ \t]{0,64}\r?$)"
        ),
    ),
    # Of XML. Last, as what we write looks like a part of it.
    (
        "value",
        _any_case(
            r"(?P<kept><(?P<tag>(?:[A-Za-z0-9]{1,40}:)?" + _WHOLE_NAME + r")(?:\s[^<>]{0,512})?>)"
            r"(?:<!\[CDATA\[[^<>]{0,8192}\]\]>|[^<>]{1,8192})(?=</(?P=tag)\s{0,8}>)"
        ),
    ),
)


_SENSITIVE = re.compile(
    r"(?<![A-Za-z0-9])(?:" + _NAME + r"|(?:proxy-)?authorization)\Z", re.IGNORECASE
)
# Strings and brackets; without the strings where they are JSON within a text.
_IN_STRUCTURE, _BRACKETS = (
    re.compile(r'"(?:[^"\\]|\\[\s\S]){0,65536}"?|[\[\]{}]'),
    re.compile(r"[\[\]{}]"),
)
_ESCAPED = re.compile(r"[\[{\s]{1,64}\\")


def names_a_secret(name: str) -> bool:
    """Whether what stands under `name` in a structure is taken for a secret whatever it looks like.

    >>> [names_a_secret(name) for name in ("DB_PASSWORD", "clientSecret", "keyboard")]
    [True, True, False]
    """
    return name in IDENTITY or _SENSITIVE.search(name) is not None


def redact(text: str, *, keep_length: bool = False) -> tuple[str, list[str]]:
    """Return `text` with ``<secret>`` for all that is shaped like a credential, and what kinds were found, each once.

    Safe to repeat: a redacted text comes back as it is, without kinds. With `keep_length` a secret becomes as many ``x``,
    for bytes whose places mean something: not to be repeated.
    """
    kinds: list[str] = []
    known = redacted(text, keep_length=keep_length)
    if known != text:
        kinds.append("known")
    text = known
    for _ in range(1 if keep_length else MOST_PASSES):
        before = text
        for kind, pattern in _PATTERNS:
            text, changed = _replaced(pattern, text, keep_length)
            if changed and kind not in kinds:
                kinds.append(kind)
        if text == before:
            break
    return text, kinds


def _replaced(pattern: re.Pattern[str], text: str, keep_length: bool) -> tuple[str, bool]:
    pieces: list[str] = []
    at = 0
    while found := pattern.search(text, at):
        parts = found.groupdict()
        begin, end = found.start() + len(parts.get("kept") or ""), found.end()
        if parts.get("value") and text[begin] in "[{":
            end = max(end, _closing(text, begin))
        pieces += [text[at:begin], "x" * (end - begin) if keep_length else MASK]
        at = end
    fresh = "".join([*pieces, text[at:]])
    return fresh, fresh != text


def _closing(text: str, begin: int) -> int:
    """Where the structure ends that opens at `begin`; where it does not end, `FARTHEST` from there."""
    depth, limit = 0, begin + FARTHEST
    for token in (_BRACKETS if _ESCAPED.match(text, begin) else _IN_STRUCTURE).finditer(
        text, begin, limit
    ):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group(), 0)
        if not depth:
            return token.end()
    return min(limit, len(text))
