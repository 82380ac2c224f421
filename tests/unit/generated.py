"""User data in every form and nesting that the reader takes, and how cloud-init stores it."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import quopri
import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import yaml

from firstboot.provision.userdata import DROP_PLACE, TOKEN_FILE

VISIBLE = "".join(chr(code) for code in range(33, 127))
# YAML 1.1 ends a line with each of these.
LINE_ENDS = ("\n", "\n", "\r\n", "\r", "\x85", "\u2028", "\u2029")


def compress(data: bytes, level: int = 9) -> bytes:
    return gzip.compress(data, level, mtime=0)


def token(dice: random.Random) -> str:
    """Return what contract 4.1 takes: mostly letters and digits, at times any visible character."""
    letters = string.ascii_letters + string.digits
    alphabet = dice.choice([letters, letters, letters + "+/=", letters + "\"'\\/&<>=#:-", VISIBLE])
    return (
        "bet_"
        + "".join(dice.choice(alphabet) for _ in range(dice.randrange(16, 60)))
        + dice.choice("aB3='\"\\")
    )


def quoted(text: str, dice: random.Random) -> str:
    """Write a text as JSON or as a double-quoted scalar of YAML, some characters as escapes."""
    out = []
    for character in text:
        code = ord(character)
        ways = [json.dumps(character)[1:-1]]
        if dice.random() < 0.15:
            ways = [f"\\u{code:04x}", f"\\u{code:04X}", f"\\x{code:02x}", f"\\U{code:08x}"]
        if character == "/":
            ways.append("\\/")
        out.append(dice.choice(ways))
    return '"' + "".join(out) + '"'


def json_of(value: Any, dice: random.Random) -> str:
    """Write JSON with the escapes that encoders of several languages make."""
    text = json.dumps(value, indent=dice.choice([None, 1, 2]))
    if dice.random() < 0.3:
        text = text.replace("/", "\\/")
    if dice.random() < 0.3:
        for character in "&<>":
            text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def settings_text(mapping: dict[str, str], dice: random.Random) -> str:
    """Write our mapping as YAML in one of many ways."""
    way = dice.randrange(4)
    if way == 0:
        return json_of(mapping, dice)
    if way == 1:
        style = dice.choice([None, '"', "'"])
        return str(yaml.safe_dump(mapping, default_style=style, width=dice.choice([20, 80, 999])))
    lines = [f"{key}: {quoted(value, dice)}" for key, value in mapping.items()]
    if way == 3:  # a double-quoted scalar that goes on in the next line
        text = quoted(mapping["enrollment_token"], dice)
        at = text.find("t") + 1  # after "bet" or within an escape of it
        if text[:at] == '"bet':
            lines[-1] = f"enrollment_token: {text[:at]}\\{dice.choice(LINE_ENDS)}    {text[at:]}"
    return "\n".join(lines) + "\n"


def wrapped(data: bytes, dice: random.Random, indent: str) -> str:
    """Write base64 in lines of any length, indented, perhaps without its padding."""
    text = base64.b64encode(data).decode()
    size = dice.choice([16, 19, 60, 64, 76, 10**6])
    lines = [text[at : at + size] for at in range(0, len(text), size)]
    end = dice.choice(["\n", "\n", " \n"])
    return end.join(indent + line for line in lines) + "\n"


@dataclass
class Written:
    """A cloud-config, and the entries of it that are not ours."""

    text: bytes
    form: str


def cloud_config(mapping: dict[str, str], dice: random.Random) -> Written:
    """Write a cloud-config that carries our mapping between keys of somebody else's."""
    text = settings_text(mapping, dice)
    form = dice.choice(["comment", "mapping", "plain", "json", "literal", "binary", "bare"])
    noise = base64.b64encode(dice.randbytes(dice.randrange(0, 80))).decode()
    above = dice.choice(["", "hostname: edge\n", f"x: {noise}\n", 'motd: "a\\\\"\n'])
    below = dice.choice(
        ["", "bootcmd:\n- echo\n", "runcmd: [a, b]\n", "append: x\n", "users: []\n"]
    )
    head = "#cloud-config\n"
    if form == "comment":
        # Of a comment YAML would take the rest of the line for its own.
        text = re.sub("\r\n?|[\x85\u2028\u2029]", "\n", text)
        lines = "".join(f"#  {line}\n" for line in text.rstrip("\n").split("\n"))
        return Written(
            (head + "#byteor-firstboot:\n" + lines + "\n" + above + below).encode(), form
        )
    if form == "mapping":
        body = "".join(f"  {line}\n" for line in text.rstrip("\n").split("\n"))
        return Written((head + above + "byteor:\n" + body + below).encode(), form)
    path, content, packed = DROP_PLACE, text.encode(), dice.choice(["b64", "gz+b64"])
    if form == "bare":
        path, content = TOKEN_FILE, mapping["enrollment_token"].encode() + b"\n"
    entry: dict[str, Any] = {"path": path, "permissions": "0600"}
    if form in ("plain", "json", "bare"):
        if dice.random() < 0.5:
            if packed == "gz+b64":
                content = compress(content, dice.choice([1, 6, 9]))
            content = dice.choice([base64.b64encode, base64.encodebytes])(content)
            entry["encoding"] = packed
        entry["content"] = content.decode()
        other = {"path": "/etc/other", "encoding": "b64", "content": noise}
        document = {"write_files": dice.choice([[entry, other], [other, entry], [entry]])}
        if form == "json":
            return Written((head + json_of(document, dice) + "\n").encode(), form)
        return Written((head + above + yaml.safe_dump(document) + below).encode(), form)
    if packed == "gz+b64":
        content = compress(content, dice.choice([1, 6, 9]))
    entry["encoding"] = packed
    tag = "!!binary |" if form == "binary" else dice.choice(["|", "|-", ">"])
    if form == "binary":
        entry["encoding"] = "gz" if packed == "gz+b64" else "text/plain"
    lines = [
        f"- {key}: '{value}'" if key == "path" else f"  {key}: '{value}'"
        for key, value in entry.items()
    ]
    body = "\n".join(["write_files:", *lines, f"  content: {tag}", wrapped(content, dice, "    ")])
    return Written((head + above + body + below).encode(), form)


def part(data: bytes, dice: random.Random) -> Message:
    """Make a MIME part of a text, or of what is packed, in one of the transfer encodings."""
    way = dice.randrange(4)
    if way == 0 and data.isascii() and b"\r" not in data:
        return MIMEText(data.decode(), "cloud-config", "us-ascii")
    if way == 1:
        return MIMEApplication(data, "octet-stream")
    if way == 2:
        one = Message()
        one["Content-Type"] = "text/cloud-config"
        one["Content-Transfer-Encoding"] = "quoted-printable"
        one.set_payload(quopri.encodestring(data, quotetabs=dice.random() < 0.5).decode("latin-1"))
        return one
    one = MIMEApplication(data, "octet-stream")
    text = base64.b64encode(data).decode()
    size = dice.choice([16, 60, 76])
    one.set_payload("\n".join(text[at : at + size] for at in range(0, len(text), size)) + "\n")
    return one


def multipart(data: bytes, dice: random.Random) -> bytes:
    whole = MIMEMultipart()
    others = [
        MIMEText("#!/bin/sh\necho =3D\n", "x-shellscript"),
        MIMEApplication(dice.randbytes(99)),
    ]
    parts = [part(data, dice), *dice.sample(others, dice.randrange(3))]
    dice.shuffle(parts)
    for one in parts:
        whole.attach(one)
    text = whole.as_bytes()
    return text.replace(b"\n", b"\r\n") if dice.random() < 0.2 else text


def packed(data: bytes, dice: random.Random) -> bytes:
    """Pack user data up to three times, as tools do it one after the other."""
    for _ in range(dice.choice([0, 0, 1, 1, 2, 3])):
        way = dice.randrange(5)
        if way == 0:
            data = compress(data, dice.choice([1, 6, 9]))
        elif way == 1:  # two members, the token perhaps across them
            at = dice.randrange(len(data))
            data = compress(data[:at]) + compress(data[at:])
        elif way == 2:
            data = base64.b64encode(data) if dice.random() < 0.5 else base64.encodebytes(data)
        elif way == 3:
            data = multipart(data, dice)
        elif data.isascii() and not data.startswith(b"\x1f"):
            items = [{"type": "text/cloud-config", "content": data.decode()}, "#!/bin/sh\n"]
            data = b"#cloud-config-archive\n" + json_of(items, dice).encode()
    return data


def ci_b64(data: bytes) -> str:
    """Write bytes into JSON as cloud-init's `json_serialize_default` does."""
    return "ci-b64:" + base64.b64encode(data).decode()


def stored(raw: bytes, config: Written) -> Iterator[tuple[str, bytes]]:
    """Yield what cloud-init makes of user data: its files by their names."""
    yield "user-data.txt", raw
    part_i = MIMEMultipart()
    text = MIMEText("", "cloud-config")
    del text["Content-Transfer-Encoding"]
    text.set_payload(config.text.decode("ascii", "surrogateescape"))
    part_i.attach(text)
    processed = part_i.as_bytes()
    yield "user-data.txt.i", processed
    merged = yaml.safe_load(config.text)
    if merged:
        yield (
            "cloud-config.txt",
            b"#cloud-config\n\n"
            + yaml.safe_dump(
                merged,
                line_break="\n",
                indent=4,
                explicit_start=True,
                explicit_end=True,
                default_flow_style=False,
            ).encode(),
        )
        yield (
            "combined.json",
            json.dumps({"ds": merged, "n": 1}, indent=1, sort_keys=True, default=ci_b64).encode(),
        )
        yield "sensitive.json", json.dumps({"ds": {"user_data": config.text.decode()}}).encode()
    yield "obj.pkl", pickle.dumps({"userdata_raw": raw, "userdata": processed.decode(), "n": [1]})
