"""A host that has enrolled: what changes, breaks or is lost later never costs it its agent."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from firstboot.base.layout import Layout
from firstboot.identity import store
from tests.boot.scan import scan_tree
from tests.integration.host import Host


def test_running_again_changes_nothing_and_asks_nobody(host: Host) -> None:
    """A second and third run leave the sealed file byte-identical and send no request at all."""
    token = host.mint()
    host.user_data(host.comment_block(token))
    assert host.run().code == 0
    before, requests = host.sealed(), len(host.plane.requests())
    host.user_data(host.comment_block(token))  # the datasource put it back
    for _ in range(2):
        assert host.run().code == 0
    assert host.sealed() == before
    assert len(host.plane.requests()) == requests
    assert not scan_tree(host.root, token)


def test_a_revoked_key_and_a_served_token_do_not_cost_the_identity(host: Host) -> None:
    """The spent token is still in user data and the key revoked: run keeps the identity and
    presents nothing.
    """
    token = host.mint()
    host.user_data(host.comment_block(token))
    assert host.run().code == 0
    agent = host.plane.agents()[0]
    host.plane.revoke(agent["agent_id"])
    host.user_data(host.comment_block(token))
    before, presented = host.sealed(), len(host.enrollments())
    assert host.run().code == 0
    assert host.sealed() == before
    assert len(host.enrollments()) == presented


def test_another_token_in_user_data_does_not_replace_an_identity(host: Host) -> None:
    """A fresh token on an enrolled host is said and left alone; reenroll uses it, and only then."""
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    first = host.sealed()
    second = host.mint()
    host.token(second)
    done = host.run()
    assert done.code == 0 and "reenroll" in done.err
    assert host.sealed() == first
    assert host.path("etc/byteor/enrollment-token").read_text().strip() == second
    assert host.call("byteor-firstboot", "reenroll").code == 0
    assert host.sealed() != first
    assert len(host.plane.agents()) == 2
    assert not host.path("etc/byteor/enrollment-token").exists()
    sealed = host.sealed()
    for token in (None, second):
        if token is not None:
            host.token(token)
        done = host.call("byteor-firstboot", "reenroll")
        assert done.code == 3 and "stays enrolled" in done.err and "delete" not in done.err, done
    assert host.sealed() == sealed


def test_a_copied_root_is_another_host_and_opens_again(host: Host, tmp_path: Path) -> None:
    """Another machine-id: exit 8 and nothing touched; the old one put back: it opens; a fresh
    token: its own agent.
    """
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    sealed, machine = host.sealed(), host.path("etc/machine-id").read_text()
    host.write("etc/machine-id", "f" * 32 + "\n")
    before = {
        path: path.read_bytes()
        for path in host.path("var/lib/byteor/identity").iterdir()
        if path.is_file()
    }
    for command in ("run", "unseal"):
        assert host.call("byteor-firstboot", command).code == 8
    after = {
        path: path.read_bytes()
        for path in host.path("var/lib/byteor/identity").iterdir()
        if path.is_file()
    }
    assert before == after and host.sealed() == sealed
    host.write("etc/machine-id", machine)
    assert host.run().code == 0
    host.write("etc/machine-id", "e" * 32 + "\n")
    host.token(host.mint())
    assert host.run().code == 0
    assert len(host.plane.agents()) == 2
    assert any(
        path.read_bytes() == sealed
        for path in host.path("var/lib/byteor/identity/set-aside").rglob("*.sealed")
    )


def test_a_damaged_identity_is_kept_and_said(host: Host) -> None:
    """Not one byte of an unreadable identity is changed without a fresh token: exit 7."""
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    path = host.path("var/lib/byteor/identity/credentials.sealed")
    damaged = host.sealed()[:-20] + b"x" * 20
    path.write_bytes(damaged)
    done = host.run()
    assert done.code == 7, done
    assert path.read_bytes() == damaged


def test_settings_that_break_later_do_not_darken_an_enrolled_host(host: Host) -> None:
    """A typo in the image defaults after enrollment: exit 0, said as a warning; without an
    identity: exit 4.
    """
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    host.write("etc/byteor/firstboot.yaml", "api_base_ulr: https://x.example\n")
    done = host.run()
    assert done.code == 0, done
    assert "api_base_url" in done.err  # the nearest key
    host.defaults()
    host.write("etc/byteor/enrollment-token", "bet_world_readable_0123456789", 0o644)
    assert host.run().code == 0  # a file that must not be read is no reason either
    host.path("etc/byteor/enrollment-token").unlink()
    host.write("etc/byteor/firstboot.yaml", "api_base_ulr: https://x.example\n")
    host.path("var/lib/byteor/identity/credentials.sealed").unlink()
    assert host.run().code == 4


def test_changed_user_data_does_not_reroute_an_enrolled_host(host: Host) -> None:
    """settings.json is frozen at enrollment; only the image's own file may change it later."""
    host.user_data(host.comment_block(host.mint()))
    assert host.run().code == 0
    frozen = json.loads(host.path("var/lib/byteor/settings.json").read_text())
    host.user_data(
        "#cloud-config\n#byteor-firstboot:\n#  api_base_url: https://evil.example\nhostname: x\n"
    )
    host.write(
        "etc/byteor/firstboot.yaml",
        "heartbeat_interval_s: 77\napi_base_url: https://other.example\n",
    )
    assert host.run().code == 0
    again = json.loads(host.path("var/lib/byteor/settings.json").read_text())
    assert again["api_base_url"] == frozen["api_base_url"]
    assert again["heartbeat_interval_s"] == 77


@pytest.mark.parametrize("name", ["marks.json", "intent.json", "erasure.json", "../settings.json"])
@pytest.mark.parametrize("kind", ["huge", "directory", "fifo", "link", "types"])
def test_no_damage_to_a_state_file_keeps_an_enrolled_host_from_its_agent(
    host: Host, name: str, kind: str
) -> None:
    """Set aside, never deleted: run hands off, erase and status work, and the agent beats on its
    own state likewise.
    """
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    path = host.path("var/lib/byteor/identity") / name
    path.unlink(missing_ok=True)
    if kind == "huge":
        path.write_bytes(b" " * (3 << 20))
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("elsewhere")
    else:
        path.write_text('{"v":1,"marks":5,"key":7,"copies":3,"history":{}}')
    if path.is_file() and not path.is_symlink():
        path.chmod(0o600)
    for command in (["status"], ["run"], ["erase"], ["status", "--json"]):
        done = host.call("byteor-firstboot", *command)
        assert done.code == 0, (command, done)
        assert command != ["run"] or "handed off" in done.err, done
    assert json.loads(done.out)["state"] == "enrolled", done


def test_what_was_sealed_before_the_machine_id_was_committed_is_bound_later(
    tmp_path: Path, control_plane: Any
) -> None:
    """Sealed in an image that had no machine-id yet, bound by the first run after it has one; then
    a clone is foreign.
    """
    host = Host(tmp_path / "root", control_plane, machine_id="uninitialized")
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    before = host.sealed()
    assert host.run().code == 0 and host.sealed() == before
    host.write("etc/machine-id", "a" * 32 + "\n")
    assert host.run().code == 0 and host.sealed() != before
    assert len(host.enrollments()) == 1
    bound = host.sealed()
    assert host.run().code == 0 and host.sealed() == bound
    host.write("etc/machine-id", "b" * 32 + "\n")
    assert host.run().code == 8


def spoiled(path: Path, how: str) -> None:
    """Give a file of ours a mode, owner, link or type that it must not have."""
    if how == "mode":
        path.chmod(0o644)
    elif how == "owner":
        os.chown(path, 12345, 12345)
    elif how == "hard link":
        os.link(path, path.with_name("backup"))
    else:
        path.unlink()
        path.symlink_to("elsewhere") if how == "link" else path.mkdir()


LOCKS, HELD = ("lock", "run.lock"), ("marks.json", "erasure.json", "intent.json")


# Links and directories in place of the latter are damage, above.
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *itertools.product((*LOCKS, *HELD), ("mode", "owner", "hard link")),
        *itertools.product(LOCKS, ("link", "directory")),
    ],
)
def test_a_neighbour_of_the_identity_never_keeps_a_host_from_its_agent(
    host: Host, name: str, how: str
) -> None:
    """Hand-off comes first: a warning, exit 0, and `status` says enrolled."""
    if how == "owner" and os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    path = host.path("var/lib/byteor/identity") / name
    path.touch(mode=0o600)
    spoiled(path, how)
    done = host.run()
    assert done.code == 0 and "handed off" in done.err, done
    shown = json.loads(host.call("byteor-firstboot", "status", "--json").out)
    assert shown["state"] == "enrolled", shown


@pytest.mark.parametrize("how", ["mode", "hard link", "link"])
def test_a_good_identity_is_never_set_aside_for_its_keys_mode(host: Host, how: str) -> None:
    """With an unused token in a source: exit 7 with the inner hint, and not a second agent."""
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    sealed, key = host.sealed(), host.path("var/lib/byteor/identity/sealing.key")
    if how == "link":
        key.rename(key.with_name("elsewhere"))
        key.symlink_to("elsewhere")
    else:
        spoiled(key, how)
    host.token(host.mint())
    for _ in range(2):
        done = host.run()
        assert done.code == 7 and "sealing.key" in done.err and "hint: " in done.err, done
    assert host.sealed() == sealed and len(host.plane.agents()) == 1
    assert not host.path("var/lib/byteor/identity/set-aside").exists()
    assert host.call("byteor-firstboot", "reenroll").code == 0, "the operator's way out"
    assert len(host.plane.agents()) == 2


@pytest.mark.parametrize("how", ["gone", "{", "[]", '{"v": 1}', "other"])
def test_lost_settings_never_widen_trust(host: Host, how: str) -> None:
    """Certificates, proxy and its exceptions are sealed with the identity, and come from there."""
    proxy = "http://user:secret0123@127.0.0.1:9"
    where = host.settings()
    excepted = [where["api_base_url"].split("//")[1].split(":")[0]]
    host.user_data(host.comment_block(host.mint(), proxy=proxy, no_proxy=excepted))
    assert host.run().code == 0
    path = host.path("var/lib/byteor/settings.json")
    before = json.loads(path.read_text())
    assert before["ca_certificates"] and before["proxy"] is None
    host.user_data(host.comment_block(host.mint()).replace(where["api_base_url"], "https://evil"))
    path.unlink()
    if how != "gone":
        path.write_text(json.dumps({**before, "no_proxy": 7}) if how == "other" else how)
    done = host.run()
    assert done.code == 0 and "from the sealed identity" in done.err, done
    after = json.loads(path.read_text())
    for key in ("api_base_url", "org_id", "ca_certificates", "proxy", "no_proxy"):
        assert after[key] == before[key], key
    assert host.call("byteor-firstboot", "unseal").code == 0
    assert json.loads(host.path("run/byteor-agent/handover.json").read_text())["proxy"] == proxy


def test_the_sealed_routing_follows_the_images_defaults(host: Host) -> None:
    """A new proxy of the operator's is sealed as well; a password that enrollment gave stays."""
    host.defaults()
    host.token(host.mint())
    assert host.run().code == 0
    layout = Layout(host.root)
    host.defaults(proxy="http://127.0.0.1:9", no_proxy=["x.example"])
    assert host.run().code == 0
    here = store.required(layout)
    assert here.proxy is not None and here.proxy.reveal() == "http://127.0.0.1:9"
    assert here.no_proxy == ("x.example",) and here.ca_certificates == host.plane.ca_pem
    host.defaults()
    done = host.run()
    assert done.code == 0 and "no_proxy is back at its default" in done.err, done
    assert store.required(layout).no_proxy == ()
    sealed = host.sealed()
    assert host.run().code == 0 and host.sealed() == sealed


def test_status_names_what_changed_and_what_is_set_aside(host: Host) -> None:
    """A key back at its default, another product UUID, an identity set aside; then it is quiet."""
    host.write("sys/class/dmi/id/product_uuid", "4c4c4544-0042-3510-8051-b4c04f4b5831\n")
    host.defaults(heartbeat_interval_s=7)
    host.token(host.mint())
    assert host.run().code == 0

    def notices() -> list[str]:
        shown = json.loads(host.call("byteor-firstboot", "status", "--json").out)
        assert shown["state"] == "enrolled" and shown["problem"] is None
        found: list[str] = shown["notices"]
        return found

    assert notices() == []
    host.write("sys/class/dmi/id/product_uuid", "4c4c4544-0042-3510-8051-b4c04f4b5899\n")
    host.defaults()
    host.path("var/lib/byteor/identity/set-aside/1").mkdir(parents=True)
    assert host.run().code == 0
    found = notices()
    assert "product UUID" in found[0] and "heartbeat_interval_s" in found[1] and len(found) == 3
    assert found[2].endswith("/var/lib/byteor/identity/set-aside/1")
    assert host.run().code == 0
    assert len(notices()) == 2 and "product UUID" in notices()[0]


def test_reenroll_takes_a_bare_token_to_where_the_identity_points(host: Host) -> None:
    """Enrolled from user data, which is gone: address, ids, CA come from the identity, no source
    redirects them, and the agent that is superseded is named.
    """
    host.user_data(host.comment_block(host.mint()))
    assert host.run().code == 0
    (first,) = host.plane.agents()
    host.user_data("#cloud-config\nhostname: edge-node-01\n")
    host.write("etc/byteor/firstboot.yaml", "api_base_url: https://evil.example\norg_id: other\n")
    done = host.call("byteor-firstboot", "reenroll", "--token-file", "-", text=host.mint())
    assert done.code == 0 and f"agent {first['agent_id']} is superseded" in done.err, done
    settings = json.loads(host.path("var/lib/byteor/settings.json").read_text())
    assert settings["api_base_url"] == host.plane.base_url
    assert settings["ca_certificates"] == host.plane.ca_pem
    assert host.run().code == 0
    again = json.loads(host.path("var/lib/byteor/settings.json").read_text())
    assert again["api_base_url"] == host.plane.base_url
    assert len(host.plane.agents()) == 2


def test_an_enrollment_without_an_answer_is_named_where_another_identity_is(host: Host) -> None:
    """A reenroll whose answer was lost may have left an agent at the control plane."""
    host.defaults(name="edge-one")
    host.token(host.mint())
    assert host.run().code == 0
    host.defaults(name="edge-two")
    host.token(host.mint())
    host.plane.fault("enroll", "drop", when="after")
    assert host.call("byteor-firstboot", "reenroll", "--give-up-after", "0").code == 6
    shown = json.loads(host.call("byteor-firstboot", "status", "--json").out)
    assert shown["state"] == "enrolled"
    assert "edge-two had no answer" in shown["notices"][0]
