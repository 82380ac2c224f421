"""User data in all its forms to the one mapping in it; hostile bytes to our error."""

from __future__ import annotations

import base64
import gzip
import json
import quopri
import time
import zlib
from email.message import Message
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstboot.base.errors import Invalid, NoToken
from firstboot.commands.rehearse import check_userdata
from firstboot.provision import userdata

TOKEN = "bet_canary0123456789abcdef"
MAPPING = {"api_base_url": "https://api.example", "org_id": "org_1", "enrollment_token": TOKEN}
BLOCK = (
    f"#cloud-config\n#byteor-firstboot:\n#  api_base_url: https://api.example\n#  org_id: org_1\n#  enrollment_token: {TOKEN}\n"
    "hostname: edge\n"
)
CONTENT = json.dumps(MAPPING)


def write_files(content: str, **more: str) -> str:
    entry = {"path": userdata.DROP_PLACE, "permissions": "0600", "content": content, **more}
    return "#cloud-config\n" + json.dumps(
        {"write_files": [{"path": "/etc/motd", "content": "hi"}, entry]}
    )


def write_files_lines(mapping: dict[str, str]) -> str:
    return (
        "write_files: "
        + json.dumps([{"path": userdata.DROP_PLACE, "content": json.dumps(mapping)}])
        + "\n"
    )


def multipart(*parts: object) -> bytes:
    whole = MIMEMultipart()
    for part in parts:
        whole.attach(part)  # type: ignore[arg-type]
    return whole.as_bytes()


def inner(part: MIMEText) -> MIMEMultipart:
    whole = MIMEMultipart()
    whole.attach(part)
    return whole


def eight_bit(text: str) -> MIMEText:
    part = MIMEText("", "cloud-config", "utf-8")
    del part["Content-Transfer-Encoding"]
    part["Content-Transfer-Encoding"] = "8bit"
    part.set_payload(text)
    return part


def quoted(text: str) -> Message:
    part = Message()
    part["Content-Type"] = "text/cloud-config"
    part["Content-Transfer-Encoding"] = "quoted-printable"
    part.set_payload(quopri.encodestring(text.encode()).decode())
    return part


def write_files_binary(content: bytes, **more: str) -> str:
    lines = [
        f"- path: {userdata.DROP_PLACE}",
        *(f"  {key}: {value}" for key, value in more.items()),
        "  content: !!binary |",
    ]
    return (
        "#cloud-config\nwrite_files:\n"
        + "\n".join([*lines, f"    {base64.b64encode(content).decode()}"])
        + "\n"
    )


def archive(*items: object) -> bytes:
    return b"#cloud-config-archive\n" + json.dumps(items, indent=1).encode()


FORMS = {
    "comment block": BLOCK.encode(),
    "comment block, CRLF": BLOCK.replace("\n", "\r\n").encode(),
    "comment block, BOM": b"\xef\xbb\xbf" + BLOCK.encode(),
    "comment block under jinja": b"## template: jinja\n" + BLOCK.encode() + b"fqdn: {{ ds.x }}\n",
    "comment block at the end, no newline": BLOCK.rsplit("hostname", 1)[0].rstrip().encode(),
    "comment block above a broken body": BLOCK.encode() + b'x: "byteor\n',
    "comment block above anchors and merges": BLOCK.encode()
    + b"a: &a {b: 1}\nc:\n  <<: *a\nd: byteor\n",
    "comment block twice, equal": (BLOCK + "\n" + BLOCK).encode(),
    "write_files plain": write_files(CONTENT).encode(),
    "write_files b64": write_files(
        base64.b64encode(CONTENT.encode()).decode(), encoding="b64"
    ).encode(),
    "write_files base64": write_files(
        base64.b64encode(CONTENT.encode()).decode(), encoding="base64"
    ).encode(),
    "write_files gz+b64": write_files(
        base64.b64encode(gzip.compress(CONTENT.encode())).decode(), encoding="gz+b64"
    ).encode(),
    "mapping": ("#cloud-config\n" + json.dumps({"byteor": MAPPING})).encode(),
    "MIME": multipart(
        MIMEText("echo", "x-shellscript"), MIMEText(BLOCK, "cloud-config", "us-ascii")
    ),
    "MIME in base64": multipart(MIMEText(BLOCK, "cloud-config", "utf-8")),
    "MIME in 8bit": multipart(eight_bit(BLOCK)),
    "MIME nested": multipart(
        MIMEText("echo", "x-shellscript"), inner(MIMEText(BLOCK, "cloud-config"))
    ),
    "MIME with a gzip part": multipart(MIMEApplication(gzip.compress(BLOCK.encode()), "gzip")),
    "gzip": gzip.compress(BLOCK.encode()),
    "base64": base64.b64encode(BLOCK.encode()),
    "base64 wrapped": base64.encodebytes(BLOCK.encode()),
    "base64 of gzip": base64.encodebytes(gzip.compress(BLOCK.encode())),
    "gzip of MIME": gzip.compress(multipart(MIMEText(BLOCK, "cloud-config", "utf-8"))),
    "gzip of two members": gzip.compress(BLOCK[:40].encode()) + gzip.compress(BLOCK[40:].encode()),
    "gzip nested": gzip.compress(gzip.compress(BLOCK.encode())),
    "MIME, one part, after an mbox line": b"From nobody x\nMIME-Version: 1.0\nContent-Type: text/cloud-config\n"
    b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(BLOCK.encode()),
    "MIME in quoted-printable": multipart(quoted(BLOCK)),
    "MIME with CRLF": multipart(MIMEText(BLOCK, "cloud-config", "us-ascii")).replace(
        b"\n", b"\r\n"
    ),
    "text that mentions MIME": BLOCK.encode()
    + b"write_files: [{path: /x, content: 'Content-Type: multipart/mixed'}]\n",
    "text that mentions MIME-Version": BLOCK.encode()
    + b"# MIME-Version: 1.0\n# Content-Type: multipart/mixed\n",
    "text that mentions MIME, CRLF": (BLOCK + "# mime-version: 1.0\n")
    .replace("\n", "\r\n")
    .encode(),
    "write_files gzip in !!binary": write_files_binary(
        gzip.compress(CONTENT.encode()), encoding="gzip"
    ).encode(),
    "write_files !!binary": write_files_binary(CONTENT.encode()).encode(),
    "write_files, path with two slashes": write_files(CONTENT)
    .replace("/run/byteor", "/run//byteor")
    .encode(),
    "write_files, encoding nobody knows": write_files(CONTENT, encoding="rot13").encode(),
    "write_files beside odd keys": b"#cloud-config\nwrite_files:\n- {[a]: b, path: "
    + userdata.DROP_PLACE.encode()
    + b", content: '"
    + CONTENT.encode()
    + b"'}\n? {a: b}\n: c\n",
    "write_files in JSON of one line": write_files(CONTENT).split("\n", 1)[1].encode(),
    "mapping beside anchors of others": (
        "#cloud-config\na: &a {b: 1}\nc: {<<: *a}\nbyteor: " + CONTENT
    ).encode(),
    "mapping with anchors of others": b"#cloud-config\nx: &o org_1\nbyteor: "
    + CONTENT.replace('"org_1"', "*o").encode(),
    "all three": (BLOCK + write_files_lines(MAPPING) + "byteor: " + CONTENT + "\n").encode(),
    "empty marker beside a block": b"#cloud-config\n#byteor-firstboot:\n\n" + BLOCK.encode(),
    "archive": archive({"type": "text/cloud-config", "content": BLOCK}),
    "archive of texts": archive("#!/bin/sh\necho\n", BLOCK),
    "archive with write_files": archive({"content": write_files(CONTENT)}),
    "script with the block": b"#!/bin/sh\n"
    + BLOCK.split("\n", 1)[1].rsplit("hostname", 1)[0].encode()
    + b"echo byteor\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_mapping(form: str) -> None:
    """Plain, MIME nested, base64, 8bit, gzip; comment block, write_files, mapping."""
    found = userdata.read(FORMS[form], where="user data")
    assert found is not None
    assert found.raw == MAPPING


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1000,
        b"#cloud-config\nhostname: byteor-edge\n",
        b"#!/bin/sh\necho byteor: {}\n",
        b"#include\nhttps://byteor/x\n",
        b"#cloud-config\n#x: 'a\nb: \"broken\n",
        b"#cloud-config\nwrite_files: [{path: /etc/byteor/other, content: x}]\n",
        b"#cloud-config\nwrite_files: [{path: [byteor-firstboot/settings.yaml], content: x}, 7, byteor: x]\n",
        b"## template: jinja\n#cloud-config\npackages: [byteor-firstboot]\n{% for x in y %}\n",
        b"## template: jinja\n#!/bin/sh\necho 'byteor: {'\n",
        b"#cloud-config\n#byteor-firstboot:\n",
        b"#cloud-config\n#byteor-firstboot: is installed below\npackages: [byteor-firstboot]\n",
        b"#cloud-config\n#byteor-firstboot:\n#  # nothing yet\n{}\n",
        b"#cloud-config\nbyteor:\n",
        b"#cloud-config-archive\n[7, [x], {type: byteor, content: [x]}]\n",
        b"MIME-Version: 1.0\n\nbyteor",
        b"Content-Type: multipart/mixed; boundary=none\n\nno boundary here",
        "#cloud-config\nbyteor: {a: 1}\n".encode("utf-16"),
    ],
)
def test_what_is_not_ours_is_none(data: bytes) -> None:
    """Other people's user data, whole or broken, is no error of ours."""
    assert userdata.read(data, where="user data") is None


@pytest.mark.parametrize(
    "data",
    [
        BLOCK.encode() + BLOCK.replace("org_1", "org_2").encode(),
        (BLOCK + write_files_lines({**MAPPING, "org_id": "other"})).encode(),
        b'#cloud-config\nbyteor: {enrollment_token: "' + TOKEN.encode() + b"\n",
        b"#cloud-config\n#byteor-firstboot:\n#  enrollment_token: '" + TOKEN.encode() + b"\n{}\n",
        write_files("!!", encoding="b64").encode(),
        write_files(base64.b64encode(b"no gzip").decode(), encoding="gz+b64").encode(),
        BLOCK.encode().replace(b"org_1", b"\xff\xfe"),
        b"#cloud-config\n#byteor-firstboot: {enrollment_token: " + TOKEN.encode() + b"}\n{}\n",
        b"#cloud-config\n#byteor-firstboot:\n# enrollment_token: " + TOKEN.encode() + b"\n{}\n",
        BLOCK.replace("#  org_id", "#\torg_id").encode(),
        BLOCK.replace("#  org_id", "#org_id").encode(),
        BLOCK.replace("#  org_id: org_1", "#  enrollment_token: x").encode(),
        b"#cloud-config\nwrite_files: [{path: "
        + userdata.DROP_PLACE.encode()
        + b", content: ["
        + TOKEN.encode()
        + b"]}]\n",
        b"#cloud-config\nbyteor:\n  enrollment_token: !!bool " + TOKEN.encode() + b"\n",
        b"#cloud-config\nbyteor:\n  enrollment_token: *" + TOKEN.encode() + b"\n",
        b"## template: jinja\n#cloud-config\nbyteor:\n  enrollment_token: "
        + TOKEN.encode()
        + b"\n{% if x\n",
        b"## template: jinja\n#cloud-config\nbyteor: {enrollment_token: '{{ canary }}'}\n",
        gzip.compress(BLOCK.encode())[:-9],
        b"\x1f\x8b\x08" + BLOCK.encode(),
        multipart(
            *[MIMEText(BLOCK.replace("org_1", f"org_{n}"), "cloud-config") for n in range(2)]
        ),
        multipart(*[MIMEText(BLOCK, "cloud-config") for _ in range(20)]),
    ],
)
def test_what_is_broken_is_said_without_quoting(data: bytes) -> None:
    """Two different mappings, broken YAML, broken encodings: Invalid, never the line."""
    with pytest.raises(Invalid) as caught:
        userdata.read(data, where="user data")
    chain = f"{caught.value} {caught.value.hint} {caught.value.__cause__!r}"
    assert TOKEN not in chain and "canary" not in chain


@settings(max_examples=300, deadline=2000)
@given(
    st.one_of(st.binary(max_size=500), st.text(max_size=500).map(str.encode)),
    st.sampled_from(["", "block", "mime", "gzip", "map"]),
)
def test_any_bytes_are_a_value_or_our_error(data: bytes, wrap: str) -> None:
    """Nothing of yaml, email, zlib or unicode escapes."""
    wrapped = {
        "": data,
        "block": b"#cloud-config\n#byteor-firstboot:\n#  " + data.replace(b"\n", b"\n#  "),
        "mime": b"Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x\nContent-Type: text/plain\n\n"
        + data
        + b"\n--x--",
        "gzip": gzip.compress(data),
        "map": b"#cloud-config\nbyteor: " + data,
    }[wrap]
    try:
        userdata.read(wrapped, where="user data")
    except Invalid as error:
        assert str(error)
        assert "canary" not in f"{error} {error.hint}"


MIB = 1 << 20
MIME = b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n"
BOMB = (
    b"--x\nContent-Transfer-Encoding: base64\n\n"
    + base64.encodebytes(gzip.compress(bytes(16 * MIB)))
    + b"\n"
)
NESTED = b"".join(
    b"Content-Type: multipart/mixed; boundary=x%d\n\n--x%d\n" % (n, n) for n in range(900)
)
ONE = b"#cloud-config\nwrite_files:\n- &e {path: %s, content: %s}\n" % (
    userdata.DROP_PLACE.encode(),
    b"a" * 200_000,
)
HOSTILE = {
    "line ends": b"\n" * 10 * MIB,
    "lines of one space": b" \n" * 5 * MIB,
    "carriage returns": b"\r" * 10 * MIB,
    "one line": b"byteor" * 1_700_000,
    "one line of comment": b"#" * 5 * MIB + b"byteor: x" + b"#" * 5 * MIB,
    "keys": b"byteor:\n" * 1_300_000,
    "markers": b"#byteor-firstboot:\n" * 500_000,
    "block without end": b"#byteor-firstboot:\n" + b"#  a: b\n" * 1_300_000,
    "base64 of nothing": b"A" * 10 * MIB,
    "base64 in base64": base64.b64encode(base64.b64encode(base64.b64encode(bytes(4 * MIB)))),
    "MIME of line ends": MIME + b"\n" * 10 * MIB,
    "MIME of parts": MIME + b"--x\n\n" * 2 * MIB,
    "MIME of few lines and many parts": MIME + b"--x\n\n" * 50_000,
    "MIME nested": b"MIME-Version: 1.0\n" + NESTED + b"a\n" * 300_000,
    "MIME nested in few": MIME[:-1] + b"\n" + NESTED[:1500] + b"a\n" * 250_000,
    "MIME with a header of semicolons": MIME.replace(b"=x", b"=x" + b";" * MIB),
    "MIME with a folded header": MIME.replace(b"=x", b"=x" + b";\n " * 500_000),
    "MIME with a header of quotes": MIME.replace(b"=x", b"=x" + b'; a="\\"' * 200_000),
    "MIME with a part number without end": MIME.replace(
        b"boundary=", b"boundary*" + b"9" * 1900 + b"="
    ),
    "MIME with a part number of digits": MIME.replace(
        b"boundary=", b"boundary*" + b"9" * 5000 + b"="
    ),
    "MIME with a charset with a null byte": MIME.replace(b"boundary=", b"boundary*=a\0b'x'%41")
    + b"--x\n\n",
    "MIME with a charset that raises": MIME.replace(b"boundary=", b"boundary*=idna'x'%ff%41")
    + b"--x\n\n",
    "MIME with many bombs": MIME + BOMB * 100 + b"--x--\n",
    "gzip bomb": gzip.compress(bytes(200 * MIB), 1),
    "gzip of line ends": gzip.compress(b"\n" * 30 * MIB, 1),
    "gzip of members": gzip.compress(b"") * 100_000,
    "raw deflate": zlib.compress(BLOCK.encode()),
    "write_files of aliases": ONE + b"- *e\n" * 20_000,
    "write_files of bombs": write_files(
        base64.b64encode(gzip.compress(bytes(30 * MIB))).decode(), encoding="gz+b64"
    ).encode(),
    "archive of aliases": b"#cloud-config-archive\n- &a "
    + b"byteor" * 50_000
    + b"\n"
    + b"- *a\n" * 20_000,
    "ten MiB of cloud-config": b"#cloud-config\n" + b"a: b\n" * 2 * MIB + b"byteor: {}\n",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_take_seconds_at_most(case: str) -> None:
    """Ten MiB of anything, bombs of gzip, base64, MIME and aliases: nothing or our error, soon."""
    began = time.process_time()
    try:
        found = userdata.read(HOSTILE[case], where="user data")
        assert found is None or found.form == "write_files"
    except Invalid as error:
        assert "user data" in str(error)
    assert time.process_time() - began < 8


def test_other_peoples_user_data_may_be_large() -> None:
    """A MIME document with six MiB of somebody's base64 beside our block is read."""
    data = multipart(MIMEApplication(bytes(6 * MIB)), MIMEText(BLOCK, "cloud-config"))
    found = userdata.read(data, where="user data")
    assert found is not None and found.raw == MAPPING


PART = st.sampled_from(
    ["7bit", "8bit", "base64", "quoted", "gzip", "base64 of gzip", "script", "image", "text"]
)
TREE = st.recursive(PART, lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=12)


def built(tree: object) -> Message:
    """Let the standard library write the MIME document of a tree."""
    if isinstance(tree, list):
        whole = MIMEMultipart()
        for branch in tree:
            whole.attach(built(branch))
        return whole
    leaves: dict[object, Message] = {
        "7bit": MIMEText(BLOCK, "cloud-config", "us-ascii"),
        "8bit": eight_bit(BLOCK),
        "base64": MIMEText(BLOCK, "x-shellscript", "utf-8"),
        "quoted": quoted(BLOCK),
        "gzip": MIMEApplication(gzip.compress(BLOCK.encode()), "gzip"),
        "base64 of gzip": MIMEText(
            base64.encodebytes(gzip.compress(BLOCK.encode())).decode(), "plain", "us-ascii"
        ),
        "script": MIMEText("#!/bin/sh\necho byteor: {\n", "x-shellscript"),
        "image": MIMEApplication(bytes(range(256)), "octet-stream"),
        "text": MIMEText("=3D \x7f\n--\n", "plain"),
    }
    return leaves[tree]


@settings(max_examples=150, deadline=4000)
@given(st.lists(TREE, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_whatever_mime_the_standard_library_writes_is_read(
    tree: list[object], end: str, packed: bool
) -> None:
    """Any nesting and transfer encoding: the mapping is found exactly when a part holds it."""
    names = json.dumps(tree)
    holding = sum(
        names.count(json.dumps(kind))
        for kind in ("7bit", "8bit", "base64", "quoted", "gzip", "base64 of gzip")
    )
    data = built(tree).as_bytes().replace(b"\n", end.encode())
    if holding > userdata.COPIES_LIMIT:
        with pytest.raises(Invalid):
            userdata.read(data, where="user data")
        return
    found = userdata.read(gzip.compress(data) if packed else data, where="user data")
    assert (found.raw if found is not None else None) == (MAPPING if holding else None)


@settings(max_examples=300, deadline=2000)
@given(
    st.binary(max_size=40),
    st.integers(min_value=0),
    st.sampled_from(sorted(FORMS)),
    st.integers(0, 40),
)
def test_damage_anywhere_is_a_value_or_our_error_without_the_token(
    junk: bytes, at: int, form: str, cut: int
) -> None:
    """A well-formed document with some bytes replaced: never a library's error, never the token in
    ours.
    """
    data = FORMS[form]
    at %= len(data)
    try:
        found = userdata.read(data[:at] + junk + data[at + cut :], where="user data")
        assert found is None or found.raw is not None
    except Invalid as error:
        assert "canary" not in f"{error} {error.hint} {error.__cause__}"


def test_the_offline_check_says_the_form_and_what_is_left_to_the_image(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0 with the form on stdout; what the image must give, and what cloud-init will say, as
    warnings.
    """
    assert check_userdata(FORMS["mapping"]) == 0
    said = capsys.readouterr()
    assert "mapping" in said.out
    assert "project_id, environment_id" in said.err and "degraded" in said.err
    assert TOKEN not in said.out + said.err


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", NoToken),
        (b"#cloud-config\n{}\n", NoToken),
        (BLOCK.replace(TOKEN, "x" * 20).encode(), NoToken),
        (BLOCK.replace("org_1", "a/b").encode(), Invalid),
        (BLOCK.replace("org_id", "orgid").encode(), Invalid),
        (BLOCK.replace("org_id", "seal").encode(), Invalid),
    ],
)
def test_the_offline_check_refuses_what_a_host_would(data: bytes, error: type[Exception]) -> None:
    """No token is 3, a wrong key or value is 4."""
    with pytest.raises(error):
        check_userdata(data)
