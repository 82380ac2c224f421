"""Root judges what an agent brought: the good is activated, the hostile refused by its own code, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict

import pytest

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


def outside(host: Activations) -> Dict[str, Any]:
    """Everything that a refusal must leave alone: all but the activator's books and the agent's inbox."""
    return tree(host.root, without=[host.state / "activation", host.state / "agent"])


def test_a_good_deployment_is_in_force(host: Activations) -> None:
    """Complete directory, relative link, documented path, public keys beside the specification, one report, readable by all."""
    assert host.spec() == "name = good\n"
    assert os.readlink(host.state / "current") == "deployments/dep_good-1"
    assert os.readlink(host.root / "etc/byteor/spec.kv") == "/var/lib/byteor/current/spec.kv"
    directory = host.state / "deployments/dep_good-1"
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes == {"spec.kv": 0o644, "signing_keys.json": 0o644}
    assert [key["kid"] for key in json.loads((directory / "signing_keys.json").read_text())["keys"]] == ["kid-1"]
    assert host.said() == [("dep_good", "active", "no_unit")]
    record = host.record()
    assert record["current"]["state"] == "active" and record["wanted"] is None
    assert not (host.state / "activation/journal.json").exists()


def test_a_bundle_is_asked_for_only_once_its_envelope_was_verified(host: Activations) -> None:
    """Step one names exactly the bundle that the plane signed; step two activates it."""
    made = host.make("next")
    host.offer(made, bundle=False)
    host.activate()
    assert host.record()["wanted"] == {"deployment_id": "dep_next", "sequence": 2, **made.payload["bundle"]}
    assert host.spec() == "name = good\n"
    host.offer(made)
    host.activate()
    assert host.spec() == "name = next\n" and host.record()["wanted"] is None


@pytest.mark.parametrize(("code", "variant"), HOSTILE)
def test_the_hostile_is_refused_by_its_code(host: Activations, code: str, variant: str) -> None:
    """`current` stays, nothing outside the books changes, and the plane is told only of what it signed for us."""
    before = outside(host)
    host.offer(host.make("bad", broken=code, variant=variant, posture="prod" if code in GATED else "dev"))
    host.activate()
    assert host.verdicts()[-1][1:] == ("refused", code)
    assert outside(host) == before
    assert host.said()[1:] == ([("dep_bad", "failed", code)] if code in TOLD else [])


@pytest.mark.parametrize(("sequence", "code"), [(1, "rolled_back_sequence"), (2, "equivocation")])
def test_the_order_of_deployments_is_kept(host: Activations, sequence: int, code: str) -> None:
    """An older sequence, and another payload under the newest one, are refused whatever signed them."""
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
    assert host.verdicts()[-1] == ("dep_later", "waiting", "clock_not_trusted") and host.spec() == "name = good\n"
    host.offer(made, offset=-299.0)
    host.activate()
    assert host.spec() == "name = later\n"


@pytest.mark.parametrize("planted", ["link", "fifo", "directory", "socket", "huge"])
@pytest.mark.parametrize("name", ["envelope.json", "keysets.json", "bundle"])
def test_a_malicious_inbox_gets_nowhere(host: Activations, name: str, planted: str) -> None:
    """Links, FIFOs, directories, sockets and endless files: the run ends, and what is in force stays."""
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
        assert host.verdicts()[-1][1] == "refused" and host.verdicts()[-1][2] in ("malformed_bundle", "bundle_size")


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
    """The operator's command sees the new specification; a check that fails puts the old one back, and says so in order."""
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
    """The predecessor is in force again though not healthy: `failed` with `rollback_failed`, and the state is degraded."""
    flag = tmp_path / "broken"
    host = Activations(tmp_path / "root", activation={"command": ["/bin/sh", "-c", f"test ! -e {flag}"]})
    host.deploy("good")
    flag.touch()
    host.deploy("bad")
    assert host.spec() == "name = good\n"
    assert host.said()[-1] == ("dep_bad", "failed", "rollback_failed")
    assert host.record()["current"]["state"] == "degraded"


def test_an_operator_may_try_once_more(tmp_path: Path) -> None:
    """`retry` activates what failed, from the directory that is still there; what did not fail or is old it declines."""
    flag = tmp_path / "broken"
    host = Activations(tmp_path / "root", activation={"command": ["/bin/sh", "-c", f"test ! -e {flag}"]})
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
    assert sorted(path.name for path in (host.state / "deployments").iterdir()) == ["dep_n4-4", "dep_n5-5", "dep_n6-6"]


def test_what_is_delivered_is_removed(host: Activations) -> None:
    """Outcomes go once the agent has delivered them; the newest stays, and numbers go on."""
    host.deploy("two")
    (host.state / "agent/reports.json").write_text('{"v": 1, "delivered": 2}')
    host.deploy("three")
    names = sorted(path.name for path in (host.state / "activation/outcomes").iterdir())
    assert names == ["00000003.json"]


@pytest.mark.parametrize("name", ["deployments.json", "sequence.json", "journal.json", "keyring.json", "retry.json"])
def test_a_damaged_book_is_set_aside(host: Activations, name: str) -> None:
    """What is in force stays in force, older deployments stay refused, newer ones come; nothing damaged is deleted."""
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


def test_the_list_says_what_is_there(host: Activations) -> None:
    """`deployments` names each with verdict and reason, for people and for machines, without root."""
    host.offer(host.make("bad", broken="spec_hash"))
    host.activate()
    page = host.command("deployments").stdout
    assert "dep_good-1" in page and "refused" in page and "spec_hash" in page and "byteor-agent retry dep_bad-2" in page
    document = json.loads(host.command("deployments", "--json").stdout)
    assert [(row["name"], row["verdict"], row["on_disk"], row["current"]) for row in document["deployments"]] == [
        ("dep_good-1", "active", True, True), ("dep_bad-2", "refused", False, False),
    ]  # fmt: skip


def test_a_file_of_the_operators_is_never_replaced(tmp_path: Path) -> None:
    """Where spec.kv is a regular file in /etc, it stays; where `current` is no link, the activation fails plainly."""
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
