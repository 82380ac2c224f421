r"""Credentials cut out of text before it leaves this host.

Diagnostics and artifacts hold the words of other programs. From them goes, wherever it stands:

- known values: every secret that this process has handled, and what a bundle gives to
  BYTEOR_AGENT_API_KEY
- private keys in PEM, also cut-off ones
- JSON Web Tokens
- Authorization headers, and what follows Bearer and Basic
- user and password in a URL or of curl's -u, and the signature ``sig`` of a signed URL
- tokens whose prefix tells their kind: ours, AWS, GitHub, GitLab, GCP, Stripe, Slack, npm, Vault,
  and keys that begin with sk-
- the value of a name that ends in password, passwd, passphrase, pass, pwd, psk, secret, token,
  credential or cookie, or in api_key and its kin (access, private, secret, account, auth, client,
  deploy, encryption, license, master, shared, signing, ssh and storage keys), in JSON, YAML, env
  and ini lines, URLs and command lines, and each text of a list of them, unless it is plainly a
  word, a number, a boolean, a variable or a row of asterisks

All else stays byte for byte, and JSON that was valid stays valid. Not found: a password that is
one ordinary word, one under another name, what is packed or encoded.

A look at a place either takes the bytes that it read or stops after a bounded number of them: the
time is linear in the length of the text, whatever stands in it.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator

from firstboot.base.secret import MASK, Secret, known

RUNTIME_KEY = b"byteor_agent_api_key"
NEARBY = 64  # bytes: the longest name, and how far its surroundings are looked at

# Kind and form; what a form takes is its last group, else all of it. Each begins with a literal,
# and looks behind that only after it: so `re` leaps from one such letter to the next.
_SHAPES = (
    (
        "private_key",
        rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        rb"(?:(?:[\w+/=:;,.()\s\\]|-(?!-)){0,16384}-----END [A-Z0-9 ]{0,40}-----"
        rb"|(?:\s|\\[nr]|[A-Za-z0-9+/=]{16,}){0,1024}[A-Za-z0-9+/=]*)",
    ),
    ("jwt", rb"eyJ(?<![\w-]eyJ)[\w-]{5,}\.[\w-]{2,}(?:\.[\w-]*)?"),
    ("url_password", rb"://([^\s/?#\"'<>\\]{1,256})@"),
    ("url_password", rb":\\/\\/([^\s/?#\"'<>\\]{1,256})@"),  # of a JSON text that escapes slashes
    ("token", rb"b(?<![A-Za-z0-9]b)(?:et|ek|rk|op)_[\w-]{12,}"),
    ("token", rb"A(?<![A-Za-z0-9]A)(?:[KS]IA[A-Z0-9]{16}(?![A-Z0-9])|Iza[\w-]{30,})"),
    (
        "token",
        rb"g(?<![A-Za-z0-9]g)(?:h[pousr]_[A-Za-z0-9]{20,}|ithub_pat_\w{20,}"
        rb"|l(?:pat|dt|rt)-[\w-]{16,})",
    ),
    ("token", rb"sig=(?:(?<=[?&; ]sig=)|(?<=u0026sig=))([\w%+/=-]{8,})"),  # of a signed URL
    ("token", rb"ya29\.[\w-]{20,}"),
    ("token", rb"GOCSPX-[\w-]{20,}"),
    ("token", rb"s(?<![A-Za-z0-9]s)k(?:_(?:live|test)_[A-Za-z0-9]{10,}|-[\w-]{20,})"),
    ("token", rb"rk_(?<![A-Za-z0-9]rk_)(?:live|test)_[A-Za-z0-9]{10,}"),
    ("token", rb"whsec_[A-Za-z0-9+/=]{16,}"),
    ("token", rb"x(?<![A-Za-z0-9]x)(?:ox[a-z]|app)-[\w-]{10,}"),
    ("token", rb"hooks\.slack\.com/services/([\w/]{20,})"),
    ("token", rb"npm_(?<![A-Za-z0-9]npm_)[A-Za-z0-9]{30,}"),
    ("token", rb"hv(?<![A-Za-z0-9]hv)[sbr]\.[\w-]{20,}"),
)
# Between an option of curl and its value, also in a list of arguments, in brackets or over lines.
_TO_LOGIN = rb"(?:\\{0,7}[\"'])?(?:[=\0]|,\s{0,64}|[ \t]{0,8}(?:\r?\n[ \t]{0,64}-[ \t]{1,8})?)"
# The same in lower case, of which "value" is only where the last word of a name begins.
_LOWER = (
    # Also behind other options of one letter that take no value.
    ("login", rb"-(?<=[\s\"'\0]-)[#0-6abfgijklmnopqrsvz]{0,12}u" + _TO_LOGIN),
    ("login", rb"--(?:proxy-)?user(?![\w-])" + _TO_LOGIN),
    ("authorization", rb"b(?<![\w.]b)(?:earer|asic)[ \t]{1,8}([\w.~+/=-]{8,})"),
    ("value", rb"p(?:ass|sk|wd)"),
    ("value", rb"s(?:ecret|ignature)"),
    ("value", rb"c(?:redential|ookie)"),
    *(("value", word) for word in (rb"token", rb"key", rb"authorization")),
)
_FORMS = tuple((kind, re.compile(form)) for kind, form in (*_SHAPES, *_LOWER))
# The end of a name that tells, from its last word on.
_TELLING = re.compile(
    rb"(?:(?:password|passwd|passphrase|secret|token|credential|authorization|cookie|key)s?"
    rb"|(?<![a-z])(?:pass|psk)|(?<=[_.-])pwd|(?:(?<=x-amz-)|(?<=x-goog-))signature)"
    rb"(?:[_.-]?(?:data|value|text|base64|b64))?(?:_?[0-9]{1,3})?"
)
_TELLING_KEY = re.compile(
    rb"(?:access|account|api|auth|client|deploy|encryption|license|master|private|secret|shared"
    rb"|signing|ssh|storage)[_.-]?\Z"
)
# What follows the beginning of a name: its rest, and what stands between it and its value. The
# value may also be the next argument of a command, or stand in a member of its own.
_AFTER = re.compile(
    rb"(?=(?P<rest>[\w.-]{0,64}))(?P=rest)(?P<close>\\{0,7}[\"'])?"
    rb"(?:[ \t]{0,8}(?P<sign>:=|=>|[:=])[ \t]{0,8}"
    rb"|\s{0,64}[,;]?\s{0,64}(?:\\{0,7}[\"'])?value(?:\\{0,7}[\"'])?[ \t]{0,8}[:=][ \t]{0,8}"
    rb"|(?P<argument>(?<=[\"']),\s{0,8}(?=\\{0,7}[\"'])|[ \t\0]{1,8}(?=[^\s-])))"
)
_WORD = b"abcdefghijklmnopqrstuvwxyz0123456789_.-"
_QUOTE = re.compile(rb"\\{0,7}[\"']")
_QUOTED_END = re.compile(rb"[\"'\r\n\0]|\Z")
_GAP = rb"(?:\s|\\{1,7}[nrt]){0,64}"
_STRING_ENDS = re.compile(rb"\\{0,7}\"" + _GAP + rb"(?:[,:}\]]|\Z)|\\{0,7}\"\s{0,8}[\r\n]")
_NO_STRING = re.compile(rb"[\[{]|(?:-?[0-9][0-9.eE+-]{0,64}|true|false|null)" + _GAP + rb"[,}\]]")
_LIST = re.compile(rb"\[" + _GAP)
_BARE_WORD = rb"[^\s,\[\]{}\"'\\\0]{1,256}"
_BARE = re.compile(_BARE_WORD + rb"(?:[ \t]{1,8}" + _BARE_WORD + rb"){0,16}")
_OBJECT = re.compile(rb"\{[^{}\[\]]{0,1024}\}")  # without another one in it
_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]{0,64}")
_NEXT = re.compile(_GAP + rb"([,\]])" + _GAP)
# One line of a YAML list, behind blank ones and comments: its indentation, and a text.
_LINE_WORD = rb"(?:[^\s\"'\[\]{}:\0]|:(?=[^\s\0])){1,256}"
_LINE = re.compile(
    rb"(?:\r?\n[ \t]{0,64}(?:#[^\r\n]{0,256})?(?=\r?\n)){0,4}\r?\n([ \t]{0,64})-[ \t]{1,8}"
    rb"(?:([\"'])(?P<quoted>[^\r\n\0]{1,1024}?)\2"
    rb"|(?P<bare>(?!-[ \t])" + _LINE_WORD + rb"(?:[ \t]{1,8}(?!#)" + _LINE_WORD + rb"){0,16}))"
    rb"[ \t]{0,8}(?:[ \t]#[^\r\n]{0,256})?(?=\r?\n|\Z)"
)
_BLOCK = re.compile(rb"[|>][0-9+-]{0,2}[ \t]{0,8}\r?\n")
_LINE_BEGIN = re.compile(rb"(?<!\\)\r?\n")  # of a command
_ITEM_BEGIN = re.compile(rb"[ \t]{0,64}(?:-[ \t]|[\"'])")  # of a list over lines
_IDS = re.compile(rb"[0-9]{1,10}:[0-9]{1,10}")  # of a user and a group, as docker's -u has them
_NEXT_COMMAND = re.compile(rb"[|;&]")
_LINE_END = re.compile(rb"[\r\n\0]|\Z")
# What ends a value within a line. In a JSON text a backslash may belong to a quote or line end.
_ESCAPE = rb"|(?<!\\)\\+(?:[\s\"'nrt\0]|\Z)|\Z"
_VALUE_END = re.compile(rb"[\s\"',;&)}\]<>\0]" + _ESCAPE)
_LOGIN_END = re.compile(rb"[\s\"';&|)\0]" + _ESCAPE)
_HEADER_END = re.compile(rb"[\"'\r\n\0]" + _ESCAPE)
_PLAIN = re.compile(
    rb"[A-Za-z]?[a-z]{0,23}|[A-Z]{0,24}|[+-]?[0-9]{1,12}(?:\.[0-9]{1,6})?"
    rb"|\$\{?\w{1,64}\}?|\*{1,64}|" + MASK.encode()
)

# The same of a list's item, of which a value may have gone before.
_PLAIN_WORD = re.compile(
    _PLAIN.pattern + rb"|" + _NUMBER.pattern + rb"|[\w.-]{1,64}[:=]" + MASK.encode()
)


def redact(data: bytes, *, keep_length: bool = False) -> tuple[bytes, list[str]]:
    """Return `data` with ``<secret>`` for each credential, and the kinds found, each once.

    Safe to repeat: redacted data comes back as it is, without kinds. With `keep_length` a secret
    becomes as many ``x``, for bytes whose places mean something; not to be repeated.
    """
    pieces, kinds, at = [], [], 0
    for text in known():
        if text in data:
            kinds.append("known")
            data = data.replace(text, b"x" * len(text) if keep_length else MASK.encode())
    for kind, begin, end in _found(data):
        kinds.append(kind)
        pieces += [data[at:begin], b"x" * (end - begin) if keep_length else MASK.encode()]
        at = end
    return b"".join([*pieces, data[at:]]), list(dict.fromkeys(kinds))


def redact_text(text: str) -> str:
    """Return `text` without its credentials; see `redact`."""
    return redact(text.encode("utf-8", "surrogatepass"))[0].decode("utf-8", "surrogatepass")


def learn(data: bytes) -> None:
    """Make known what `data` gives to BYTEOR_AGENT_API_KEY, to take it from other texts as well."""
    lower = data.lower()
    for name in re.finditer(RUNTIME_KEY, lower):
        for span in _named(data, lower, name.end() - len(b"key")):
            if not _PLAIN.fullmatch(data, *span):
                Secret(data[slice(*span)].decode("utf-8", "surrogateescape"))


def _found(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield kind, begin and end of each credential, in order, none within another."""
    lower = data.lower()
    places: list[tuple[int, int, re.Match[bytes]]] = []

    def look(number: int, at: int) -> None:
        match = _FORMS[number][1].search(data if number < len(_SHAPES) else lower, at)
        if match is not None:
            heapq.heappush(places, (match.start(), number, match))

    for number in range(len(_FORMS)):
        look(number, 0)
    taken, pending = 0, list[tuple[int, int, str]]()
    while places or pending:
        # A list's items wait, because other credentials may stand between them.
        if pending and (not places or pending[0][0] <= places[0][0]):
            begin, end, kind = heapq.heappop(pending)
            if begin >= taken and not _PLAIN.fullmatch(data, begin, end):
                yield kind, begin, end
                taken = end
            continue
        at, number, match = heapq.heappop(places)
        kind, form = _FORMS[number]
        if at >= taken:
            spans: Iterable[tuple[int, int]] = [match.span(form.groups)]
            if kind in ("value", "login"):
                spans = _named(data, lower, at) if kind == "value" else _login(data, match)
            for span in spans:
                heapq.heappush(pending, (*span, kind))
        look(number, max(at + 1, taken))


def _login(data: bytes, option: re.Match[bytes]) -> Iterator[tuple[int, int]]:
    """Yield where user and password stand after an option, if it is one of curl's."""
    *above, before = _LINE_BEGIN.split(data[max(0, option.start() - 8 * NEARBY) : option.start()])
    while above and b"curl" not in before and _ITEM_BEGIN.match(before):
        before = above.pop()
    _, curl, before = before.rpartition(b"curl")
    if not curl:
        return
    begin = option.end()
    quote = _QUOTE.match(data, begin)
    if quote is not None:
        begin = quote.end()
        end = _closing(data, begin, quote[0], alone=False)
    else:
        end = _LOGIN_END.search(data, begin).start()  # type: ignore[union-attr]
    is_anothers = _NEXT_COMMAND.search(before) and _IDS.fullmatch(data, begin, end)
    user, colon, password = data[begin:end].partition(b":")
    is_gone = MASK.encode() == (password or user)
    is_name = not password and (b"\n" in option[0] or option[0].endswith(b"u"))
    if colon and not (is_anothers or is_gone or is_name):
        yield begin, end


def _named(data: bytes, lower: bytes, at: int) -> Iterable[tuple[int, int]]:
    """Return where the values of the name stand whose last word begins at `at`, if secret."""
    found = _AFTER.match(lower, at)
    if found is None:
        return ()
    before = lower[max(0, at - NEARBY) : at]
    name_at = at - len(before) + len(before.rstrip(_WORD))
    name = lower[name_at : found.end("rest")]
    is_argument = found["argument"] is not None
    if (
        not _TELLING.fullmatch(lower, at, found.end("rest"))
        or (lower.startswith(b"key", at) and not _TELLING_KEY.search(before[-12:]))
        or (is_argument and not name.startswith(b"-"))
    ):
        return ()
    begin, first = found.end(), _begins_line(lower, name_at) and not is_argument
    opened = _opening(data, name_at)
    if not is_argument:
        lines = _lines(data, name_at, begin) if first else iter(())
        items = [*_items(data, begin), *lines]
        if items:
            return items
    quote = _QUOTE.match(data, begin)
    if quote is not None:
        # Without a quote after the name this one may end the text in which the name stands.
        if not found["close"] and (quote[0] == opened or _STRING_ENDS.match(data, begin)):
            return ()
        begin = quote.end()
        if is_argument and data.startswith(b"-", begin):
            return ()
        end = _closing(data, begin, quote[0], alone=first)
    elif found["sign"] != b"=" and _NO_STRING.match(data, begin):
        return ()
    elif opened and not found["close"]:
        end = _closing(data, begin, opened, alone=False)
    elif first and _BLOCK.match(data, begin):
        return [_block(data, name_at, begin)]
    else:
        is_apart = found["sign"] is None and not is_argument
        is_header = b"authorization" in name or b"cookie" in name
        until = _LINE_END if first or is_apart else _HEADER_END if is_header else _VALUE_END
        end = until.search(data, begin).start()  # type: ignore[union-attr]
    return [(begin, begin + len(data[begin:end].rstrip()))]


def _items(data: bytes, begin: int) -> Iterator[tuple[int, int]]:
    """Yield where the texts of a list in brackets stand, up to a list or a nested object."""
    before = _LIST.match(data, begin)
    while before is not None:
        begin = before.end()
        quote, apart = _QUOTE.match(data, begin), _OBJECT.match(data, begin)
        other = apart or _BARE.match(data, begin)
        if quote is not None:
            begin = quote.end()
            end = _closing(data, begin, quote[0], alone=False)
            before = _NEXT.match(data, end + len(quote[0]))
        elif other is not None:
            end = other.end()
            before = _NEXT.match(data, end)
        else:
            return
        if before is None:
            return
        if apart is None and (quote is not None or not _is_plain(data[begin:end])):
            yield begin, end
        before = before if before[1] == b"," else None


def _lines(data: bytes, name_at: int, begin: int) -> Iterator[tuple[int, int]]:
    """Yield where the texts of a YAML list stand, in the lines after its name."""
    indent = len(data[max(0, name_at - NEARBY) : name_at].rpartition(b"\n")[2])
    while (line := _LINE.match(data, begin)) and len(line[1]) >= indent:
        if line["bare"] is None or not _is_plain(line["bare"]):
            yield line.span("quoted" if line["bare"] is None else "bare")
        begin = line.end()


def _is_plain(item: bytes) -> bool:
    """Return True for a list's item without quotes whose words are all plain."""
    return all(_PLAIN_WORD.fullmatch(word) for word in item.split())


def _begins_line(lower: bytes, at: int) -> bool:
    """Return True where nothing but a list's dash, a comment's sign or `export` stands before."""
    before = lower[max(0, at - NEARBY) : at].rstrip(b" \t-#;")
    if before.endswith(b"export"):
        before = before[: -len(b"export")].rstrip(b" \t")
    return before[-1:] in (b"\r", b"\n", b"\0") if before else at < NEARBY


def _opening(data: bytes, at: int) -> bytes:
    """Return the quote that stands right before `at`, with its backslashes; empty without one."""
    before = data[max(0, at - 8) : at]
    if before[-1:] not in (b'"', b"'"):
        return b""
    return before[len(before[:-1].rstrip(b"\\")) :]


def _closing(data: bytes, begin: int, quote: bytes, *, alone: bool) -> int:
    """Return where the text ends that `quote` opens, at the latest at the end of its line.

    In JSON within a JSON text the quotes have backslashes: as many as the opening one, or as many
    more as make whole pairs of escaped ones. One with fewer ends the text around it; so does a
    double quote in a single-quoted text, unless that is `alone` on its line.
    """
    depth, at = len(quote) - 1, begin
    while True:
        end = _QUOTED_END.search(data, at)
        assert end is not None
        before = data[max(begin, end.start() - NEARBY) : end.start()]
        slashes = len(before) - len(before.rstrip(b"\\"))
        at = end.end()
        if end[0] == quote[-1:]:
            if slashes % (2 * depth + 2) == depth or slashes < depth:
                return end.start() - min(slashes, depth)
        elif end[0] == b'"':
            if not alone:
                return end.start() - slashes
        elif end[0] != b"'":
            return end.start()


def _block(data: bytes, name_at: int, begin: int) -> tuple[int, int]:
    """Return the lines of a YAML block scalar: those that stand further in than its name."""
    indent = len(data[max(0, name_at - NEARBY) : name_at].rpartition(b"\n")[2])
    start = data.index(b"\n", begin) + 1
    lines = re.compile(rb"(?:[ \t]*\r?\n|[ \t]{%d}[^\n]*(?:\n|\Z))*" % (indent + 1))
    found = lines.match(data, start)
    text = found[0].rstrip() if found is not None else b""
    first = start + len(text) - len(text.lstrip())
    return first, start + len(text)
