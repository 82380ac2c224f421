"""User data in all its forms to the one mapping in it; hostile bytes to our error."""

from __future__ import annotations

import base64
import gzip
import json
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstboot.errors import Invalid
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
    return "#cloud-config\n" + json.dumps({"write_files": [{"path": "/etc/motd", "content": "hi"}, entry]})


def write_files_lines(mapping: dict[str, str]) -> str:
    return "write_files: " + json.dumps([{"path": userdata.DROP_PLACE, "content": json.dumps(mapping)}]) + "\n"


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


FORMS = {
    "comment block": BLOCK.encode(),
    "comment block, CRLF": BLOCK.replace("\n", "\r\n").encode(),
    "comment block, BOM": b"\xef\xbb\xbf" + BLOCK.encode(),
    "comment block under jinja": b"## template: jinja\n" + BLOCK.encode() + b"fqdn: {{ ds.x }}\n",
    "comment block at the end, no newline": BLOCK.rsplit("hostname", 1)[0].rstrip().encode(),
    "comment block above a broken body": BLOCK.encode() + b'x: "byteor\n',
    "comment block above anchors and merges": BLOCK.encode() + b"a: &a {b: 1}\nc:\n  <<: *a\nd: byteor\n",
    "comment block twice, equal": (BLOCK + "\n" + BLOCK).encode(),
    "write_files plain": write_files(CONTENT).encode(),
    "write_files b64": write_files(base64.b64encode(CONTENT.encode()).decode(), encoding="b64").encode(),
    "write_files base64": write_files(base64.b64encode(CONTENT.encode()).decode(), encoding="base64").encode(),
    "write_files gz+b64": write_files(base64.b64encode(gzip.compress(CONTENT.encode())).decode(), encoding="gz+b64").encode(),
    "mapping": ("#cloud-config\n" + json.dumps({"byteor": MAPPING})).encode(),
    "MIME": multipart(MIMEText("echo", "x-shellscript"), MIMEText(BLOCK, "cloud-config", "us-ascii")),
    "MIME in base64": multipart(MIMEText(BLOCK, "cloud-config", "utf-8")),
    "MIME in 8bit": multipart(eight_bit(BLOCK)),
    "MIME nested": multipart(MIMEText("echo", "x-shellscript"), inner(MIMEText(BLOCK, "cloud-config"))),
    "MIME with a gzip part": multipart(MIMEApplication(gzip.compress(BLOCK.encode()), "gzip")),
    "gzip": gzip.compress(BLOCK.encode()),
    "base64": base64.b64encode(BLOCK.encode()),
    "base64 wrapped": base64.encodebytes(BLOCK.encode()),
    "base64 of gzip": base64.encodebytes(gzip.compress(BLOCK.encode())),
    "gzip of MIME": gzip.compress(multipart(MIMEText(BLOCK, "cloud-config", "utf-8"))),
    "script with the block": b"#!/bin/sh\n" + BLOCK.split("\n", 1)[1].rsplit("hostname", 1)[0].encode() + b"echo byteor\n",
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
        b"#cloud-config\n# byteor-firstboot:\n#  enrollment_token: x\n",
        b"#cloud-config\n#x: 'a\nb: \"broken\n",
        b"#cloud-config\nwrite_files: [{path: /etc/byteor/other, content: x}]\n",
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
