"""Inputs after what people met: each file, and each one's kind."""

from __future__ import annotations

import base64
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstboot.base.errors import Invalid, NoToken
from firstboot.base.layout import Layout
from firstboot.commands.rehearse import check_userdata
from firstboot.provision import userdata
from firstboot.provision.erase.copies import erase
from firstboot.provision.schema import CHECKS, parse

CASES = Path(__file__).resolve().parents[1] / "vectors/field-cases"
TOKEN = "bet_field0123456789abcdefXYZ"
IDS = "api_base_url, org_id, project_id, environment_id"
# The file, the exit code of check-userdata, and words of what it says; "" for no warning at all.
EXPECTED = {
    "block-cut-bare-hash.yaml": (0, ""),
    "block-cut-crlf.yaml": (0, ""),
    "block-cut-note.yaml": (4, "line 4"),
    "block-cut-empty-line.yaml": (4, "line 5"),
    "near-blank-comment-before-token.yaml": (0, ""),
    "near-indented.yaml": (4, "line 2"),
    "near-space-after-hash.yaml": (4, "line 2"),
    "near-utf16.bin": (4, "UTF-16"),
    "near-write-files-mapping.yaml": (4, "write_files"),
    "near-bom-base64.txt": (4, "mark"),
    "wf-no-permissions.yaml": (0, "permissions"),
    "wf-0644.yaml": (0, "permissions"),
    "wf-owner-ubuntu.yaml": (4, "owner"),
    "check-etc-token.yaml": (0, IDS),
    "check-append.yaml": (0, ""),
    "check-jinja-write-files.yaml": (0, "jinja"),
    "check-runcmd.yaml": (0, "cannot be judged"),
    "autoinstall-top-comment.yaml": (0, "autoinstall"),
    "token-template.yaml": (4, "template that was not filled in"),
    "token-angle.yaml": (4, "template that was not filled in"),
    "token-newline.yaml": (0, "degraded"),
    "token-newline-json.yaml": (0, "degraded"),
    "ca-non-ascii-comment.yaml": (0, "degraded"),
    "erase-json-slash.yaml": (0, "degraded"),
    "erase-json-u0026.yaml": (0, "degraded"),
    "erase-yaml-x-escape.yaml": (0, ""),
    "erase-qp-equals.mime": (0, ""),
}


def judged(data: bytes, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    try:
        code, said = check_userdata(data), ""
    except (Invalid, NoToken) as error:
        code, said = error.exit_code, f"{error} {error.hint}"
    return code, said + capsys.readouterr().err


@pytest.mark.parametrize("name", EXPECTED)
def test_each_case_is_judged_as_it_should_be(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code, and what names the cause; never the token."""
    code, words = EXPECTED[name]
    found, said = judged((CASES / name).read_bytes(), capsys)
    assert (found, bool(said)) == (code, bool(words)), said
    assert words in said and TOKEN not in said


def test_no_case_is_left_out() -> None:
    """Every file has its line here, or a test of its own."""
    others = {"README.md", "gateway-answers.json", "redact-json-log.txt", "erase-azure-ovf-env.xml"}
    assert {path.name for path in CASES.iterdir()} == {*EXPECTED, *others}


def token_of(data: bytes) -> str | None:
    found = userdata.read(data, where="user data")
    token = parse(found.raw, where="it").get("enrollment_token") if found else None
    return None if token is None else str(token.reveal())


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("erase-")])
def test_what_was_read_is_erased(name: str, tmp_path: Path) -> None:
    """The receipt names the file, and what is left in it is user data without a token."""
    data = (CASES / name).read_bytes()
    token = token_of(data)
    assert token is not None
    path = tmp_path / "var/lib/cloud/instances/i/user-data.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (tmp_path / "var/lib/byteor/identity").mkdir(parents=True)
    receipt = erase(Layout(tmp_path), [token.encode()], now=1.7e9)
    assert [(copy.path, copy.result) for copy in receipt.copies] == [
        ("/var/lib/cloud/instances/i/user-data.txt", "overwritten")
    ]
    assert token_of(path.read_bytes()) is None and len(path.read_bytes()) == len(data)


def test_azures_own_copy_is_erased_and_stays_xml(tmp_path: Path) -> None:
    """cloud-init leaves ovf-env.xml with the custom data in it; only the base64 of it changes."""
    data = (CASES / "erase-azure-ovf-env.xml").read_bytes()
    custom = re.search(rb"CustomData>([^<]*)<", data)
    assert custom is not None
    token = token_of(base64.b64decode(custom.group(1)))
    assert token is not None
    path = tmp_path / "var/lib/waagent/ovf-env.xml"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (tmp_path / "var/lib/byteor/identity").mkdir(parents=True)
    receipt = erase(Layout(tmp_path), [token.encode()], now=1.7e9)
    assert [copy.result for copy in receipt.copies] == ["overwritten"]
    left = path.read_bytes()
    again = re.search(rb"CustomData>([^<]*)<", left)
    assert again is not None and again.span() == custom.span()
    assert (
        left[: custom.start(1)] + left[custom.end(1) :]
        == data[: custom.start(1)] + data[custom.end(1) :]
    )
    text = base64.b64decode(custom.group(1)).replace(token.encode(), b"x" * len(token))
    assert base64.b64decode(again.group(1)) == text


# -- each one's kind

LINES = [
    f"#  enrollment_token: {TOKEN}",
    "#  api_base_url: https://api.example",
    "#  org_id: org_1",
    "#  project_id: prj_1",
    "#  environment_id: env_1",
]
CUTS = [
    "",
    "# a note",
    "#!",
    "#no space",
    "#\ttab",
    "hostname: edge",
    "  ",
    "  org_id: other",
    "---",
]


@settings(max_examples=300, deadline=None)
@given(
    st.permutations(LINES),
    st.integers(0, 5),
    st.sampled_from(CUTS),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_block_is_read_whole_or_not_at_all(lines: list[str], at: int, cut: str, end: str) -> None:
    """Whatever stands in the middle of it: all five keys, or an error that names a line."""
    text = ["#cloud-config", "#byteor-firstboot:", *lines[:at], cut, *lines[at:], "users: []", ""]
    try:
        found = userdata.read(end.join(text).encode(), where="user data")
    except Invalid as error:
        assert re.search(r"line \d+ of user data", str(error)), error
        return
    assert found is not None and len(found.raw) == 5


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([" ", "    ", "\t", ""]),
    st.sampled_from(
        ["#byteor-firstboot:", "# byteor-firstboot:", "#byteor_firstboot:", "#Byteor-Firstboot:"]
    ),
    st.sampled_from(["", " "]),
    st.permutations(LINES),
)
def test_a_marker_in_any_spelling_is_named(
    indent: str, marker: str, space: str, lines: list[str]
) -> None:
    """Indented, with a space, an underscore or capitals: read as it is, or a near miss."""
    text = "#cloud-config\n" + "".join(
        f"{indent}{line}\n"
        for line in [marker, *(line.replace("#  ", f"#{space}  ") for line in lines)]
    )
    if not indent and marker == "#byteor-firstboot:":
        assert token_of(text.encode()) == TOKEN
    else:
        with pytest.raises(userdata.NearMiss, match="line 2"):
            userdata.read(text.encode(), where="user data")


@pytest.mark.parametrize(
    "text",
    [
        "#cloud-config\n# byteor-firstboot is installed below\npackages: [byteor-firstboot]\n",
        "#cloud-config\n# byteor-firstboot: see the wiki\nusers:\n- name: bob\n  gecos: x\n",
        "#cloud-config\n# byteor-firstboot:\n\n# name: of the host\nhostname: x\n",
        "#cloud-config\n# name: web\nhostname: byteor\n",
        "#!/bin/sh\n# byteor-firstboot: written late\nid=1; org_id: 2\necho /run/byteor-firstboot/settings.yaml\n",
    ],
)
def test_what_other_people_write_is_no_near_miss(text: str) -> None:
    """A host that is not ours stays one without a token, and not one with an error."""
    assert userdata.read(text.encode(), where="user data") is None


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["", "\n", "\r\n", " ", "\t\n"]),
    st.sampled_from(["", " ", "\n"]),
)
def test_white_space_around_a_token_is_cut_in_every_form(
    seed: int, after: str, before: str
) -> None:
    """A file's last line end is no part of a token."""
    dice = random.Random(seed)
    token = "bet_" + "".join(dice.choice("abcXYZ0189_-") for _ in range(24))
    value = CHECKS["enrollment_token"](before + token + after)
    assert value is not None and value.reveal() == token


@pytest.mark.parametrize(
    "value",
    [
        "${enrollment_token}", "{{ enrollment_token }}", "<your-enrollment-token>", "<ENROLLMENT_TOKEN>",
        "prefix-${TOKEN}-suffix", f'"{TOKEN}"', f"'{TOKEN}'", f"TOKEN={TOKEN}", f"export_1={TOKEN}",
    ],
)  # fmt: skip
def test_what_cannot_be_a_token_is_said(value: str) -> None:
    """A placeholder, quotes, an assignment: an error that says so and does not quote it."""
    with pytest.raises(ValueError, match="template|quotes|NAME=") as caught:
        CHECKS["enrollment_token"](value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["bet_abcdef&ghijKLMN<OPQRST>uv", "bet_abcdefghijKLMNOPQRSTuv==", "a=b{c}<d>e$f(g)h"]
)
def test_odd_tokens_stay_tokens(value: str) -> None:
    """What a control plane may mint is taken as it is."""
    found = CHECKS["enrollment_token"](value)
    assert found is not None and found.reveal() == value


@pytest.mark.parametrize(
    ("entry", "code", "word"),
    [
        ("permissions: '0600'", 0, ""),
        ("permissions: 0600", 0, ""),
        ("permissions: '0640'", 0, "permissions"),
        ("permissions: '0666'", 4, "permissions"),
        ("permissions: 600", 4, "permissions"),
        ("permissions: '0620'", 4, "permissions"),
        ("permissions: nonsense", 0, "permissions"),
        ("permissions: '0600'\n  owner: root:adm", 0, ""),
        ("permissions: '0600'\n  owner: ubuntu", 4, "owner"),
        ("permissions: '0600'\n  defer: true", 0, ""),
    ],
)
def test_modes_and_owners_are_judged_as_the_file_would_be(
    entry: str, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As first boot judges the file that cloud-init would write, under /var/run too."""
    for place in ("/run", "/var/run"):
        text = (
            f"#cloud-config\nwrite_files:\n- path: {place}/byteor-firstboot/settings.yaml\n"
            f"  {entry}\n  content: |\n" + "".join(f"    {line[3:]}\n" for line in LINES)
        )
        found, said = judged(text.encode(), capsys)
        assert found == code and word in said and bool(said) == bool(word), said


WARNED = {
    "a MIME header": b"MIME-Version: 1.0\nContent-Type: text/cloud-config\nX-Token: %s\n\n",
    "no handler for application/x-byteor": b"MIME-Version: 1.0\nContent-Type: application/x-byteor\n\n",
    "script holds": b"#!/bin/sh\n",
    "-x": b"#!/bin/sh -ex\n",
    "meta-data": b"instance-id: i-1\n",
}


@pytest.mark.parametrize("words", WARNED)
def test_what_leaks_is_said(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where cloud-init logs or keeps the token beyond what it must."""
    block = "#byteor-firstboot:\n" + "\n".join(LINES) + "\nx: 1\n"
    head = WARNED[words].replace(b"%s", TOKEN.encode())
    code, said = judged(head + block.encode(), capsys)
    assert code == 0 and words in said and TOKEN not in said


def test_other_files_with_the_token_and_sizes_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A readable copy that write_files makes, and the platforms that do not take the size."""
    block = "#byteor-firstboot:\n" + "\n".join(LINES) + "\n"
    other = f"write_files:\n- path: /etc/app.conf\n  content: key={TOKEN}\n"
    code, said = judged(f"#cloud-config\n{block}{other}".encode(), capsys)
    assert code == 0 and "/etc/app.conf" in said
    code, said = judged(f"#cloud-config\n{block}x: {'y' * 70_000}\n".encode(), capsys)
    assert code == 0 and "EC2 (16384), OpenStack (49149), Azure (65535)" in said


def test_lines_are_those_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    """A broken line is named as an editor shows it, in a MIME part too."""
    broken = "#cloud-config\n#byteor-firstboot:\n#  org_id: a\n#  name: 'x\n#  seal: y\n"
    for head in ("", "MIME-Version: 1.0\nContent-Type: text/cloud-config\n\n"):
        code, said = judged((head + broken).encode(), capsys)
        number = re.search(r"line (\d+)", said)
        assert code == 4 and number is not None, said
        assert int(number.group(1)) - head.count("\n") in (4, 5, 6), said
