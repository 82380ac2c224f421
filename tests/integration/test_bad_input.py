"""User data and files that are broken, hostile or huge: exit 3 or 4, one clear line, soon, and
never the token.
"""

from __future__ import annotations

import gzip
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host

TOKEN = "bet_canary0123456789abcdefghij"
NOISE = random.Random(1).randbytes(1 << 20)
SOON_S = 20  # far from what it takes, and far from for ever


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Iterator[Host]:
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    yield host


def block(text: str) -> bytes:
    return (
        b"#cloud-config\n#byteor-firstboot:\n"
        + "".join(f"#  {line}\n" for line in text.split("\n")).encode()
        + b"{}\n"
    )


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)

BROKEN = {
    "binary": NOISE[:100_000],
    "ten MiB of noise": NOISE * 10,
    "ten MiB of text": b"#cloud-config\n" + b"a: b\n" * (2 << 20),
    "gzip of garbage": b"\x1f\x8b\x08" + NOISE[:5000],
    "gzip bomb": gzip.compress(b"\0" * (200 << 20), 1),
    "unclosed quote in the block": block(f'enrollment_token: "{TOKEN}'),
    "tab in the block": block(f"\tenrollment_token: {TOKEN}"),
    "list for a mapping": block(f"- {TOKEN}"),
    "number for a text": block(f"enrollment_token: {TOKEN}\norg_id: 12"),
    "list for a token": block(f"enrollment_token: [{TOKEN}]"),
    "unknown key": block(f"enrollment_token: {TOKEN}\nenrolment_tokn: x"),
    "token key misspelt": block(f"enrollment_tokn: {TOKEN}"),
    "too short a token": block("enrollment_token: bet_short"),
    "deeply nested": block("x: " + "[" * 5000),
    "alias bomb in the block": block(ALIASES + f"enrollment_token: {TOKEN}"),
    "alias bomb in the mapping": f"#cloud-config\n{ALIASES}byteor:\n  enrollment_token: *i\n".encode(),
    "broken YAML with the mapping": f'#cloud-config\nbyteor:\n  enrollment_token: "{TOKEN}\n'.encode(),
    "two blocks": block(f"enrollment_token: {TOKEN}") + block(f"enrollment_token: {TOKEN}2"),
    "plain http": block(f"enrollment_token: {TOKEN}\napi_base_url: http://plane.example"),
    "another path in an id": block(f"enrollment_token: {TOKEN}\norg_id: ../../x"),
    "root commands in user data": block(
        f"enrollment_token: {TOKEN}\nactivation: {{command: [id]}}"
    ),
    "null bytes in the block": block(f"enrollment_token: {TOKEN}\0\0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_user_data_is_said_in_one_line_without_the_token(host: Host, case: str) -> None:
    """exit 3 or 4, one error and at most one hint, no token, no request, and it does not take
    long.
    """
    host.user_data(BROKEN[case])
    began = time.monotonic()
    done = host.run("-v")
    assert done.code in (3, 4), done
    assert time.monotonic() - began < SOON_S
    assert done.err.count("error:") == 1 and done.err.count("hint:") <= 1
    assert TOKEN not in done.err and "canary" not in done.err
    assert not host.enrollments()


@pytest.mark.parametrize("case", BROKEN)
def test_check_userdata_says_the_same_offline(host: Host, case: str, tmp_path: Path) -> None:
    """The offline check agrees with what a host would do."""
    (tmp_path / "ud").write_bytes(BROKEN[case])
    done = host.call("byteor-firstboot", "check-userdata", str(tmp_path / "ud"))
    assert done.code in (3, 4), done
    assert TOKEN not in done.err + done.out


def test_an_x_ed_token_reads_as_none(host: Host) -> None:
    """What erasing leaves behind is no token: exit 3."""
    host.user_data(block("enrollment_token: " + "x" * 40))
    assert host.run().code == 3


@pytest.mark.parametrize("spoil", ["world-readable", "symbolic link", "hard link", "fifo", "huge"])
def test_a_token_file_that_is_not_private_is_not_used(host: Host, spoil: str) -> None:
    """/etc/byteor/enrollment-token must be a private regular file with one name."""
    path = host.path("etc/byteor/enrollment-token")
    host.token(TOKEN)
    if spoil == "world-readable":
        path.chmod(0o644)
    elif spoil == "symbolic link":
        path.rename(host.path("etc/byteor/other"))
        path.symlink_to("other")
    elif spoil == "hard link":
        os.link(path, host.path("etc/byteor/other"))
    elif spoil == "fifo":
        path.unlink()
        os.mkfifo(path, 0o600)
    else:
        path.write_bytes(b"x" * (1 << 20))
    done = host.run()
    assert done.code in (4, 7), done
    assert not host.enrollments()
    assert TOKEN not in done.err


def test_the_callers_environment_changes_nothing(host: Host, tmp_path: Path) -> None:
    """.netrc, REQUESTS_CA_BUNDLE, SSL_CERT_FILE, SSLKEYLOGFILE and a lower-case proxy are not
    ours.
    """
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine 127.0.0.1 login x password y\n")
    host.token(host.mint())
    keys = tmp_path / "keys"
    nothing = str(tmp_path / "nothing.pem")
    environ = {
        "HOME": str(home),
        "REQUESTS_CA_BUNDLE": nothing,
        "CURL_CA_BUNDLE": nothing,
        "SSL_CERT_FILE": nothing,
        "SSL_CERT_DIR": nothing,
        "SSLKEYLOGFILE": str(keys),
        "ALL_PROXY": "http://127.0.0.1:1",
    }
    assert host.run(env=environ).code == 0
    assert not keys.exists()
    assert all(
        request["credential"]["kind"] == "enrollment_token" for request in host.enrollments()
    )


@pytest.mark.parametrize("name", ["marks.json", "intent.json", "credentials.sealed", "sealing.key"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"\0" * 100, b'{"v": 99}', NOISE[:5000]], ids=range(5)
)
def test_a_damaged_state_file_is_set_aside_or_said_and_never_a_traceback(
    host: Host, name: str, content: bytes
) -> None:
    """Each of our files, damaged before a run with a token: it enrolls (the old file kept) or stops
    with its code.
    """
    token = host.mint()
    host.token(token)
    host.write(f"var/lib/byteor/identity/{name}", content, 0o600)
    done = host.run()
    assert done.code == 0, done
    kept = [
        path
        for path in host.path("var/lib/byteor/identity").rglob("*")
        if path.is_file() and path.read_bytes() == content
    ]
    if name == "intent.json" and set(content) == {0}:
        assert not kept, "a wipe that was cut was not finished"
    else:
        assert kept, "the damaged file was thrown away"
