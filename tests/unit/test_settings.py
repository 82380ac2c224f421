"""The schema, the merge and the one-source rule; YAML from anywhere; what is frozen."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from firstboot.base import documents
from firstboot.base.errors import Corrupt, Invalid
from firstboot.base.secret import Secret
from firstboot.exchange import settings as frozen
from firstboot.exchange.settings import Settings
from firstboot.provision.freezing import refreeze
from firstboot.provision.schema import CHECKS, load_yaml, parse, require_complete
from firstboot.provision.sources import Rank, Source, merge
from tests.integration.host import on_this_machine

SOON_S = 5.0
TOKEN = "bet_canary0123456789abcdef"
PEM = trustme.CA().cert_pem.bytes().decode()


def check(key: str, value: Any, image: bool = True) -> Any:
    return parse({key: value}, where="here", image=image)[key]


@pytest.mark.parametrize(
    ("given_", "origin"),
    [
        ("https://api.example", "https://api.example"),
        ("https://api.example/", "https://api.example"),
        ("https://api.example/v1", "https://api.example"),
        ("https://api.example/api/v1/", "https://api.example"),
        ("https://api.example:8443/v1/", "https://api.example:8443"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://localhost", "http://localhost"),
    ],
)
def test_an_address_is_normalised_to_its_origin(given_: str, origin: str) -> None:
    """The forms that the vendor's pages show, and loopback for tests."""
    assert check("api_base_url", given_) == origin


@pytest.mark.parametrize(
    "wrong",
    [
        "http://api.example",
        "ftp://x",
        "api.example",
        "https://",
        "https://u:p@api.example",
        "https://api.example/v2",
        "https://api.example?x=1",
        "https://api.example#x",
        "http://10.0.0.1",
        "http://localhost.evil.example",
        "https://api.example:99999",
        "https://[::1",
        "",
        7,
        True,
        ["https://x"],
        "http://127.0.0.1.nip.io",
        "http://[::ffff:127.0.0.1]",
        "https://a b",
        "https://api.exa\nmple",
        "https://api\t.example",
        "https://api.example:0",
        "https://[v1.x]",
        "https://[fe80::1%25eth0]",
        "https://.",
        "https://api.example\\@evil.example",
    ],
)
def test_an_address_of_another_shape_is_refused(wrong: Any) -> None:
    """Plain http elsewhere, userinfo, paths, other types."""
    with pytest.raises(Invalid, match="api_base_url"):
        check("api_base_url", wrong)


def test_plain_http_is_refused_under_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even towards loopback."""
    monkeypatch.setenv("INVOCATION_ID", "1")
    with pytest.raises(Invalid):
        check("api_base_url", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    "text",
    [PEM, f"\ufeff# Főtanúsítvány\n{PEM}", f"Subject: x\n{PEM}end", PEM.replace("\n", "\r\n")],
)
def test_certificates_are_taken_out_of_any_text(text: str) -> None:
    """Comments in any encoding, a BOM, what openssl x509 -text writes around them."""
    assert check("ca_certificates", text) == text


WRONG = [
    ("enrollment_token", "short"),
    ("enrollment_token", "with space in the middle of it"),
    ("enrollment_token", 1234567890123456),
    ("enrollment_token", "y" * 4097),
    ("enrollment_token", "tokën_0123456789abcdef"),
    ("org_id", 12),
    ("org_id", ""),
    ("org_id", "-x"),
    ("org_id", "a/b"),
    ("org_id", "a" * 129),
    ("org_id", "a\n"),
    ("org_id", None),
    ("name", "a.b"),
    ("name", "-a"),
    ("name", "a" * 64),
    ("name", True),
    ("name", "a_b"),
    ("ca_certificates", "not PEM"),
    ("ca_certificates", ""),
    ("ca_certificates", ["x"]),
    ("ca_certificates", "zertifikät"),
    ("ca_certificates", PEM + PEM[:200]),
    ("ca_certificates", PEM + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
    ("proxy", "proxy.other:3128"),
    ("proxy", "ftp://x"),
    ("proxy", 3128),
    ("proxy", "http://proxy:99999"),
    ("proxy", "http://proxy:0"),
    ("proxy", "http://pro\nxy:3128"),
    ("no_proxy", "a,b"),
    ("no_proxy", [1]),
    ("heartbeat_interval_s", 4),
    ("heartbeat_interval_s", 3601),
    ("heartbeat_interval_s", "30"),
    ("heartbeat_interval_s", True),
    ("heartbeat_interval_s", float("nan")),
    ("seal", "tpm"),
    ("seal", True),
    ("signing_keys_trust", "yes"),
    ("signing_keys", {}),
    ("signing_keys", [{"kid": "a"}]),
    ("signing_keys", [{"kid": "../a", "public_key": "A" * 43}]),
    ("signing_keys", [{"kid": "a", "public_key": "A" * 42 + "="}]),
    ("signing_keys", [{"kid": "a", "public_key": "A" * 43}] * 2),
    ("activation", {"comand": ["x"]}),
    ("activation", {"command": "x"}),
    ("activation", []),
    *(
        ("activation", {"unit": unit})
        for unit in (
            "",
            "x",
            7,
            None,
            "-x.service",
            "*.service",
            "x?.service",
            "[ab].service",
            "a b.service",
            "x.service\n",
            "\nx.service",
            "a/b.service",
            "x.swap",
            "x.Service",
            ".service",
            "--now.service",
            "é.service",
            "x" * 248 + ".service",
            ["x.service"],
        )
    ),
    *(
        ("activation", {key: argv})
        for key in ("command", "health")
        for argv in (
            [],
            None,
            {},
            "x",
            [""],
            ["", "x"],
            ["x", 1],
            ["x", None],
            ["a\0b"],
            ["x", "\0"],
            [["x"]],
            ["x", "\ud800"],
        )
    ),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_of_the_wrong_shape_names_file_and_key_and_not_itself(key: str, value: Any) -> None:
    """The message says where, which key and what is expected; the value could be a secret."""
    with pytest.raises(Invalid) as caught:
        parse({key: value}, where="user data", image=key != "enrollment_token")
    assert "user data" in str(caught.value) and key in str(caught.value)
    if isinstance(value, str) and len(value) > 5:
        assert value not in str(caught.value)


@pytest.mark.parametrize(
    "unit", ["edge-runtime.service", "a@b\\x2dc.service", "X:1_2.3.socket", "x" * 247 + ".service"]
)
def test_what_runs_as_root_is_one_unit_and_whole_commands(unit: str) -> None:
    """A name that systemd knows, arguments as they stand; an error names the inner key and what is
    expected.
    """
    told = {"unit": unit, "command": ["/bin/sh", "-c", ""], "health": ["true"], "window_s": 0}
    assert check("activation", told) == {
        **told,
        "command": ("/bin/sh", "-c", ""),
        "health": ("true",),
        "window_s": 0.0,
    }
    for key, wrong, said in (
        ("unit", "-x", "one systemd unit"),
        ("health", [], "a command and its arguments"),
    ):
        with pytest.raises(Invalid, match=f"activation.{key} must be .*{said}"):
            check("activation", {**told, key: wrong})


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("enrolment_token", "enrollment_token"),
        ("api_url", "api_base_url"),
        ("organisation_id", "org_id"),
        ("no-proxy", "no_proxy"),
    ],
)
def test_an_unknown_key_names_the_nearest(typo: str, meant: str) -> None:
    """Whoever mistypes is told the key that they meant."""
    with pytest.raises(Invalid) as caught:
        parse({typo: "x"}, where="f", image=True)
    assert typo in str(caught.value)
    assert meant in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "key",
    [TOKEN, "bet_abcdefghijklmnopqrst", "AbCdEfGhIjKlMnOpQrSt", "a" * 60, "two words", "a\nb"],
)
def test_a_key_that_may_be_a_token_is_not_quoted(key: str) -> None:
    """Whoever puts the token before the colon finds it in no journal."""
    for text in (json.dumps({key: "x"}), f"{json.dumps(key)}: 1\n{json.dumps(key)}: 2"):
        with pytest.raises(Invalid) as caught:
            parse(load_yaml(text.encode(), where="f"), where="f", image=True)
        assert key not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("key", ["seal", "signing_keys", "signing_keys_trust", "activation"])
def test_what_runs_as_root_comes_from_the_image_alone(key: str) -> None:
    """User data must not be able to name a command."""
    with pytest.raises(Invalid, match=key):
        parse({key: "auto"}, where="user data")


def test_no_secret_stands_in_the_images_defaults() -> None:
    """A token or a proxy's password in a 0644 file is refused."""
    with pytest.raises(Invalid, match="token"):
        parse({"enrollment_token": TOKEN}, where="f", image=True)
    with pytest.raises(Invalid, match="password"):
        parse({"proxy": "http://u:p@proxy:1"}, where="f", image=True)
    assert parse({"proxy": "http://u:p@proxy:1"}, where="f")


def test_nothing_and_x_are_no_token() -> None:
    """An empty mapping is fine; what erasing leaves reads as no token."""
    assert parse(None, where="f", image=True) == {}
    assert parse({"enrollment_token": "x" * 30}, where="f")["enrollment_token"] is None


def test_the_address_comes_from_the_source_of_the_token_or_from_beneath() -> None:
    """A lower source cannot redirect the token, and is told so; environment and image fill in;
    other keys merge by rank.
    """
    image = Source(
        Rank.IMAGE, "image", {"api_base_url": "https://image", "org_id": "i", "name": "image"}
    )
    vendor = Source(
        Rank.VENDOR_DATA,
        "vendor data",
        {"api_base_url": "https://evil", "name": "vendor", "proxy": Secret("http://e")},
    )
    user = Source(Rank.USER_DATA, "user data", {"api_base_url": "https://user"}, Secret(TOKEN))
    drop = Source(
        Rank.DROP_PLACE, "drop", {"api_base_url": "https://drop", "heartbeat_interval_s": 9.0}
    )
    merged, warnings = merge([image, vendor, user, drop], chosen=user)
    assert merged == Settings(
        api_base_url="https://user", org_id="i", name="vendor", heartbeat_interval_s=9.0
    )
    assert {word.split(" in ")[0] for word in warnings} == {"api_base_url", "proxy"}
    assert any("vendor data" in word for word in warnings) and any(
        "drop" in word for word in warnings
    )
    merged, _ = merge(
        [image, vendor, Source(Rank.ETC_TOKEN, "etc", {}, Secret(TOKEN))],
        chosen=Source(Rank.ETC_TOKEN, "etc"),
    )
    assert merged.api_base_url == "https://image"


def test_the_two_credentials_are_one_source() -> None:
    """A bare token and the mapping beside it: the mapping's address is not another source's."""
    token = Source(Rank.CREDENTIAL, "credential byteor.enrollment-token", {}, Secret(TOKEN))
    mapping = Source(
        Rank.CREDENTIAL,
        "credential byteor.firstboot",
        {"api_base_url": "https://here", "org_id": "o"},
    )
    merged, warnings = merge([token, mapping], chosen=token)
    assert merged == Settings(api_base_url="https://here", org_id="o")
    assert not warnings


def test_what_says_the_same_is_no_warning() -> None:
    """The write_files form is read twice, from the drop place and from user data: nobody is to be
    warned of that.
    """
    values = {"api_base_url": "https://here", "proxy": Secret("http://proxy:1")}
    drop, user = (
        Source(Rank.DROP_PLACE, "drop", values, Secret(TOKEN)),
        Source(Rank.USER_DATA, "user data", values),
    )
    assert merge([drop, user], chosen=drop)[1] == ()
    assert (
        len(merge([drop, Source(Rank.USER_DATA, "user data", {"org_id": "other"})], chosen=drop)[1])
        == 1
    )


def test_what_is_missing_is_named() -> None:
    """All four at once."""
    with pytest.raises(Invalid, match="api_base_url, project_id, environment_id"):
        require_complete(Settings(org_id="o"))


def test_frozen_settings_round_trip_without_secrets() -> None:
    """settings.json has everything but a proxy's password, and is read back tolerantly."""
    settings = Settings(
        api_base_url="https://a",
        org_id="o",
        project_id="p",
        environment_id="e",
        name="n",
        ca_certificates=PEM,
        proxy=Secret("http://proxy:1"),
        no_proxy=("a",),
        heartbeat_interval_s=30.0,
    )
    stored = json.loads(json.dumps(frozen.freeze(settings)))
    assert frozen.thaw({**stored, "later": 1}) == settings
    assert frozen.freeze(Settings(proxy=Secret("http://u:pass@proxy:1")))["proxy"] is None


ENVELOPE = {"payload": "e30=", "payloadType": "x", "signatures": [{"keyid": "k", "sig": "AAAA"}]}


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        (
            [
                ENVELOPE,
                {**ENVELOPE, "more": [1], "signatures": [{**ENVELOPE["signatures"][0], "x": 1}]},
            ],
            2,
        ),
        (
            [ENVELOPE, {**ENVELOPE, "payload": None}, ENVELOPE],
            1,
        ),  # a chain is good up to where it is cut
        ([ENVELOPE] * 65, documents.MOST_KEY_SETS),
        ([{**ENVELOPE, "payload": "A" * 60_000}] * 3, 2),
        ([{**ENVELOPE, "payload": "é"}], 0),
        ([{**ENVELOPE, "payloadType": "\n"}], 0),
        ([{**ENVELOPE, "signatures": ENVELOPE["signatures"] * 17}], 0),
        ([{**ENVELOPE, "signatures": [{"keyid": None, "sig": "AAAA"}]}], 0),
        ([{**ENVELOPE, "signatures": ["x"]}], 0),
        *((wrong, 0) for wrong in (None, 7, "x", {}, [], [None], [[]], [{}])),
    ],
)
def test_the_key_sets_of_an_enrollment_are_bounded_and_never_an_error(
    given_: Any, kept: int
) -> None:
    """What is not of its shape ends the list; what is kept fits into settings.json and comes back
    as it was.
    """
    sets = documents.envelopes(given_)
    assert sets == (ENVELOPE,) * kept or [len(one["payload"]) for one in sets] == [60_000] * kept
    stored = json.dumps(frozen.freeze(Settings(key_sets=sets)), indent=1)
    assert len(stored) < 1 << 19
    assert frozen.thaw(json.loads(stored)).key_sets == sets
    assert refreeze(frozen.thaw(json.loads(stored)), {"name": "n"}).key_sets == sets
    assert frozen.thaw({**json.loads(stored), "key_sets": given_}).key_sets == sets


KEYS = st.sampled_from([*CHECKS, "v", "key_sets"])


@given(st.dictionaries(KEYS, st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text()))))
def test_a_damaged_settings_file_is_corrupt_or_settings(stored: dict[str, Any]) -> None:
    """Whatever stands in it: our error or a value."""
    try:
        assert isinstance(frozen.thaw(stored), Settings)
    except Corrupt:
        pass


def test_a_later_boot_takes_only_what_the_image_may_change() -> None:
    """Interval and CA follow the image; where an enrolled host reports to does not."""
    old = Settings(api_base_url="https://a", org_id="o", heartbeat_interval_s=30.0)
    new = refreeze(
        old,
        {"api_base_url": "https://b", "org_id": "x", "heartbeat_interval_s": 60.0, "seal": "file"},
    )
    assert new == Settings(
        api_base_url="https://a", org_id="o", heartbeat_interval_s=60.0, seal="file"
    )


def test_a_later_boot_keeps_what_a_source_above_the_image_gave() -> None:
    """Else the first hand-off after an enrollment would put the image's CA in place of the one from
    user data.
    """
    image = {"heartbeat_interval_s": 60.0, "name": "image", "no_proxy": ("i",)}
    user = Source(
        Rank.USER_DATA,
        "user data",
        {"heartbeat_interval_s": 10.0, "ca_certificates": PEM},
        Secret(TOKEN),
    )
    merged, _ = merge([user, Source(Rank.IMAGE, "image", image)], chosen=user)
    again = frozen.thaw(json.loads(json.dumps(frozen.freeze(merged))))
    assert refreeze(again, image) == merged
    later = refreeze(
        again, {"heartbeat_interval_s": 99.0, "ca_certificates": "other", "name": "new"}
    )
    assert (later.heartbeat_interval_s, later.ca_certificates, later.name) == (10.0, PEM, "new")
    assert frozen.freeze(refreeze(later, {}))["pinned"] == [
        "ca_certificates",
        "heartbeat_interval_s",
    ]


def enrolled(image: dict[str, Any], **user: Any) -> Settings:
    """Settings as an enrollment froze them, through the file."""
    source = Source(Rank.USER_DATA, "user data", user, Secret(TOKEN))
    given = parse(image, where="image", image=True)
    merged, _ = merge([source, Source(Rank.IMAGE, "image", given)], chosen=source)
    return frozen.thaw(json.loads(json.dumps(frozen.freeze(merged))))


IMAGE_VALUES = {
    "name": "edge-1",
    "no_proxy": ["a.example"],
    "heartbeat_interval_s": 60,
    "seal": "file",
    "signing_keys_trust": "tls",
    "activation": {"command": ["/bin/true"]},
    "proxy": "http://proxy.example:3128",
    "ca_certificates": PEM,
    "signing_keys": [{"kid": "k", "public_key": "A" * 43}],
}


@pytest.mark.parametrize("key", IMAGE_VALUES)
def test_a_key_that_the_file_no_longer_names_goes_back_to_its_default(key: str) -> None:
    """But what guards trust only ever changes to another value, or by an explicit null."""
    old = enrolled(IMAGE_VALUES)
    rest = {name: value for name, value in IMAGE_VALUES.items() if name != key}
    later = refreeze(old, parse(rest, where="image", image=True))
    stays = key in ("proxy", "ca_certificates", "signing_keys")
    assert getattr(later, key) == (getattr(old, key) if stays else getattr(Settings(), key))
    assert later.reverted == (() if stays else (key,))
    again = refreeze(later, parse(rest, where="image", image=True))
    assert again == later and again.reverted == ()
    if stays:
        null = parse({**rest, key: None}, where="image", image=True)
        assert getattr(refreeze(later, null), key) == getattr(Settings(), key)
    for other in IMAGE_VALUES:
        before, after = (json.dumps(frozen.freeze(one)[other]) for one in (old, later))
        assert other == key or before == after


def test_a_file_that_says_nothing_changes_nothing() -> None:
    """Absent, empty, unreadable or no mapping: a typo must not clear a fleet's settings."""
    old = enrolled(IMAGE_VALUES)
    assert refreeze(old, {}) == old


def test_what_user_data_gave_does_not_revert() -> None:
    """It was never the file's to take back."""
    old = enrolled({"seal": "file"}, name="edge-9", heartbeat_interval_s=7.0)
    later = refreeze(old, {"signing_keys_trust": "tls"})
    assert (later.name, later.heartbeat_interval_s, later.seal) == ("edge-9", 7.0, "auto")


def test_settings_of_version_0_1_0_revert_what_only_the_file_can_have_given() -> None:
    """It did not note which keys the file gave; an interval may be the enrollment reply's."""
    stored = frozen.freeze(enrolled(IMAGE_VALUES))
    del stored["from_image"], stored["reverted"]
    later = refreeze(frozen.thaw(stored), {"name": "edge-1"})
    assert later.activation is None and later.seal == "auto"
    assert later.heartbeat_interval_s == 60.0 and later.ca_certificates == PEM


@pytest.mark.parametrize("key", ["name", "seal", "activation", "no_proxy", "api_base_url"])
def test_null_is_a_value_of_few_keys(key: str) -> None:
    """And of the image's defaults alone: in user data it is a slip."""
    for image in (True, False):
        with pytest.raises(Invalid):
            check(key, None, image)
    with pytest.raises(Invalid):
        check("proxy", None, False)


@given(st.binary(max_size=400))
def test_yaml_from_anywhere_is_a_value_or_our_error(data: bytes) -> None:
    """No exception of the library, whatever the bytes."""
    try:
        load_yaml(data, where="f")
    except Invalid as error:
        assert "f" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "[" * 100 + "]" * 100,
        "? [a]\n: b",
        "a: !!python/object:os.system x",
        "a: 2020-99-99",
        "a: &a [*a]",
        "- " * 50000,
        "? " * 50000,
        "{" * 500000,
        "a: !!bool maybe",
        "a: !!int ''",
        "a: !!float ''",
        "a: !!timestamp x",
        "a: !!map x",
        "a: !!set {x}",
        "a: !!omap [x: 1]",
        "a: !!binary '*'",
        "a: !own x",
        "a: =",
        "<<: {a: 1}",
        "a: " + "1" * 100_000,
        "a: 0x" + "f" * 500_000,
        "a: 1" + ":1" * 300_000,
        "a: &x [" + "y," * 9000 + "]\nb: [*x, *x, *x]",
        "a: 1\n---\nb: 2",
        "a: *x",
        "a: \x00",
        "%YAML 9.9\n---\na: 1",
        "? {a: b}\n: c",
        "1: a",
        "[" + "a," * 30000 + "]",
        "#" * (1 << 20) + "\na: 1",
    ],
)
def test_hostile_yaml_is_refused(text: str) -> None:
    """Duplicate keys, depth, tags, impossible dates, recursion, numbers without end, soon."""
    began = time.monotonic()
    with pytest.raises(Invalid):
        load_yaml(text.encode(), where="f")
    assert time.monotonic() - began < on_this_machine(SOON_S)
