"""The schema, the merge and the one-source rule; what is frozen; marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from firstboot import frozen
from firstboot.errors import Corrupt, Invalid
from firstboot.layout import Layout
from firstboot.provision.marks import Marks, TokenClass
from firstboot.secret import Secret
from firstboot.settings import CHECKS, Rank, Settings, Source, load_yaml, merge, parse, refreeze, require_complete

TOKEN = "bet_canary0123456789abcdef"
PEM = trustme.CA().cert_pem.bytes().decode()


def check(key: str, value: Any, rank: Rank = Rank.IMAGE) -> Any:
    return parse({key: value}, where="here", rank=rank)[key]


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
        "https://a b",
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


WRONG = [
    ("enrollment_token", "short"),
    ("enrollment_token", "with space in the middle of it"),
    ("enrollment_token", 1234567890123456),
    ("enrollment_token", "x" * 4097),
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
    ("proxy", "proxy.other:3128"),
    ("proxy", "ftp://x"),
    ("proxy", 3128),
    ("proxy", "http://proxy:99999"),
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
    ("activation", {"comand": ["x"]}),
    ("activation", {"command": "x"}),
    ("activation", []),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_of_the_wrong_shape_names_file_and_key_and_not_itself(key: str, value: Any) -> None:
    """The message says where, which key and what is expected; the value could be a secret."""
    rank = Rank.USER_DATA if key == "enrollment_token" else Rank.IMAGE
    with pytest.raises(Invalid) as caught:
        parse({key: value}, where="user data", rank=rank)
    assert "user data" in str(caught.value) and key in str(caught.value)
    if isinstance(value, str) and len(value) > 5:
        assert value not in str(caught.value)


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
        parse({typo: "x"}, where="f", rank=Rank.IMAGE)
    assert typo in str(caught.value)
    assert meant in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("key", ["seal", "signing_keys", "signing_keys_trust", "activation"])
def test_what_runs_as_root_comes_from_the_image_alone(key: str) -> None:
    """User data must not be able to name a command."""
    with pytest.raises(Invalid, match=key):
        parse({key: "auto"}, where="user data", rank=Rank.USER_DATA)


def test_no_secret_stands_in_the_images_defaults() -> None:
    """A token or a proxy's password in a 0644 file is refused."""
    with pytest.raises(Invalid, match="token"):
        parse({"enrollment_token": TOKEN}, where="f", rank=Rank.IMAGE)
    with pytest.raises(Invalid, match="password"):
        parse({"proxy": "http://u:p@proxy:1"}, where="f", rank=Rank.IMAGE)
    assert parse({"proxy": "http://u:p@proxy:1"}, where="f", rank=Rank.USER_DATA)


def test_nothing_and_x_are_no_token() -> None:
    """An empty mapping is fine; what erasing leaves reads as no token."""
    assert parse(None, where="f", rank=Rank.IMAGE) == {}
    assert parse({"enrollment_token": "x" * 30}, where="f", rank=Rank.USER_DATA)["enrollment_token"] is None


def test_the_address_comes_from_the_source_of_the_token_or_from_beneath() -> None:
    """A lower source cannot redirect the token, and is told so; environment and image fill in; other keys merge by rank."""
    image = Source(Rank.IMAGE, "image", {"api_base_url": "https://image", "org_id": "i", "name": "image"})
    vendor = Source(
        Rank.VENDOR_DATA, "vendor data", {"api_base_url": "https://evil", "name": "vendor", "proxy": Secret("http://e")}
    )
    user = Source(Rank.USER_DATA, "user data", {"api_base_url": "https://user"}, Secret(TOKEN))
    drop = Source(Rank.DROP_PLACE, "drop", {"api_base_url": "https://drop", "heartbeat_interval_s": 9.0})
    merged, warnings = merge([image, vendor, user, drop], chosen=user)
    assert merged == Settings(api_base_url="https://user", org_id="i", name="vendor", heartbeat_interval_s=9.0)
    assert {word.split(" in ")[0] for word in warnings} == {"api_base_url", "proxy"}
    assert any("vendor data" in word for word in warnings) and any("drop" in word for word in warnings)
    merged, _ = merge([image, vendor, Source(Rank.ETC_TOKEN, "etc", {}, Secret(TOKEN))], chosen=Source(Rank.ETC_TOKEN, "etc"))
    assert merged.api_base_url == "https://image"


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


@given(st.dictionaries(st.sampled_from([*CHECKS, "v"]), st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text()))))
def test_a_damaged_settings_file_is_corrupt_or_settings(stored: dict[str, Any]) -> None:
    """Whatever stands in it: our error or a value."""
    try:
        assert isinstance(frozen.thaw(stored), Settings)
    except Corrupt:
        pass


def test_a_later_boot_takes_only_what_the_image_may_change() -> None:
    """Interval and CA follow the image; where an enrolled host reports to does not."""
    old = Settings(api_base_url="https://a", org_id="o", heartbeat_interval_s=30.0)
    new = refreeze(old, {"api_base_url": "https://b", "org_id": "x", "heartbeat_interval_s": 60.0, "seal": "file"})
    assert new == Settings(api_base_url="https://a", org_id="o", heartbeat_interval_s=60.0, seal="file")


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
    ],
)
def test_hostile_yaml_is_refused(text: str) -> None:
    """Duplicate keys, depth, tags, impossible dates, recursion."""
    with pytest.raises(Invalid):
        load_yaml(text.encode(), where="f")


# -- marks


def test_a_mark_survives_and_says_nothing(tmp_path: Path) -> None:
    """Classes and boot ids are durable; the file holds neither token nor anything that equals it elsewhere."""
    (tmp_path / "var/lib/byteor/identity").mkdir(parents=True)
    layout = Layout(tmp_path)
    marks, token, other = Marks.load(layout), Secret(TOKEN), Secret(TOKEN + "x")
    assert marks.classify(token) is TokenClass.FRESH
    marks.put(token, TokenClass.REFUSED, boot_id="b1")
    marks.put(other, TokenClass.SPENT, boot_id="b2")
    again = Marks.load(layout)
    assert (again.classify(token), again.presented_in(token)) == (TokenClass.REFUSED, "b1")
    assert again.classify(Secret("bet_never_seen_before_00")) is TokenClass.FRESH
    assert again.lengths(TokenClass.SPENT) == {len(TOKEN) + 1}
    assert again.recognises(other.reveal().encode(), TokenClass.SPENT)
    assert not again.recognises(TOKEN.encode(), TokenClass.SPENT)
    text = layout.marks.read_text()
    assert TOKEN not in text and len(again.mark(token)) == 16
    (tmp_path / "second/var/lib/byteor/identity").mkdir(parents=True)
    assert Marks.load(Layout(tmp_path / "second")).mark(token) != again.mark(token)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"v":1}',
        '{"v":1,"key":"zz","marks":{}}',
        '{"v":1,"key":"","marks":{"a":1}}',
        '{"v":1,"key":"00","marks":[]}',
        '{"v":1,"key":"00","marks":{"a":{"class":"?"}}}',
    ],
)
def test_damaged_marks_are_set_aside(tmp_path: Path, content: str) -> None:
    """The file is kept under another name; tokens look fresh again."""
    (tmp_path / "var/lib/byteor/identity").mkdir(parents=True)
    layout = Layout(tmp_path)
    layout.marks.write_text(content)
    layout.marks.chmod(0o600)
    assert Marks.load(layout).classify(Secret(TOKEN)) is TokenClass.FRESH
    assert layout.marks.with_name("marks.json.corrupt-1").read_text() == content
