"""Credentials leave no text that is sent away; everything else stays byte for byte."""

from __future__ import annotations

import json
import string
import time
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from firstboot.base.redaction import learn, redact, redact_text
from firstboot.base.secret import Secret
from tests.controlplane import credentials

HIDDEN = "Zq7hidden0value9Zq"
PEM = f"-----BEGIN EC PRIVATE KEY-----\nMHc{HIDDEN}\n{HIDDEN}==\n-----END EC PRIVATE KEY-----"

# A secret of letters and digits, none of them plainly a word or a number; and with the punctuation
# that people are told to use, but for quotes and backslashes.
plain_secrets = st.text(string.ascii_letters + string.digits, min_size=14, max_size=40).map(
    lambda text: f"7Q{text}"
)
odd_secrets = st.text(
    "".join(c for c in string.printable if c.isprintable() and c not in "\"'\\ "),
    min_size=8,
    max_size=40,
).map(lambda text: f"Q7{text}x")
NAMES = [
    *("password", "DB_PASSWORD", "dbpassword", "clientSecret", "client_secret", "api_key"),
    *("apiKey", "X-Api-Key", "AWS_SECRET_ACCESS_KEY", "aws.session.token", "accessToken"),
    *("BYTEOR_AGENT_API_KEY", "ENROLLMENT_TOKEN"),
    *(
        "passphrase",
        "PGPASSWORD",
        "DB_PASS",
        "wifi_psk",
        "client-key-data",
        "ssh_key",
        "token2",
        "MYSQL_PWD",
    ),
    *("credentials", "storage.account_key", "X-Amz-Signature"),
]
# Where a secret of letters and digits is found; NAME is any of the names above.
FORMS = [
    "NAME=SECRET",
    "export NAME=SECRET",
    "NAME: SECRET",
    "- NAME: SECRET",
    "# NAME: SECRET",
    "[section]\nNAME = SECRET\n",
    "started with NAME=SECRET, ok",
    "started with NAME: SECRET (ok)",
    "NAME='SECRET'",
    'x NAME="SECRET" y',
    "x NAME='SECRET' y",
    '{"NAME": "SECRET"}',
    '{"a": {"NAME":"SECRET","b":1}}',
    '{"env": ["PATH=/bin", "NAME=SECRET"]}',
    '{"env": [{"name": "NAME", "value": "SECRET"}]}',
    '{"Name":"NAME","Value":"SECRET"}',
    '{"msg": "it said NAME=SECRET, twice"}',
    '{"cmd": "echo \\"NAME=SECRET\\" done"}',
    'msg="{\\"NAME\\":\\"SECRET\\"}"',
    '"{\\"m\\":\\"{\\\\\\"NAME\\\\\\": \\\\\\"SECRET\\\\\\"}\\"}"',
    '{"log": "one\\nNAME=SECRET\\nthree"}',
    "env:\n- name: NAME\n  value: SECRET\n",
    'env:\n- name: "NAME"\n  value: "SECRET"\n',
    "a:\n  NAME: |\n    first\n\n    SECRET\n  b: 1",
    "- NAME: >-\r\n    SECRET\r\n  b: 1",
    "NAME := SECRET",
    ":NAME => 'SECRET'",
    "https://store.example/o?NAME=SECRET&a=b",
    "run --NAME SECRET -v",
    "run --NAME=SECRET -v",
    '["run", "--NAME", "SECRET", "-v"]',
    "run\0--NAME\0SECRET\0-v\0",
    "A=1\0NAME=SECRET\0B=2\0",
    "{Name:x NAME:SECRET}",
]
# Where any secret without quotes is found: the value ends with its line or quotes.
WHOLE = [
    "NAME=SECRET",
    "  NAME: SECRET\r\n",
    'x NAME="SECRET" y',
    '{"NAME": "SECRET"}',
    '{"env": ["NAME=SECRET"]}',
    'msg="{\\"NAME\\":\\"SECRET\\"}"',
    "a:\n  NAME: |\n    SECRET\n",
]
SHAPES = [
    ("authorization: Digest username=a, response=SECRET", "value"),
    ("GET / Authorization: Basic SECRET", "value"),
    ("curl -H 'Authorization: Bearer SECRET' x", "value"),
    ("Proxy-Authorization: Bearer SECRET", "value"),
    ('{"Authorization": "token SECRET"}', "value"),
    ("sent Bearer SECRET to it", "authorization"),
    ("Set-Cookie: sid=SECRET; path=/", "value"),
    ("got Cookie: a=1; sessionid=SECRET; SECRET", "value"),
    ("https://user:SECRET@proxy.example:3128/", "url_password"),
    *(
        (form, "login")
        for form in (
            "curl -sSfLu alice:SECRET https://h/",
            "curl -su alice:SECRET h",
            'cmd: ["curl","-sSu","alice:SECRET"]',
            "- curl\n- -u\n- alice:SECRET",
            "  - curl\n  - https://h/\n  - '-fu'\n  - 'alice:SECRET'\n",
            '[\n  "curl",\n  "--user",\n  "alice:SECRET"\n]',
            "curl -s https://h | curl -u 1000:SECRET h",
        )
    ),
    *(
        (form, "value")
        for form in (
            "passwords: [SECRET pw9x, SECRET]",
            '"tokens": ["SECRET b:c", {"token": "SECRET"}, "SECRET"]',
            "tokens:\n  # first\n  - SECRET",
            "tokens:\n  - a:SECRET\n  - SECRET word",
            "tokens:\n  - two words\n  - SECRET word\n  - SECRET",
            "api_keys:\n  - SECRET # c\n  - SECRET  \n\n  # old api_key=SECRET here\n  - SECRET  # c",
        )
    ),
    ("redis://:SECRET@store:6379", "url_password"),
    ('{"u": "https:\\/\\/user:SECRET@proxy.example\\/"}', "url_password"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiSECRET.abcSECRET", "jwt"),
    ("-----BEGIN EC PRIVATE KEY-----\nMHcSECRET\nSECRET==\n-----END EC PRIVATE KEY-----", "private_key"),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaSECRETSECRET\nSECRETSECRET", "private_key"),
    ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,SECRET\n\nSECRET\n-----END RSA PRIVATE KEY-----", "private_key"),
    ('{"k": "-----BEGIN PRIVATE KEY-----\\nMIISECRET\\nSECRET\\n-----END PRIVATE KEY-----\\n"}', "private_key"),
    ("https://hooks.slack.com/services/T012/B345/SECRET", "token"),
    *((f"with {prefix}SECRET and more", "token") for prefix in (*credentials.KINDS, "bek_")),
    *(
        (f"with {prefix}SECRETSECRET and more", "token")
        for prefix in (
            *("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "gldt-", "glrt-"),
            *("AIzaSy", "ya29.", "GOCSPX-", "sk_live_", "sk_test_", "rk_live_", "whsec_", "sk-"),
            *("xoxb-", "xoxp-", "xapp-", "npm_", "hvs.", "hvb.", "hvr."),
        )
    ),
]  # fmt: skip
HARMLESS = [
    "Nov 24 16:18:06 edge-node-01 byteor-runtime[811]: adapter nasdaq started, 12 venues, 4.2 us",
    "spec_hash sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "the keyboard is monkey-proof; a token of thanks; passwords are never logged",
    "https://api.example/api/v1/agents/agt_1/heartbeat 200",
    'BYTEOR_API_BASE_URL=https://api.example\n{"BYTEOR_AGENT_ID": "agt_1a2b3c4d5e6f"}',
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "user@example.invalid wrote: basic needs, Basic authentication",
    "monkey=1 keyboard: us1 bypass=2 compass: north1 turkey=3 hotkey: F1 design=4 OLDKEYMAP=5x",
    '{"key": "risk.max_tokens", "value": 40}',
    '{"max_tokens": 4096, "token": null, "password": true, "secret": [], "tokens": {"a": "b1"}}',
    '{"token": 123456789012345678901, "secret": -1.5e-300}',
    "password: required\ntoken: EXPIRED\nsecret = 12\napi_key: ${API_KEY}\npasswd=********",
    '{"token_type": "x-1", "password_file": "/etc/p1", "public_key": "a1b2", "keyid": "k1"}',
    '{"signing_keys": [{"kid": "k1", "public_key": "a1"}, {"kid": "k2"}], "tokens": [1, true]}',
    "signing_keys:\n- kid: k1\n  public_key: a1\ntokens:\n- a thing of 2 words\n- required\n- - x1",
    "- tokens:\n- x1",
    '{"ask": "your password:", "text": "the password=", "b": "x1"}',
    "PWD=/home/x1\nOLDPWD=/tmp/y2\nXDG_SESSION_ID=c1\nSSH_AUTH_SOCK=/run/a.1",
    "curl -s https://h | docker run -u 1000:1000 img\ntokens: [two words, 3]",
    "curl --user-agent a1:b2 h\ndocker run -u 1000:1000 image; git clone ssh://git@host.example/a",
    "- name: venue\n  value: nasdaq1\n['venue', 'nasdaq1']",
    "brk_addr moved; bop_it; use bet_… here; task-sk-1; AKIA; xoxb-; hvs.",
    "link group editor updated to vim.basic\nupdate-alternatives 2026",
    "description: |\n  some words\n  more1",
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.sampled_from(NAMES),
    plain_secrets,
    st.sampled_from(["before\n", "before\r\n\n", ""]),
)
def test_the_value_of_a_telling_name_goes(form: str, name: str, hidden: str, before: str) -> None:
    """In every notation; the bytes around it stay, and a second time changes nothing."""
    head, _, tail = (part.replace("NAME", name) for part in form.partition("SECRET"))
    clean, kinds = redact(f"{before}{head}{hidden}{tail}".encode())
    assert hidden.encode() not in clean and kinds == ["value"]
    assert clean.startswith(before.encode()) and b"<secret>" in clean
    if "first" not in form:
        assert clean == f"{before}{head}<secret>{tail}".encode(), (form, name)
    assert redact(clean) == (clean, [])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(WHOLE), st.sampled_from(NAMES), odd_secrets)
def test_any_value_that_ends_with_its_line_or_quotes_goes(
    form: str, name: str, hidden: str
) -> None:
    """Whatever signs it is made of."""
    head, _, tail = (part.replace("NAME", name) for part in form.partition("SECRET"))
    clean, _ = redact(f"a\n{head}{hidden}{tail}".encode())
    assert clean == f"a\n{head}<secret>{tail}".encode()


@pytest.mark.parametrize(("form", "kind"), SHAPES)
def test_what_is_shaped_like_a_credential_goes(form: str, kind: str) -> None:
    """Each shape is cut out and named; JSON stays JSON; a second time changes nothing."""
    hidden = HIDDEN
    clean, kinds = redact(f"before\n{form.replace('SECRET', hidden)}\nafter".encode())
    assert hidden.encode() not in clean and kinds == [kind]
    assert clean.startswith(b"before\n")
    assert clean.endswith(b"\nafter") or "OPENSSH" in form  # cut off: its end is not known
    if form.startswith("{"):
        json.loads(clean[len(b"before\n") : -len(b"\nafter")])
    assert redact(clean) == (clean, [])


def test_an_aws_key_goes() -> None:
    """The one form that is in upper case."""
    assert redact(b"id AKIAIOSFODNN7EXAMPLE in use") == (b"id <secret> in use", ["token"])


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_credential_stays(text: str) -> None:
    """Journal lines, hashes, addresses, certificates, words, numbers, the base URL and agent id."""
    assert redact(text.encode()) == (text.encode(), [])


@settings(deadline=None)
@given(st.text(string.ascii_letters + string.digits + " .,;:=/@-_{}[]\"'\\\n", max_size=300))
def test_text_without_a_telling_word_stays(text: str) -> None:
    """Byte for byte."""
    lower = text.lower()
    words = ("pass", "psk", "pwd", "secret", "sig", "cookie", "cred", "token", "key", "auth")
    assume(not any(word in lower for word in (*words, "bearer", "basic", "://", "_", "eyj", "sk-")))
    assert redact(text.encode()) == (text.encode(), [])


_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(
        [f"password={HIDDEN}", "the password=", f"say \"token={HIDDEN}\" 'now'", "it's secret: 'a1"]
        + [f"Authorization: Basic {HIDDEN}", "password: \\", f"a\npassword: {HIDDEN}", "Cookie:"]
        + [f"export API_KEY={HIDDEN}\nb", f"--token {HIDDEN}", "token=\"a' b", f"'token={HIDDEN}"]
        + [f"https://u:{HIDDEN}@h/", PEM, PEM[:50], f"Bearer {HIDDEN}", "password\t=\tx1\\", "key"]
    )
)
_documents = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*NAMES, "a", "name", "value", "--token"]) | st.text(max_size=5), inner
        )
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@given(_documents, st.integers(0, 2), st.sampled_from([None, 1]))
def test_json_stays_json(document: Any, depth: int, indent: int | None) -> None:
    """Also as a text within JSON, or behind the time of a log line; only texts are changed."""
    text = json.dumps(document, indent=indent, ensure_ascii=depth == 1)
    for _ in range(depth):
        text = json.dumps({"msg": text, "n": [1, "x"]})
    clean, _ = redact(f"2026-11-30T10:00:00Z {text}".encode("utf-8", "surrogatepass"))
    found = json.loads(clean[21:].decode("utf-8", "surrogatepass"))
    for _ in range(depth):
        assert found["n"] == [1, "x"]
        found = json.loads(found["msg"])
    assert _shape(found) == _shape(document)
    assert HIDDEN not in json.dumps(found)


def _shape(value: Any) -> Any:
    """Return the structure with its numbers, without its texts."""
    if isinstance(value, dict):
        return [_shape(inner) for inner in value.values()]
    if isinstance(value, list):
        return [_shape(inner) for inner in value]
    return "" if isinstance(value, str) else value


def test_the_field_case_stays_json() -> None:
    """A quoted assignment in a JSON text, with and without the time of a log line before it."""
    line = '{"v": 1, "cmd": "echo \\"password=hunter2\\" done"}'
    clean = line.replace("hunter2", "<secret>")
    for before in ("", "2026-11-30T10:00:00Z "):
        assert redact_text(before + line) == before + clean


def test_a_secret_of_this_process_goes_whatever_its_shape() -> None:
    """Known ones are replaced first, in bytes at the same length."""
    Secret("plain words only")
    assert redact(b"say plain words only now") == (b"say <secret> now", ["known"])
    clean, kinds = redact(b"\0plain words only\0token=x1\0", keep_length=True)
    assert (clean, kinds) == (b"\0" + b"x" * 16 + b"\0token=xx\0", ["known", "value"])


def test_a_bundle_teaches_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any notation; words about the variable teach nothing."""
    known: set[str] = set()
    monkeypatch.setattr("firstboot.base.secret._known", known)
    learn(b'["BYTEOR_API_BASE_URL", "BYTEOR_AGENT_API_KEY", "b1"] BYTEOR_AGENT_API_KEY variables')
    learn(b"BYTEOR_AGENT_API_KEY=<secret>\nbyteor_agent_api_key: missing")
    assert not known
    for number, form in enumerate(FORMS):
        learn(
            form.replace("NAME", "BYTEOR_AGENT_API_KEY")
            .replace("SECRET", f"a{number}bcdefg")
            .encode()
        )
        assert any(f"a{number}bcdefg" in text for text in known), form


PIECES = [
    *("key", "token", "password", "secret", "=", ":", " ", "\n", "  ", "'", '"', "\\", ",", "["),
    *("]", "{", "}", "|", "- ", "--", "a", "x1", "name", "value", "<secret>", "Cookie: ", "\0"),
    *("-su", "# ", "--user ", "-u", "curl ", "u:p", "s:\n- ", "s: ["),
    *("authorization", "Bearer ", "://", "@", "eyJ", ".", "bet_", "abcdefgh12345678"),
    *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "export ", "api_"),
]


@settings(deadline=None, max_examples=600)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    """Of the pieces that the forms are made of."""
    clean, _ = redact(text.encode())
    assert redact(clean) == (clean, [])


WORST = [
    *("token", "token=", "token ", "token:", "token=x1,", 'token="', "token='\"", 'token="a', "a_"),
    *('token=\\"', 'token=\\"\\\\', "token='\\", "token={", 'token={"', "token=*", "token=$a"),
    *('["token","\\\\', '"token": "x1", ', "token: |\n  ", "token: |\n", "name: token value: "),
    *("--token ", '"--token", ', "--token\0", "-token ", "passwordtoken", "key ", "\\", "\n", " "),
    *("eyJ", "eyJaaaaaa.", "://", "://a@", "https://", "bearer ", "Bearer abcdefgh1 ", "bet_"),
    *("-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\nabc\n", "authorization: \\"),
    *("-----BEGIN ", "PRIVATE KEY-----BEGIN ", "token value", "token\\\\", 'api_key"', "cookie: a"),
    *("curl -u ", " -u a", " -u 'a", "curl --user=\"a'", "tokens: [a,", 'tokens: ["a1", ', "tokens:\n- a"),
    *("curl\n- -u\n- a", "- -u\n- 'a", "curl -ssssu a", "-aaaaaaaaaaaaa ", "tokens:\n#\n", "# tokens:\n"),
    *("tokens:\n- a1 b\n\n", "- a1 b2 c3", "tokens: [a1 b2 ", "tokens: [{", "{},", "a:b:", "tokens:\n- a:"),
    *('tokens: ["', "a, ", '"a", ', "- a\n", "\n- a1", "--user"),
]  # fmt: skip


@pytest.mark.parametrize("between", ["", '"'])
@pytest.mark.parametrize("piece", WORST)
def test_the_time_grows_with_the_text_alone(piece: str, between: str) -> None:
    """Eight times the text takes about eight times as long: 64 times would be quadratic."""
    if _seconds(piece + between, 1 << 16) < 0.05:
        return
    small, large = (
        min(_seconds(piece + between, size) for _ in range(2)) for size in (1 << 13, 1 << 16)
    )
    assert large < 0.05 or large < 25 * small, (small, large)


def _seconds(piece: str, size: int) -> float:
    text = (piece * (size // len(piece))).encode()
    begin = time.process_time()
    redact(text)
    return time.process_time() - begin


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://h/c?se=1&sig=abcD1234%3D&x=1", "https://h/c?se=1&sig=<secret>&x=1"),
        ("SharedAccessSignature sig=abcD1234%3D&se=1", "SharedAccessSignature sig=<secret>&se=1"),
        ("https://u:p@ss@h/", "https://<secret>@h/"),
        ('{"api_key":["abcD1234x"]}', '{"api_key":["<secret>"]}'),
        ("api_key = ['abcD1234x']", "api_key = ['<secret>']"),
        ('{"tokens":["a1B2", "c3D4"],"n":[1]}', '{"tokens":["<secret>", "<secret>"],"n":[1]}'),
        ('{"tokens": [\n  "a1B2",\n  "c3D4"\n]}', '{"tokens": [\n  "<secret>",\n  "<secret>"\n]}'),
        (
            r'{"m": "{\"tokens\": [\"a1B2\", \"c3D4\"]}"}',
            r'{"m": "{\"tokens\": [\"<secret>\", \"<secret>\"]}"}',
        ),
        (
            '{"tokens": [12345678901234567890, "", "word", "a1"]}',
            '{"tokens": [12345678901234567890, "", "word", "<secret>"]}',
        ),
        ("secret_keys: [a1B2, c3D4]", "secret_keys: [<secret>, <secret>]"),
        ("secret_keys: [a1B2, 'c3 D4' ]", "secret_keys: [<secret>, '<secret>' ]"),
        (
            "secret_keys:\n- a1B2\n- 'c3 D4'  # old\nb: c5",
            "secret_keys:\n- <secret>\n- '<secret>'  # old\nb: c5",
        ),
        (
            "a:\n- secret_keys:\r\n  - a1B2\r\n  - c3D4\r\n- b5",
            "a:\n- secret_keys:\r\n  - <secret>\r\n  - <secret>\r\n- b5",
        ),
        ("curl -s -u me:pw https://h/", "curl -s -u <secret> https://h/"),
        ("curl -ume:pw --proxy-user you:pw2 h", "curl -u<secret> --proxy-user <secret> h"),
        ("/usr/bin/curl \\\n  --user='me:p w' h", "/usr/bin/curl \\\n  --user='<secret>' h"),
        ('{"argv": ["curl", "-U", "me:pw", "h"]}', '{"argv": ["curl", "-U", "<secret>", "h"]}'),
        (r'{"cmd": "curl -u \"me:pw\" h"}', r'{"cmd": "curl -u \"<secret>\" h"}'),
        ("curl\0-u\0me:pw\0h", "curl\0-u\0<secret>\0h"),
    ],  # fmt: skip
)
def test_a_credential_in_a_rarer_place_goes_whole(text: str, clean: str) -> None:
    """Signed URLs of Azure, an @ within a password, lists, what curl is given."""
    assert redact_text(text) == clean and redact_text(clean) == clean
