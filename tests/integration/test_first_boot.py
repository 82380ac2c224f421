"""First boot driven as a user drives it: the installed command, a scratch root, the reference
control plane over TLS.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from firstboot.base import systemd
from firstboot.base.clock import Clock
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.commands.status import describe
from firstboot.identity import store
from firstboot.provision import facts
from firstboot.provision.cleanup import erase_again
from firstboot.provision.run import Options, run
from firstboot.provision.sources import Inputs
from tests.boot.scan import scan_tree
from tests.integration.host import Host
from tests.integration.spawn import BIN


def test_user_data_to_identity_and_no_token_left(host: Host) -> None:
    """One run: one agent, a sealed identity, private modes, the token nowhere under the root, a
    receipt.
    """
    token = host.mint()
    host.user_data(host.comment_block(token))
    assert len(scan_tree(host.root, token)) >= 4
    done = host.run()
    assert done.code == 0, done
    assert [agent["name"] for agent in host.plane.agents()]
    assert not scan_tree(host.root, token)
    identity = host.path("var/lib/byteor/identity")
    assert stat.S_IMODE(identity.stat().st_mode) == 0o700
    for name in ("credentials.sealed", "marks.json", "erasure.json"):
        assert stat.S_IMODE((identity / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE((identity / "sealing.key").stat().st_mode) == 0o400
    assert not (identity / "intent.json").exists()
    assert stat.S_IMODE(host.path("var/lib/byteor/settings.json").stat().st_mode) == 0o644
    assert json.loads((identity / "erasure.json").read_text())["v"] == 2


@pytest.mark.parametrize("channel", ["user data", "stdin"])
def test_nothing_that_cloud_init_may_read_is_erased_while_it_is_at_work(
    host: Host, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` ends well and `status` says pending; the next one, or byteor-erase, erases.

    A token from stdin, which nobody can read again, is erased at once where no stage needs it.
    """
    token, stdin = host.mint(), None
    host.user_data(host.comment_block(token))
    held = len(scan_tree(host.root, token))
    if channel == "stdin":
        host.defaults()
        host.user_data(f"#cloud-config\n# {token}\nhostname: edge-node-01\n")
        stdin = token.encode()
    layout = Layout(host.root)
    inputs = Inputs(token_file=None if stdin is None else "-", stdin=stdin)
    monkeypatch.setattr(facts, "cloud_init_finished", lambda layout: False)
    assert run(layout, inputs, Options()) == 0
    copies = scan_tree(host.root, token)
    if channel == "stdin":
        assert not copies
        return
    assert len(copies) == held and not layout.erasure.exists()
    assert describe(layout, inputs, clock=Clock())[0]["erasure"]["pending"]
    assert erase_again(layout, inputs, refused=False, as_json=False) == 0
    assert len(scan_tree(host.root, token)) == held
    monkeypatch.setattr(systemd, "inside", lambda unit: unit == "byteor-erase.service")
    assert erase_again(layout, inputs, refused=False, as_json=False) == 0
    assert not scan_tree(host.root, token)


def test_a_name_is_sent_and_otherwise_the_host_name(tmp_path: Path, control_plane: Any) -> None:
    """Configured name: that; none: hostname, from which the backend derives a unique one."""
    for number, name in enumerate(("edge-7", None)):
        host = Host(tmp_path / f"root{number}", control_plane)
        host.defaults(name=name)
        host.token(host.mint())
        assert host.run().code == 0
    assert "edge-7" in {agent["name"] for agent in control_plane.agents()}
    assert any("edge-node-01" in agent["name"] for agent in control_plane.agents())


@pytest.mark.parametrize("channel", ["stdin", "token-file", "credential", "mapping", "drop", "etc"])
def test_every_channel_enrolls_and_is_erased_where_it_is_ours(
    host: Host, channel: str, tmp_path: Path
) -> None:
    """Each source brings a host up; the drop place and /etc/byteor/enrollment-token are gone
    afterwards.
    """
    token = host.mint()
    host.defaults()
    arguments, environ, text = [], {}, ""
    if channel == "stdin":
        arguments, text = ["--token-file", "-"], token + "\n"
    elif channel == "token-file":
        (tmp_path / "token").write_text(token)
        (tmp_path / "token").chmod(0o600)
        arguments = ["--token-file", str(tmp_path / "token")]
    elif channel in ("credential", "mapping"):
        directory = tmp_path / "credentials"
        directory.mkdir(0o700)
        name, content = "byteor.enrollment-token", token
        if channel == "mapping":
            name, content = "byteor.firstboot", json.dumps(host.settings(enrollment_token=token))
        (directory / name).write_text(content)
        (directory / name).chmod(0o400)
        environ = {"CREDENTIALS_DIRECTORY": str(directory)}
    elif channel == "drop":
        drop = host.write(
            "run/byteor-firstboot/settings.yaml", json.dumps({"enrollment_token": token}), 0o600
        )
        host.path("run/byteor-firstboot").chmod(0o755)
    else:
        host.token(token)
    done = host.run(*arguments, env=environ, text=text)
    assert done.code == 0, done
    assert len(host.plane.agents()) == 1
    assert not scan_tree(host.root, token)
    if channel == "drop":
        assert not drop.exists()
        assert stat.S_IMODE(drop.parent.stat().st_mode) == 0o700
    if channel == "etc":
        assert not host.path("etc/byteor/enrollment-token").exists()


def test_two_runs_at_once_make_one_agent(host: Host) -> None:
    """The second waits for the first, finds the identity, and both end well."""
    host.defaults()
    host.token(host.mint())
    first, second = host.start("byteor-firstboot", "run"), host.start("byteor-firstboot", "run")
    codes = [process.communicate(timeout=60) and process.returncode for process in (first, second)]
    assert codes == [0, 0]
    assert len(host.plane.agents()) == 1
    assert len(host.enrollments()) == 1


def test_no_secret_anywhere_it_does_not_belong(host: Host, tmp_path: Path) -> None:
    """Token and runtime key are in no argv, environment, output at the most verbose, JSON, or plain
    file.
    """
    token = host.mint()
    host.user_data(host.comment_block(token, heartbeat_interval_s=5))
    trace = tmp_path / "trace"
    process = (
        subprocess.run(
            [
                "strace",
                "-f",
                "-qq",
                "-e",
                "trace=execve",
                "-s",
                "4096",
                "-v",
                "-o",
                str(trace),
                str(BIN / "byteor-firstboot"),
                "run",
                "-v",
                "--root",
                str(host.root),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if os.access("/usr/bin/strace", os.X_OK)
        else host.run("-v")
    )
    said = (
        process.stdout + process.stderr
        if isinstance(process, subprocess.CompletedProcess)
        else process.err
    )
    assert host.call("byteor-firstboot", "unseal").code == 0
    handed = json.loads(host.path("run/byteor-agent/handover.json").read_text())
    key = next(value for name, value in handed.items() if "key" in name)
    assert len(key) > 16
    texts = {"the first run": said, "execve": trace.read_text() if trace.exists() else ""}
    for command in (
        ["run", "-v"],
        ["status", "--json"],
        ["erase", "--json", "-v"],
        ["verify", "--json"],
    ):
        done = host.call("byteor-firstboot", *command)
        texts[" ".join(command)] = done.out + done.err
    host.path("run/byteor-agent/handover.json").unlink()
    for name in (
        "settings.json",
        "identity/erasure.json",
        "identity/marks.json",
        "identity/credentials.sealed",
    ):
        texts[name] = host.path(f"var/lib/byteor/{name}").read_text()
    for where, text in texts.items():
        assert token not in text and key not in text, where
    assert not scan_tree(host.root, token)
    kept = [
        path
        for path in host.root.rglob("*")
        if path.is_file() and key.encode() in path.read_bytes()
    ]
    assert not kept


def test_an_operator_token_as_an_argument_is_not_repeated(host: Host) -> None:
    """Usage, exit 2, and the secret is not printed once more."""
    done = host.call("byteor-firstboot", "verify", "--operator-token", "bop_canary_0123456789")
    assert done.code == 2 and "canary" not in done.err


def test_an_unreadable_identity_of_a_durable_intent_is_answered_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that flips a bit after sealing: the same key, and the same agent comes back.

    Seen: a new key, then 410, and the identity lost.
    """
    host.defaults()
    host.token(host.mint())
    layout, save = Layout(host.root), store.save

    def badly(layout: Layout, identity: store.Identity, *, seal: str) -> None:
        save(layout, identity, seal=seal)
        data = layout.credentials.read_bytes()
        layout.credentials.write_bytes(data.replace(data[-20:-10], b"0" * 10))

    monkeypatch.setattr(store, "save", badly)
    with pytest.raises(LocalFault, match="does not read back") as caught:
        run(layout, Inputs(), Options())
    assert caught.value.exit_code == 7 and layout.intent.exists()
    monkeypatch.setattr(store, "save", save)
    assert run(layout, Inputs(), Options()) == 0
    assert len(host.plane.agents()) == 1
    assert len({row["headers"]["idempotency-key"] for row in host.enrollments()}) == 1
    assert (layout.set_aside / "1" / "credentials.sealed").exists()


def test_a_look_changes_nothing(host: Host) -> None:
    """`status` and `preflight` leave modes, times and files as they are, and no key in an image."""
    host.defaults()
    drop = json.dumps({"enrollment_token": host.mint()})
    host.write("run/byteor-firstboot/settings.yaml", drop, 0o644)
    host.path("run/byteor-firstboot").chmod(0o755)
    host.write("var/lib/byteor/identity/marks.json", "{", 0o600)
    host.path("var/lib/byteor/identity").chmod(0o700)

    def tree() -> dict[str, tuple[int, int]]:
        facts = {str(p): p.lstat() for p in host.root.rglob("*") if "identity" not in p.name}
        return {name: (f.st_mode, f.st_mtime_ns) for name, f in facts.items()}

    before = tree()
    shown = json.loads(host.call("byteor-firstboot", "status", "--json").out)
    assert shown["state"] == "token_waiting" and tree() == before
    assert host.call("byteor-firstboot", "preflight").code == 0
    after = tree()
    assert {name: after[name] for name in before} == before
    assert {Path(name).name for name in after.keys() - before.keys()} <= {"lock", "agent"}
    # A key that is there is the one that `run` seals with.
    key = host.write("var/lib/byteor/identity/sealing.key", bytes(32), 0o400)
    assert host.call("byteor-firstboot", "preflight").code == 0 and key.read_bytes() == bytes(32)
