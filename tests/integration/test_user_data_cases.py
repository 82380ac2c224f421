"""What people make of user data, as `run` meets it: the field cases that are about more than words."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.boot.scan import scan_tree
from tests.integration.host import Host

CASES = Path(__file__).resolve().parents[1] / "vectors/field-cases"
TOKEN = "bet_field0123456789abcdefXYZ"


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    return host


@pytest.mark.parametrize("case", sorted(CASES.glob("block-cut-*")), ids=lambda path: path.stem)
def test_a_cut_block_never_sends_its_token_to_the_images_address(host: Host, case: Path) -> None:
    """The block names another address: it is read whole, or the run ends with 4."""
    host.user_data(case.read_bytes())
    done = host.run("--give-up-after", "1")
    assert done.code in (4, 6), done
    assert host.enrollments() == [] and TOKEN not in done.err


def test_a_near_miss_is_an_error_only_where_nothing_else_has_a_token(host: Host) -> None:
    """Alone it is exit 4 with its line; beside a token it is a warning; enrolled, it darkens nothing."""
    host.user_data((CASES / "near-space-after-hash.yaml").read_bytes())
    done = host.run()
    assert done.code == 4 and "line 2 of user data" in done.err, done
    host.token(host.mint())
    done = host.run()
    assert done.code == 0 and "line 2 of user data" in done.err, done
    assert host.run().code == 0
    status = json.loads(host.call("byteor-firstboot", "status", "--json").out)
    assert "line 2 of user data" in status["notices"][0] and status["problem"] is None, status


def test_a_near_miss_beside_a_working_form_is_a_warning_in_status(host: Host) -> None:
    """In another part of the same user data: the host enrolls, and somebody learns of it."""
    block = host.comment_block(host.mint())
    host.user_data(
        "Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n"
        f"--b\nContent-Type: text/cloud-config\n\n{block}\n"
        "--b\nContent-Type: text/cloud-config\n\n"
        "#cloud-config\n# byteor-firstboot:\n#  org_id: org_2\n--b--\n"
    )
    done = host.run()
    assert done.code == 0 and "is no marker" in done.err, done
    for _ in range(2):
        status = json.loads(host.call("byteor-firstboot", "status", "--json").out)
        assert "is no marker" in status["notices"][0] and status["problem"] is None, status


def test_a_token_in_etc_through_write_files_is_erased_from_user_data_too(host: Host) -> None:
    """Source 5, written by cloud-init: the file goes, and user data keeps no token."""
    token = host.mint()
    entry = {"path": "/etc/byteor/enrollment-token", "permissions": "0600", "content": token + "\n"}
    host.user_data("#cloud-config\n" + json.dumps({"write_files": [entry]}))
    host.token(token)
    assert host.run().code == 0
    assert not host.path("etc/byteor/enrollment-token").exists()
    assert not scan_tree(host.root, token)


def test_wrapped_base64_is_erased_end_to_end(host: Host) -> None:
    """The commonest form: `encoding: b64` and a literal block, and cloud-init's re-dump of it."""
    token = host.mint()
    settings = "".join(
        f"{key}: {json.dumps(value)}\n"
        for key, value in host.settings(enrollment_token=token).items()
    )
    lines = base64.encodebytes(settings.encode()).decode().splitlines()
    head = "#cloud-config\nwrite_files:\n- path: /run/byteor-firstboot/settings.yaml\n"
    head += "  permissions: '0600'\n  encoding: b64\n  content: "
    host.user_data(head + "|\n" + "".join(f"    {line}\n" for line in lines) + "bootcmd:\n- echo\n")
    redumped = head + "'" + "\n\n    ".join(lines) + "\n\n    '\n"
    dumped = host.write("var/lib/cloud/instances/iid-1/cloud-config.txt", redumped, 0o600)
    size = dumped.stat().st_size
    done = host.run()
    assert done.code == 0, done
    assert not scan_tree(host.root, token)
    assert dumped.stat().st_size == size
    for name in ("user-data.txt", "user-data.txt.i"):
        text = host.path(f"var/lib/cloud/instances/iid-1/{name}").read_text()
        assert text.endswith("\nbootcmd:\n- echo\n")


def test_a_token_file_is_read_again_by_a_later_erase(host: Host, tmp_path: Path) -> None:
    """It is its owner's, and is named as long as it holds the token; late copies go by it."""
    token = host.mint()
    given = tmp_path / "token"
    given.write_text(token)
    given.chmod(0o600)
    assert host.run("--token-file", str(given)).code == 0
    late = host.write("var/lib/cloud/instances/iid-1/scripts/runcmd", f"echo {token}\n")
    shown = json.loads(host.call("byteor-firstboot", "erase", "--json").out)
    rows = {row["path"]: row["result"] for row in shown["copies"]}
    assert rows[str(given)] == "kept" and token not in late.read_text()
    given.unlink()
    shown = json.loads(host.call("byteor-firstboot", "erase", "--json").out)
    assert str(given) not in [row["path"] for row in shown["copies"]]


def test_named_files_are_erased_and_others_are_said(host: Host) -> None:
    """`erase.paths` of the image's defaults; and a relative path is an error of the file."""
    token = host.mint()
    host.defaults(erase={"paths": ["/srv/app.conf", "/srv/open/app.conf"]})
    for name in ("srv/app.conf", "srv/open/app.conf"):
        host.write(name, f"key={token}\n")
    host.path("srv/open").chmod(0o777)
    host.token(token)
    done = host.run()
    assert done.code == 0, done
    assert token not in host.path("srv/app.conf").read_text()
    rows = json.loads(host.path("var/lib/byteor/identity/erasure.json").read_text())["copies"]
    assert {row["path"]: row["result"] for row in rows}["/srv/open/app.conf"] == "not_looked_at"
    host.defaults(erase={"paths": ["app.conf"]})
    done = host.call("byteor-firstboot", "preflight")
    assert done.code == 4 and "absolute paths" in done.err, done


def test_a_broken_line_says_to_mint_a_new_token(host: Host) -> None:
    """cloud-init prints it into logs: what is left of it there is x-ed out by `erase`."""
    text = '#cloud-config\nbyteor:\n  enrollment_token: "' + TOKEN + "\n  org_id: x\n"
    host.user_data(text)
    log = host.write("var/log/cloud-init.log", f'  enrollment_token: "{TOKEN[:24]} ... \n')
    done = host.run()
    assert done.code == 4 and "mint a new token" in done.err and TOKEN not in done.err, done
    assert host.call("byteor-firstboot", "erase").code == 0
    assert log.read_text() == '  enrollment_token: "' + "x" * 24 + " ... \n"
