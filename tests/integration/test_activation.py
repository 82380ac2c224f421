"""Root judges what an agent brought: the good is activated, the hostile refused by its own code,
and nothing else changes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane import signing
from tests.controlplane.signing import SigningKey
from tests.controlplane.spoil import SPOILERS
from tests.integration.activations import Activations, tree

GATED = [code for code in SPOILERS if code.startswith("approval_")]
HOSTILE = [(code, variant) for code, variants in SPOILERS.items() for variant in variants]
# Verified to be the plane's and for us: it is told why.
TOLD = {"bundle_digest", "bundle_size", "malformed_bundle", "spec_hash", "unsafe_archive", *GATED}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    """A host with one deployment in force, to be copied."""
    host = Activations(tmp_path_factory.mktemp("deployed") / "root")
    host.deploy("good")
    return host


@pytest.fixture
def host(deployed: Activations, tmp_path: Path) -> Activations:
    """One of the test's own."""
    return deployed.copy(tmp_path / "root")


def outside(host: Activations) -> dict[str, Any]:
    """Everything that a refusal must leave alone: all but the activator's books and the agent's
    inbox.
    """
    return tree(host.root, without=[host.state / "activation", host.state / "agent"])


def test_a_good_deployment_is_in_force(host: Activations) -> None:
    """Complete directory, relative link, documented path, public keys beside the specification, one
    report, readable by all.
    """
    assert host.spec() == "name = good\n"
    assert os.readlink(host.state / "current") == "deployments/dep_good-1"
    assert os.readlink(host.root / "etc/byteor/spec.kv") == "/var/lib/byteor/current/spec.kv"
    directory = host.state / "deployments/dep_good-1"
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes == {"spec.kv": 0o644, "signing_keys.json": 0o644, ".deployment.json": 0o644}
    assert [
        key["kid"] for key in json.loads((directory / "signing_keys.json").read_text())["keys"]
    ] == ["kid-1"]
    assert host.said() == [("dep_good", "active", "no_unit")]
    record = host.record()
    assert record["current"]["state"] == "active" and record["wanted"] is None
    assert not (host.state / "activation/journal.json").exists()


def test_a_bundle_is_asked_for_only_once_its_envelope_was_verified(host: Activations) -> None:
    """Step one names exactly the bundle that the plane signed; step two activates it."""
    made = host.make("next")
    host.offer(made, bundle=False)
    host.activate()
    assert host.record()["wanted"] == {
        "deployment_id": "dep_next",
        "sequence": 2,
        **made.payload["bundle"],
    }
    assert host.spec() == "name = good\n"
    host.offer(made)
    host.activate()
    assert host.spec() == "name = next\n" and host.record()["wanted"] is None


@pytest.mark.parametrize(("code", "variant"), HOSTILE)
def test_the_hostile_is_refused_by_its_code(host: Activations, code: str, variant: str) -> None:
    """`current` stays, nothing outside the books changes, and the plane is told only of what it
    signed for us.
    """
    before = outside(host)
    host.offer(
        host.make("bad", broken=code, variant=variant, posture="prod" if code in GATED else "dev")
    )
    host.activate()
    verdict = "waiting" if code == "not_yet_valid" else "refused"
    assert host.verdicts()[-1][1:] == (verdict, code)
    assert outside(host) == before
    assert host.said()[1:] == ([("dep_bad", "failed", code)] if code in TOLD else [])


@pytest.mark.parametrize(("sequence", "code"), [(1, "rolled_back_sequence"), (2, "equivocation")])
def test_the_order_of_deployments_is_kept(host: Activations, sequence: int, code: str) -> None:
    """An older sequence, and another payload under the newest one, are refused whatever signed
    them.
    """
    host.deploy("newer")
    host.offer(host.make("other", sequence=sequence))
    host.activate()
    assert host.verdicts()[-1] == ("dep_other", "refused", code) and host.spec() == "name = newer\n"


def test_the_same_again_is_nothing_new(host: Activations) -> None:
    """Equal bytes are a no-op: no second activation, report or verdict, also after their expiry."""
    made = host.make("short", expires_in_s=3600)
    host.offer(made)
    host.activate()
    before, said = host.verdicts(), host.said()
    host.request()
    host.activate()
    assert (host.verdicts(), host.said()) == (before, said)


def test_without_a_trusted_clock_it_waits(host: Activations) -> None:
    """Neither refused nor activated; once the plane's clock agrees it is activated."""
    made = host.make("later")
    host.offer(made, offset=301.0)
    host.activate()
    assert (
        host.verdicts()[-1] == ("dep_later", "waiting", "clock_not_trusted")
        and host.spec() == "name = good\n"
    )
    host.offer(made, offset=-299.0)
    host.activate()
    assert host.spec() == "name = later\n"


@pytest.mark.parametrize("planted", ["link", "fifo", "directory", "socket", "huge"])
@pytest.mark.parametrize("name", ["envelope.json", "keysets.json", "bundle"])
def test_a_malicious_inbox_gets_nowhere(host: Activations, name: str, planted: str) -> None:
    """Links, FIFOs, directories, sockets and endless files: the run ends, and what is in force
    stays.
    """
    made = host.make("bad")
    host.offer(made)
    path = host.inbox / (f"{made.payload['bundle']['sha256']}.bundle" if name == "bundle" else name)
    path.unlink(missing_ok=True)
    _plant(path, planted, host)
    before = outside(host)
    host.activate()
    if name == "keysets.json":
        assert host.verdicts()[-1][1] in ("active", "refused") or host.spec() == "name = good\n"
        return
    assert host.spec() == "name = good\n" and outside(host) == before
    if name == "bundle":
        assert host.verdicts()[-1][1] == "refused" and host.verdicts()[-1][2] in (
            "malformed_bundle",
            "bundle_size",
        )


def _plant(path: Path, planted: str, host: Activations) -> None:
    if planted == "link":
        secret = host.state / "secret"
        secret.write_text("root's")
        path.symlink_to(secret)
    elif planted == "fifo":
        os.mkfifo(path)
    elif planted == "directory":
        path.mkdir()
    elif planted == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            here = os.getcwd()
            os.chdir(path.parent)  # the path of a socket is short
            try:
                made.bind(path.name)
            finally:
                os.chdir(here)
    else:
        path.touch()
        os.truncate(path, 1 << 40)


def test_a_command_activates_and_a_check_judges(tmp_path: Path) -> None:
    """The operator's command sees the new specification; a check that fails puts the old one back,
    and says so in order.
    """
    place = tmp_path / "seen"
    root = tmp_path / "root"
    spec = root / "var/lib/byteor/current/spec.kv"
    host = Activations(root, activation={
        "command": ["/bin/sh", "-c", f"cat {spec} >> {place}"],
        "health": ["/bin/sh", "-c", f"echo checking password=hunter22hunter; ! grep -q bad {spec}"],
    })  # fmt: skip
    host.deploy("good")
    host.deploy("bad")
    assert place.read_text() == "name = good\nname = bad\nname = good\n"
    assert host.spec() == "name = good\n"
    (_, active, _), (named, failed, why), (_, undone, _) = host.said()
    assert (named, active, failed, undone) == ("dep_bad", "active", "failed", "rolled_back")
    assert why == "health_check_failed"
    diagnostic = next((host.state / "activation/outcomes").glob("*.txt")).read_text()
    assert "checking" in diagnostic and "hunter22" not in diagnostic
    assert host.verdicts()[-1] == ("dep_bad", "rolled_back", "health_check_failed")
    host.request()
    host.activate()
    assert len(host.said()) == 3  # not tried again
    host.deploy("better")
    assert host.spec() == "name = better\n"


def test_the_first_of_all_that_fails_leaves_nothing_in_force(tmp_path: Path) -> None:
    """No predecessor: `failed` alone, and no link that names what failed."""
    host = Activations(tmp_path / "root", activation={"command": ["/bin/false"]})
    host.deploy("bad")
    assert host.spec() is None and not os.path.lexists(host.state / "current")
    assert [status for _, status, _ in host.said()] == ["failed"]
    assert host.record()["current"] is None


def test_a_way_back_that_fails_is_said(tmp_path: Path) -> None:
    """The predecessor is in force again though not healthy: `failed` with `rollback_failed`, and
    the state is degraded.
    """
    flag = tmp_path / "broken"
    host = Activations(
        tmp_path / "root", activation={"command": ["/bin/sh", "-c", f"test ! -e {flag}"]}
    )
    host.deploy("good")
    flag.touch()
    host.deploy("bad")
    assert host.spec() == "name = good\n"
    assert host.said()[-1] == ("dep_bad", "failed", "rollback_failed")
    assert host.record()["current"]["state"] == "degraded"


def test_an_operator_may_try_once_more(tmp_path: Path) -> None:
    """`retry` activates what failed, from the directory that is still there; what did not fail or
    is old it declines.
    """
    flag = tmp_path / "broken"
    host = Activations(
        tmp_path / "root", activation={"command": ["/bin/sh", "-c", f"test ! -e {flag}"]}
    )
    host.deploy("good")
    flag.touch()
    host.deploy("bad")
    for bundle in host.inbox.glob("*.bundle"):
        bundle.unlink()
    flag.unlink()
    done = host.command("retry", "dep_bad")
    assert done.returncode == 0, done.stderr
    assert host.spec() == "name = bad\n" and host.said()[-1] == ("dep_bad", "active", None)
    assert host.command("retry", "dep_bad").returncode == 4
    assert host.command("retry", "dep_good-1").returncode == 4
    assert host.command("retry", "dep_none").returncode == 4


def test_a_refused_bundle_is_fetched_afresh_on_retry(host: Activations) -> None:
    """After `retry` the agent is told to bring the bundle again, and the right one is activated."""
    made = host.make("torn")
    host.offer(made)
    bundle = host.inbox / f"{made.payload['bundle']['sha256']}.bundle"
    bundle.write_bytes(bytes(len(made.bundle)))
    host.activate()
    assert host.verdicts()[-1] == ("dep_torn", "refused", "bundle_digest")
    bundle.unlink()
    assert host.command("retry", "dep_torn").returncode == 0
    assert host.record()["wanted"]["deployment_id"] == "dep_torn"
    host.offer(made)
    host.activate()
    assert host.spec() == "name = torn\n"


def test_three_directories_are_kept_and_the_predecessor_always(host: Activations) -> None:
    """Old ones go; what is in force, what was before it, and the three newest stay."""
    for number in range(2, 7):
        host.deploy(f"n{number}")
    assert sorted(path.name for path in (host.state / "deployments").iterdir()) == [
        "dep_n4-4",
        "dep_n5-5",
        "dep_n6-6",
    ]


def test_what_is_delivered_is_removed(host: Activations) -> None:
    """Outcomes go once the agent has delivered them; the newest stays, and numbers go on."""
    host.deploy("two")
    (host.state / "agent/reports.json").write_text('{"v": 1, "delivered": 2}')
    host.deploy("three")
    names = sorted(path.name for path in (host.state / "activation/outcomes").iterdir())
    assert names == ["00000003.json"]


@pytest.mark.parametrize(
    "name", ["deployments.json", "sequence.json", "journal.json", "keyring.json", "retry.json"]
)
def test_a_damaged_book_is_set_aside(host: Activations, name: str) -> None:
    """What is in force stays in force, older deployments stay refused, newer ones come; nothing
    damaged is deleted.
    """
    path = host.state / "activation" / name
    path.write_text("{")
    host.offer(host.make("old", sequence=0))
    host.activate()
    assert host.spec() == "name = good\n"
    assert host.verdicts()[-1] == ("dep_old", "refused", "rolled_back_sequence")
    host.deploy("new")
    assert host.spec() == "name = new\n"
    if name != "retry.json":
        assert [kept.read_text() for kept in path.parent.glob(f"{name}.corrupt-*")] == ["{"]


@pytest.mark.parametrize("damage", ["{", '{"v": 1}', '{"v": 1, "places": [{"place": 5}]}', None])
def test_what_was_old_stays_old_whatever_becomes_of_the_books(
    host: Activations, damage: str | None
) -> None:
    """One damage of sequence.json, and the offers that follow: none of the older ones comes
    back.
    """
    old, older = host.make("old", sequence=2), host.make("older", sequence=0)
    host.sequence = 2
    host.deploy("new")
    path = host.state / "activation/sequence.json"
    path.unlink() if damage is None else path.write_text(damage)
    for made in (older, old, older, old):
        host.offer(made)
        host.activate()
        assert (
            host.verdicts()[-1][1:] == ("refused", "rolled_back_sequence")
            and host.spec() == "name = new\n"
        )


def test_another_environment_and_back(host: Activations) -> None:
    """Each environment has its own order; a directory of the same name is no proof of the same
    deployment.
    """
    host.deploy("good", files={"spec.kv": b"name = newest\n"})  # dep_good-2
    host.write_settings(environment_id="env_2")
    theirs = host.make(
        "good", sequence=2, files={"spec.kv": b"name = theirs\n"}, place=("org_1", "prj_1", "env_2")
    )
    host.offer(theirs)
    host.activate()
    assert (
        host.spec() == "name = theirs\n"
        and host.record()["current"]["spec_hash"] == theirs.payload["spec_hash"]
    )
    host.write_settings(environment_id="env_1")
    host.offer(host.make("old", sequence=1))
    host.activate()
    assert (
        host.verdicts()[-1] == ("dep_old", "refused", "rolled_back_sequence")
        and host.spec() == "name = theirs\n"
    )


def test_a_rotation_takes_back_nothing(host: Activations) -> None:
    """Once its key is retired, what is in force is neither refused nor reported again; the next one
    needs the new key.
    """
    host.offer(host.make("kept"))
    host.activate()
    newer = SigningKey.new("kid-2")
    entries = [signing.key_entry(host.key, status="retired"), signing.key_entry(newer)]
    sets = {"key_sets": [signing.key_set(1, entries, [host.key])]}
    (host.inbox / "keysets.json").write_text(json.dumps(sets))
    before = host.verdicts()
    host.request()
    host.activate()
    assert host.verdicts() == before
    host.deploy("by_the_old_key")
    assert (
        host.verdicts()[-1] == (None, "refused", "unknown_key") and host.spec() == "name = kept\n"
    )
    host.deploy("by_the_new_key", key=newer)
    assert host.spec() == "name = by_the_new_key\n"


@pytest.mark.parametrize(
    "name",
    [
        "signing_keys.json",
        "SIGNING_KEYS.JSON",
        "signing_keys.json/x",
        ".deployment.json",
        ".Deployment.json",
    ],
)
def test_a_bundle_cannot_take_this_hosts_own_names(host: Activations, name: str) -> None:
    """Refused as unsafe: what others take for this host's word is this host's."""
    host.offer(host.make("bad", files={"spec.kv": b"a = 1\n", name: b"x"}))
    host.activate()
    assert host.verdicts()[-1][1:] == ("refused", "unsafe_archive")
    host.deploy("good", files={"spec.kv": b"a = 1\n", ".signing_keys.json.tmp/x": b"y"})
    assert b"keys" in (host.state / "current/signing_keys.json").read_bytes()


def test_what_lost_its_journal_is_judged_after_all(tmp_path: Path) -> None:
    """A new one that was put in force and never judged, its journal damaged: judged by the next
    start, and undone.
    """
    flag = tmp_path / "broken"
    host = Activations(
        tmp_path / "root", activation={"command": ["/bin/sh", "-c", f"test ! -e {flag}"]}
    )
    host.deploy("good")
    host.write_settings(
        activation={"command": ["/bin/sh", "-c", "kill -9 $PPID; sleep 1"], "window_s": 0}
    )
    host.offer(host.make("bad"))
    assert host.command("activate", code=-signal.SIGKILL).returncode == -signal.SIGKILL
    assert host.spec() == "name = bad\n"
    (host.state / "activation/journal.json").write_text("{")
    flag.touch()
    host.write_settings(
        activation={
            "command": ["/bin/sh", "-c", f"grep -q good {host.state}/current/spec.kv"],
            "window_s": 0,
        }
    )
    host.request()
    host.activate()
    assert host.spec() == "name = good\n"
    assert [status for _, status, _ in host.said()] == ["active", "failed", "rolled_back"]


def test_a_command_that_prints_without_end_or_hangs_is_ended(tmp_path: Path) -> None:
    """What it prints fills neither disk nor memory, its last words are kept; what holds the pipe is
    not waited for.
    """
    host = Activations(tmp_path / "root", activation={
        "command": ["/bin/sh", "-c", "sleep 30 & yes | head -c 50000000; echo the end; exit 3"], "health": ["/bin/true"],
    })  # fmt: skip
    began = time.monotonic()
    host.deploy("bad")
    assert time.monotonic() - began < 20
    diagnostic = next((host.state / "activation/outcomes").glob("*.txt"))
    assert "the end" in diagnostic.read_text() and diagnostic.stat().st_size < 100_000


@pytest.mark.parametrize("argv", [["/nowhere/to/be/found"], ["/etc/passwd"]])
def test_a_command_that_cannot_be_run_is_a_failed_activation(
    tmp_path: Path, argv: list[str]
) -> None:
    """Said with its name; never a traceback."""
    host = Activations(tmp_path / "root", activation={"command": argv})
    host.deploy("bad")
    assert (
        host.said() == [("dep_bad", "failed", "activation_failed")]
        and argv[0] in host.record()["history"][-1]["reason"]
    )


def test_a_retry_after_a_reboot_waits_for_a_clock(tmp_path: Path) -> None:
    """An offset from before this boot, or from the future, vouches for nothing; the operator's word
    is kept meanwhile.
    """
    host = Activations(tmp_path / "root", activation={"command": ["/bin/false"]})
    host.deploy("bad")
    os.utime(host.inbox / "request.json", (1, 1))
    host.write_settings(activation={"window_s": 0})
    assert host.command("retry", "dep_bad").returncode == 0
    assert host.verdicts()[-1] == ("dep_bad", "waiting", "clock_not_trusted")
    host.request()
    host.activate()
    assert host.spec() == "name = bad\n"
    assert not (host.state / "activation/retry.json").exists()


def test_each_retry_that_fails_is_seen(tmp_path: Path) -> None:
    """One more verdict and one more report each time; nothing is tried twice for one word."""
    host = Activations(tmp_path / "root", activation={"command": ["/bin/false"]})
    host.deploy("bad")
    assert host.command("retry", "dep_bad").returncode == 0
    assert [row[1] for row in host.verdicts()] == ["failed", "failed"] and len(host.said()) == 2


def test_a_link_that_somebody_moved_is_said_and_can_be_mended(host: Activations) -> None:
    """With `current` gone the record says nothing is in force; `retry` brings it back."""
    (host.state / "current").unlink()
    host.request()
    host.activate()
    assert host.record()["current"] is None
    assert host.command("retry", "dep_good").returncode == 0
    assert host.spec() == "name = good\n"


def test_an_absolute_link_of_an_operators_is_a_predecessor(host: Activations) -> None:
    """What it names is put back when the next one fails; foreign files in deployments/ are left
    alone.
    """
    (host.state / "current").unlink()
    (host.state / "current").symlink_to("/var/lib/byteor/deployments/dep_good-1")
    (host.state / "deployments/lost+found").mkdir()
    check = f"! grep -q bad {host.state}/deployments/*/spec.kv"
    host.write_settings(activation={"command": ["/bin/sh", "-c", check], "window_s": 0})
    host.deploy("bad")
    assert os.readlink(host.state / "current") == "deployments/dep_good-1"
    assert (host.state / "deployments/lost+found").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system of its own needs root")
def test_a_full_disk_does_not_stand_in_the_way_back(tmp_path: Path) -> None:
    """The new one fills the disk and fails: the old one is in force again, and both reports are
    there.
    """
    state = tmp_path / "root/var/lib/byteor"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(state)], check=True)
    try:
        fill = f"grep -q good {state}/current/spec.kv || {{ cat /dev/zero > {state}/filler; echo words; exit 1; }}"
        host = Activations(tmp_path / "root", activation={"command": ["/bin/sh", "-c", fill]})
        host.deploy("good")
        host.deploy("bad")
        assert host.spec() == "name = good\n"
        assert [status for _, status, _ in host.said()] == ["active", "failed", "rolled_back"]
    finally:
        subprocess.run(["umount", str(state)], check=True)


def test_the_list_says_what_is_there(host: Activations) -> None:
    """`deployments` names each with verdict and reason, for people and for machines, without
    root.
    """
    host.offer(host.make("bad", broken="spec_hash"))
    host.activate()
    page = host.command("deployments").stdout
    assert (
        "dep_good-1" in page
        and "refused" in page
        and "spec_hash" in page
        and "byteor-agent retry dep_bad-2" in page
    )
    document = json.loads(host.command("deployments", "--json").stdout)
    assert [(row["name"], row["verdict"], row["on_disk"], row["current"]) for row in document["deployments"]] == [
        ("dep_good-1", "active", True, True), ("dep_bad-2", "refused", False, False),
    ]  # fmt: skip


def test_a_file_of_the_operators_is_never_replaced(tmp_path: Path) -> None:
    """Where spec.kv is a regular file in /etc, it stays; where `current` is no link, the activation
    fails plainly.
    """
    host = Activations(tmp_path / "root")
    (host.root / "etc/byteor/spec.kv").write_text("mine\n")
    host.deploy("good")
    assert (host.root / "etc/byteor/spec.kv").read_text() == "mine\n"
    (host.state / "current").unlink()
    (host.state / "current").mkdir()
    host.offer(host.make("next"))
    done = host.command("activate")
    assert done.returncode == 7 and "is not a symbolic link" in done.stderr
    shutil.rmtree(host.state / "current")
    host.activate()
    assert host.spec() == "name = next\n"
