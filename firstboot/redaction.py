"""Takes what is shaped like a credential out of a text before it leaves this host: a third net, after types and `secret`.

Diagnostics and artifacts hold other programs' words: journal lines, command output, configuration. What they hold of
secrets is unknown, so whatever looks like one goes, at the price of some harmless text. It cannot find a secret that
looks like an ordinary word; who collects a diagnostic must not put such into it.

>>> redact("GET / Authorization: Bearer abc.def")
('GET / Authorization: <secret>', ['authorization'])
"""

from __future__ import annotations

import re
from typing import List, Tuple

from firstboot.secret import MASK, redacted

IDENTITY = ("BYTEOR_API_BASE_URL", "BYTEOR_AGENT_ID", "BYTEOR_AGENT_API_KEY")

# Of a name and what stands between it and its value, in shell, JSON, YAML, TOML, INI, URLs and headers.
_BETWEEN = r"""["']?\s{0,8}(?:=>|[:=])\s{0,8}"""
# A value: quoted, else up to white space or what ends a value. Bounded: no text makes a pattern take quadratic time.
_VALUE = r"""(?:\[[^\[\]]{1,8192}\]|"(?:\\.|[^"\\\n]){1,8192}"?|'(?:\\.|[^'\\\n]){1,8192}'?|[^\s"',;&)}\]]{1,8192})"""
_NAMES = (
    r"(?:[A-Za-z0-9]{1,40}[_.-]){0,6}"
    r"(?:(?-i:[a-z][a-z0-9]{0,40}(?:[A-Z][a-z0-9]{0,40}){0,4}(?=[A-Z])))?"  # of a name like clientSecret
    r"(?:pass(?:word|wd|phrase)?|pwd|secrets?|tokens?|keys?|apikeys?|credentials?|auth|cookie|signature|sig)"
)

# What was found -> pattern; what its group `kept` matches stays. The order matters: whole blocks, then values.
_PATTERNS: Tuple[Tuple[str, re.Pattern[str]], ...] = (
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
    (
        "authorization",
        re.compile(r"(?P<kept>\b(?:proxy-)?authorization" + _BETWEEN + r")[^\r\n]{1,8192}", re.IGNORECASE),
    ),
    ("authorization", re.compile(r"\b(?:Bearer|Basic)\s{1,8}[A-Za-z0-9._~+/=-]{8,8192}", re.IGNORECASE)),
    ("jwt", re.compile(r"\beyJ[A-Za-z0-9_-]{5,8192}\.[A-Za-z0-9_-]{2,8192}(?:\.[A-Za-z0-9_-]{0,8192})?")),
    ("url_password", re.compile(r"(?P<kept>\b[A-Za-z][A-Za-z0-9+.-]{1,20}://)[^\s/?#@\"'<>]{1,1024}(?=@)")),
    (
        "token",
        # Of this plane, and of those whose tokens tell their kind: they are found wherever they stand.
        re.compile(
            r"(?<![A-Za-z0-9])(?:be[tk]_[A-Za-z0-9_-]{4,4096}|gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_\w{20,255}|glpat-[\w-]{16,255}"
            r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}|sk-[A-Za-z0-9_-]{20,255}|(?:AKIA|ASIA)[A-Z0-9]{16})(?![A-Za-z0-9])"
        ),
    ),
    ("value", re.compile(r"(?P<kept>(?<![A-Za-z0-9])" + _NAMES + _BETWEEN + ")(?!" + MASK + ")" + _VALUE, re.IGNORECASE)),
    # An argument list in JSON or Python: "--password", "hunter2".
    (
        "value",
        re.compile(
            r"(?P<kept>[\"']--?" + _NAMES + r"[\"']\s{0,8},\s{0,8})(?![\"'](?:-|" + MASK + "))"
            r"(?:\"(?:\\.|[^\"\\\n]){1,8192}\"|'(?:\\.|[^'\\\n]){1,8192}')",
            re.IGNORECASE,
        ),
    ),
    ("value", re.compile(r"(?P<kept>(?<!\S)--?" + _NAMES + r"\s{1,8})(?!-|" + MASK + ")" + _VALUE, re.IGNORECASE)),
)


_SENSITIVE = re.compile(r"(?<![A-Za-z0-9])(?:" + _NAMES + r"|(?:proxy-)?authorization)\Z", re.IGNORECASE)


def names_a_secret(name: str) -> bool:
    """Whether what stands under `name` in a structure is taken for a secret whatever it looks like.

    >>> [names_a_secret(name) for name in ("DB_PASSWORD", "clientSecret", "keyboard")]
    [True, True, False]
    """
    return name in IDENTITY or _SENSITIVE.search(name) is not None


def redact(text: str, *, keep_length: bool = False) -> Tuple[str, List[str]]:
    """Return `text` with ``<secret>`` for all that is shaped like a credential, and what kinds were found, each once.

    Safe to repeat: a redacted text comes back as it is, without kinds. With `keep_length` a secret becomes as many ``x``,
    for bytes whose places mean something: not to be repeated.
    """
    kinds: List[str] = []
    known = redacted(text, keep_length=keep_length)
    if known != text:
        kinds.append("known")
    text = known
    for kind, pattern in _PATTERNS:
        text, changed = _replaced(pattern, text, keep_length)
        if changed and kind not in kinds:
            kinds.append(kind)
    return text, kinds


def _replaced(pattern: re.Pattern[str], text: str, keep_length: bool) -> Tuple[str, bool]:
    def one(found: re.Match[str]) -> str:
        kept = found.groupdict().get("kept") or ""
        return kept + ("x" * (len(found.group()) - len(kept)) if keep_length else MASK)

    fresh = pattern.sub(one, text)
    return fresh, fresh != text
