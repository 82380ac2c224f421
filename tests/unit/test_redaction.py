"""What is shaped like a credential leaves no text that is sent away; what is not stays readable."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstboot.base.redaction import redact
from firstboot.base.secret import Secret
from tests.controlplane import credentials

HIDDEN = "Zq7hidden0value9Zq"
PEM = f"-----BEGIN EC PRIVATE KEY-----\nMHc{HIDDEN}\n{HIDDEN}==\n-----END EC PRIVATE KEY-----"

SECRETS = [
    (f"BYTEOR_AGENT_API_KEY={HIDDEN}", "identity"),
    (f"env: BYTEOR_AGENT_ID: '{HIDDEN}'", "identity"),
    (f'{{"BYTEOR_API_BASE_URL": "https://{HIDDEN}.example"}}', "identity"),
    (f"Authorization: Bearer {HIDDEN}", "authorization"),
    (f"authorization: Digest username=a, response={HIDDEN}", "authorization"),
    (f"sent Bearer {HIDDEN} to it", "authorization"),
    (f"bet_{HIDDEN}", "token"),
    (f"with token bek_{HIDDEN}.", "token"),
    ("id AKIAIOSFODNN7EXAMPLE in use", "token"),
    (PEM, "private_key"),
    (PEM[:60], "private_key"),
    (f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIi{HIDDEN}.abc{HIDDEN}", "jwt"),
    (f"https://user:{HIDDEN}@proxy.example:3128/", "url_password"),
    (f"password={HIDDEN}", "value"),
    (f"DB_PASSWORD: {HIDDEN}", "value"),
    (f'"api_key": "{HIDDEN}"', "value"),
    (f"apikey = '{HIDDEN} and {HIDDEN}'", "value"),
    (f"https://store.example/o?X-Amz-Signature={HIDDEN}&a=b", "value"),
    (f"curl --token {HIDDEN} x", "value"),
    (f"Set-Cookie: {HIDDEN}; path=/", "value"),
    (f"clientSecret: {HIDDEN}", "value"),
    (f'"apiKeys": ["a", "{HIDDEN}"]', "value"),
    *((f"with {prefix}{HIDDEN} and more", "token") for prefix in credentials.KINDS),
    (rf'msg="{{\"BYTEOR_AGENT_API_KEY\":\"{HIDDEN}\"}}"', "identity"),
    (rf'msg="{{\"secret\": {{\"v\": \"{HIDDEN}\"}}, \"b\": 1}}"', "value"),
    (rf'msg="{{\"password\":\"a \\\"{HIDDEN}\"}}"', "value"),
    (f"- name: BYTEOR_AGENT_API_KEY\n  value: {HIDDEN}", "value"),
    (f'- name: "DB_PASSWORD"\n  value: "{HIDDEN}"', "value"),
    (f'x {{"Name":"DB_PASSWORD","Value":"{HIDDEN}"}}', "value"),
    (f'<property name="db.password" value="{HIDDEN}"/>', "value"),
    (f'see ["BYTEOR_AGENT_API_KEY","{HIDDEN}"]', "value"),
    (f"see ('DB_PASSWORD', '{HIDDEN}')", "value"),
    (rf'argv="[\"--token\", \"{HIDDEN}\"]"', "value"),
    (f"set -x BYTEOR_AGENT_API_KEY {HIDDEN}", "value"),
    (f"set -gx DB_PASSWORD '{HIDDEN}'", "value"),
    (f"setenv DB_PASSWORD {HIDDEN}", "value"),
    *(
        (f"{name}={HIDDEN}", "value")
        for name in (
            "AccessToken",
            "Endpoint=x;AccountKey",
            "SharedAccessKey",
            "PGPASSWORD",
            "dbpassword",
            "SECRETKEY",
            "psk",
        )
    ),
    *(
        (f"{name}: {HIDDEN}", "value")
        for name in ("SecretAccessKey", "client-key-data", "ClientSecret", "password2")
    ),
    (f"?PHPSESSID={HIDDEN}&a=b", "value"),
    *(
        (f'"{name}": "{HIDDEN}"', "value")
        for name in ("DbPassword", "privatekey", "passwords", "awsSecretAccessKey")
    ),
    (f'{{"secret": {{"v": "{HIDDEN}"}}, "x": NaN}}', "value"),
    (f'{{"secrets": [["a"], [{{"v": "}}{HIDDEN}"}}]], "x": NaN}}', "value"),
    (f'{{"secret": {{"v": "a", "w": "{HIDDEN}"', "value"),
    (f"a:\n  password: |\n    first\n\n    {HIDDEN}", "value"),
    (f"- token: >-\r\n    {HIDDEN}\r\n  b: 1", "value"),
    (f"passwords:\n  - first\n  - {HIDDEN}\nb: 1", "value"),
    (f'password = """\nfirst\n{HIDDEN}"""\nb = 1', "value"),
    (f"password = '''\n{HIDDEN}'''", "value"),
    (f"Cookie: a=1; sessionid={HIDDEN}; {HIDDEN}", "value"),
    (f"<password>{HIDDEN}</password>", "value"),
    (f"<secret>{HIDDEN}</secret>", "value"),
    (f'<ns:ApiKey id="1">\n{HIDDEN}\n</ns:ApiKey>', "value"),
    (f"<password><![CDATA[{HIDDEN}]]></password>", "value"),
    (f"machine host login user password {HIDDEN}", "value"),
    (f"machine host\n  login user\n  password {HIDDEN}", "value"),
    (f"requirepass {HIDDEN}", "value"),
    (f"curl -u a:{HIDDEN} https://x.example", "value"),
    (f"curl --user 'a:{HIDDEN}' https://x.example", "value"),
]
HARMLESS = [
    "Nov 24 16:18:06 edge-node-01 byteor-runtime[811]: adapter nasdaq started, 12 venues, latency 4.2 us",
    "spec_hash sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "the keyboard is monkey-proof; a token of thanks; passwords are never logged",
    "https://api.example/api/v1/agents/agt_1/heartbeat 200",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "user@example.invalid wrote: basic needs",
    "monkey=1 keyboard: us bypass=2 compass: north turkey=3 hotkey: F1 design=4 OLDKEYMAP=5",
    "docker run -u 1000:1000 image; set -x; set -e name value; the password was wrong",
    "- name: venue\n  value: nasdaq\n<name>venue</name> ['venue', 'nasdaq']",
    "brk_addr moved; bop_it",
    "link group editor updated to vim.basic\nupdate-alternatives 2026",
    "description: |\n  some words\n  more",
]


@pytest.mark.parametrize(
    ("text", "kind"), SECRETS, ids=[f"{n}-{kind}" for n, (_, kind) in enumerate(SECRETS)]
)
def test_what_is_shaped_like_a_credential_goes(text: str, kind: str) -> None:
    """Each shape is masked and named, the words around it stay, and a second time changes
    nothing.
    """
    clean, kinds = redact(f"before\n{text}\nafter")
    assert HIDDEN not in clean and "IOSFODNN7" not in clean and "MHc" not in clean
    assert "<secret>" in clean and clean.startswith("before\n")
    assert kind in kinds
    assert redact(clean) == (clean, [])


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_not_stays(text: str) -> None:
    """Ordinary journal lines, hashes, addresses and certificates are left as they are."""
    assert redact(text) == (text, [])


def test_a_secret_of_this_process_goes_whatever_its_shape() -> None:
    """The registered ones are replaced first."""
    Secret("plain words only")
    assert redact("say plain words only now") == ("say <secret> now", ["known"])


@given(st.text(alphabet=st.sampled_from("keytoken=:'\"\\- \nBearer-.eyJ@/"), max_size=300))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    """Whatever the text: no exception, and what is clean stays clean."""
    clean, _ = redact(text)
    assert redact(clean)[0] == clean


PIECES = [
    *(
        "key",
        "token",
        "password",
        "secret",
        "=",
        ":",
        " ",
        "\n",
        "  ",
        "'",
        '"',
        "\\",
        ",",
        "[",
        "]",
        "{",
        "}",
        "|",
        "- ",
    ),
    *(
        "--",
        "-u ",
        "a",
        "name",
        "value",
        "<secret>",
        "</secret>",
        "<password>",
        "</password>",
        "Cookie: ",
        "setenv ",
        "login ",
    ),
    *("authorization", "Bearer ", "://", "@"),
]
WORST = [
    *(
        "key=",
        "a_",
        "eyJ",
        "-----BEGIN PRIVATE KEY-----",
        "https://",
        "--token ",
        "'",
        "key='\\",
        "key={",
        'key="{',
        'key=\\"',
    ),
    *(
        'key=\\"\\\\',
        '["key","\\\\',
        '["key",\\"\\\\\\\\',
        "key: |\n  ",
        "key:\n- ",
        "<key>",
        "name: key value: ",
        "name=",
    ),
    *(
        "set -x key ",
        "-u a:",
        "login a password ",
        "password a\n",
        "password \\",
        "aA",
        "A",
        "Cookie: ",
        'key="""',
        "a_a_key",
    ),
    *("\\", "key\\\\", " ", "\n", "key ", "key\n", '"--token", ', '"--token", \\"\\\\'),
]


@settings(deadline=None, max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_redacting_what_is_nearly_a_secret_twice_is_redacting_once(text: str) -> None:
    """Of the pieces that the patterns are made of."""
    clean, _ = redact(text)
    assert redact(clean) == (clean, [])


@pytest.mark.parametrize("piece", WORST)
def test_no_text_takes_long(piece: str) -> None:
    """A quarter of a MiB of the worst pieces takes less than five seconds."""
    begin = time.process_time()
    redact(piece * ((256 << 10) // len(piece)))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "text", ['["--password", "hunter2plain"]', "['--api-key', 'hunter2plain', '-v']"]
)
def test_an_argument_list_loses_its_secrets(text: str) -> None:
    """As a process's arguments stand in JSON or Python; what is an option itself stays, and again
    changes nothing.
    """
    found, kinds = redact(text)
    assert "hunter2plain" not in found and kinds == ["value"] and redact(found) == (found, [])
    assert redact('["--password", "--verbose"]')[1] == []
