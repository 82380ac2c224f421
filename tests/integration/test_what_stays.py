"""Copies of a spent token that stay, and are said again in every run until they are gone; and hints
that fit.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host

SEED = "var/lib/cloud/seed/nocloud/user-data"


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    return host


def copies(host: Host) -> list[dict[str, Any]]:
    return list(json.loads(host.path("var/lib/byteor/identity/erasure.json").read_text())["copies"])


def test_a_token_file_of_the_callers_is_left_and_said(host: Host, tmp_path: Path) -> None:
    """`run --token-file PATH` warns once that the file keeps the token; the receipt names it; it
    costs no exit code.
    """
    path = tmp_path / "token"
    path.write_text(host.mint())
    path.chmod(0o600)
    done = host.run("--token-file", str(path))
    assert done.code == 0 and done.err.count(f"the token stays in {path}") == 1, done
    assert [(row["path"], row["result"]) for row in copies(host)] == [(str(path), "kept")]
    assert path.read_text().startswith("bet_")


@pytest.fixture
def unchangeable(host: Host) -> Iterator[Path]:
    """User data with a fresh token, its seed with the immutable attribute."""
    host.user_data(host.comment_block(host.mint()))
    path = host.path(SEED)
    if (
        os.geteuid() != 0
        or subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs root and a file system with the immutable attribute")
    yield path
    subprocess.run(["chattr", "-i", str(path)], check=True)


def test_a_copy_that_remains_is_exit_9_until_it_is_gone(host: Host, unchangeable: Path) -> None:
    """The next run looks again although no source shows the token any more, and ends with 0 once
    the cause is mended.
    """
    for _ in range(3):
        done = host.run()
        assert done.code == 9 and SEED in done.err, done
    assert json.loads(host.call("byteor-firstboot", "status", "--json").out)["state"] == "enrolled"
    subprocess.run(["chattr", "-i", str(unchangeable)], check=True)
    assert host.run().code == 0
    assert b"bet_" not in unchangeable.read_bytes()
    assert host.run().code == 0


def test_an_erasing_that_fails_is_a_problem_in_status(host: Host) -> None:
    """Its receipt cannot be written, the datasource has put the token back: 10, until it can."""
    data = host.comment_block(host.mint())
    host.user_data(data)
    assert host.run().code == 0
    host.user_data(data)
    receipt = host.path("var/lib/byteor/identity/erasure.json")
    freeze = ["chattr", "+i", str(receipt)]
    if os.geteuid() != 0 or subprocess.run(freeze, capture_output=True).returncode:
        pytest.skip("needs root and a file system with the immutable attribute")
    assert host.call("byteor-firstboot", "erase").code == 7
    document = json.loads(host.call("byteor-firstboot", "status", "--json").out)
    assert "a spent token is still in /var/lib/cloud/instances/" in document["problem"]
    assert "user-data.txt" in document["problem"] and "byteor-firstboot erase" in document["hint"]
    done = host.call("byteor-firstboot", "status", "--check")
    assert done.code == 10 and "a spent token" in done.out + done.err, done
    subprocess.run(["chattr", "-i", str(receipt)], check=True)
    assert host.call("byteor-firstboot", "erase").code == 0
    assert json.loads(host.call("byteor-firstboot", "status", "--json").out)["problem"] is None


def test_a_served_token_is_erased_whatever_else_is_broken(host: Host) -> None:
    """An enrolled host erases a token that the datasource put back, also beside image defaults that
    are no YAML.
    """
    data = host.comment_block(host.mint())
    host.user_data(data)
    assert host.run().code == 0
    host.user_data(data)
    host.write("etc/byteor/firstboot.yaml", "x: [")
    done = host.run()
    assert (
        done.code == 0
        and "not used: /etc/byteor/firstboot.yaml" in done.err
        and "preflight reads it again" in done.err
    ), done
    assert b"bet_" not in host.path(SEED).read_bytes()
    assert {row["result"] for row in copies(host)} == {"overwritten"}


@pytest.mark.parametrize(
    ("defaults", "said"),
    [
        ({"activation": {"unit": 5}}, "activation.unit must be a text"),
        ({"activation": {"window_s": -1}}, "activation.window_s must be from 0"),
        ({"bet_0123456789abcdefghij": 1}, "an unknown key (not shown"),
    ],
)
def test_an_error_names_the_key_it_means(host: Host, defaults: dict[str, Any], said: str) -> None:
    """The inner key where it is inside a mapping; a key that could be a token is not shown, in
    words that read well.
    """
    host.defaults(**defaults)
    done = host.run()
    assert done.code == 4 and said in done.err, done


@pytest.mark.parametrize(
    ("code", "said"), [("name_taken", "another agent has this name"), ("token_used", "was used")]
)
def test_a_conflict_has_the_hint_of_its_own_code(host: Host, code: str, said: str) -> None:
    """A taken name and a used token need different people to do different things."""
    host.token(host.mint())
    host.plane.fault("enroll", "problem", times=1, status=409, code=code)
    done = host.run()
    assert done.code == 5 and said in done.err, done


def test_check_userdata_and_preflight_speak_json(host: Host) -> None:
    """One document each, whether it would work or not; the exit code is the same as without."""
    good = host.call(
        "byteor-firstboot",
        "check-userdata",
        "--json",
        "-",
        text=host.comment_block("bet_0123456789abcdef"),
    )
    assert (
        good.code == 0
        and json.loads(good.out)["would_enroll"] is True
        and json.loads(good.out)["form"]
    )
    bad = host.call("byteor-firstboot", "check-userdata", "--json", "-", text="#cloud-config\n")
    assert (
        bad.code == 3
        and json.loads(bad.out)["would_enroll"] is False
        and json.loads(bad.out)["hint"]
    )
    done = host.call("byteor-firstboot", "preflight", "--json")
    shown = json.loads(done.out)
    assert (
        done.code == 0
        and shown["token"] is False
        and {row["result"] for row in shown["checks"]} == {"ok"}
    )
    host.defaults(org_id=None)
    done = host.call("byteor-firstboot", "preflight", "--json")
    assert (
        done.code == 4
        and [row["check"] for row in json.loads(done.out)["checks"] if row["problem"]][0]
        == "settings"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_not_mended_by_root(host: Host) -> None:
    """The hint names the directory and the user id."""
    host.path("var/lib").chmod(0o555)
    done = host.run()
    host.path("var/lib").chmod(0o755)
    assert done.code == 7 and "run as root" in done.err, done
