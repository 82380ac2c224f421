"""Signing keys from enrollment to reset, on a host that is driven as a user drives it: rotated,
attacked, started over.
"""

from __future__ import annotations

import base64
import json
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.controlplane import signing
from tests.controlplane.signing import SigningKey
from tests.integration.host import Done, Host

PERIOD_S = 5


def enroll(host: Host, **defaults: Any) -> None:
    host.defaults(heartbeat_interval_s=PERIOD_S, **defaults)
    host.token(host.mint())
    assert host.run().code == 0


def settings(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.path("var/lib/byteor/settings.json").read_text())
    return found


def bring(host: Host, key_sets: list[Any]) -> Done:
    """What the agent does with an answer to request 7, and the activator's run after it."""
    inbox = host.path("var/lib/byteor/agent/inbox")
    inbox.mkdir(parents=True, exist_ok=True)
    (inbox / "keysets.json").write_text(json.dumps({"key_sets": key_sets}))
    (inbox / "request.json").write_text(
        json.dumps({"v": 1, "request": str(uuid.uuid4()), "clock_offset_s": 0.0})
    )
    done = host.call("byteor-agent", "activate")
    assert done.code == 0, done
    return done


def trusted(host: Host, *words: str) -> dict[str, Any]:
    done = host.call("byteor-firstboot", "trust", "--json", *words)
    assert done.code == 0, done
    found: dict[str, Any] = json.loads(done.out)
    return found


def facts(document: dict[str, Any]) -> Any:
    refused = document["refused"]
    return document["version"], document["source"], refused["code"] if refused else None


def test_the_enrollment_reply_anchors_before_anything_is_asked(host: Host) -> None:
    """Its key sets are frozen, kept by later boots, and what another plane on the way brings later
    does not follow.
    """
    enroll(host)
    assert settings(host)["key_sets"] == host.plane.key_sets()
    host.defaults(heartbeat_interval_s=2 * PERIOD_S)
    assert host.run().code == 0
    assert settings(host)["heartbeat_interval_s"] == 2 * PERIOD_S
    assert settings(host)["key_sets"] == host.plane.key_sets()
    assert facts(trusted(host)) == (1, "enrollment", None)
    stranger = SigningKey.new("kid-stranger")
    bring(host, [signing.key_set(9, [signing.key_entry(stranger)], [stranger])])
    assert facts(trusted(host)) == (1, "enrollment", "broken_chain")


def test_five_missed_rotations_are_one_walk(host: Host) -> None:
    """A host that slept follows set by set, and only the newest key signs for it then."""
    enroll(host)
    for _ in range(5):
        newest = host.plane.rotate(retire=["old"])
    bring(host, host.plane.key_sets())
    document = trusted(host)
    assert facts(document) == (6, "enrollment", None)
    assert [key["kid"] for key in document["keys"] if key["status"] == "active"] == newest["active"]


@pytest.mark.parametrize(
    ("broken", "code", "version"),
    [
        ("unrelated_signer", "broken_chain", 2), ("bad_signature", "broken_chain", 2), ("equivocation", "equivocation", 2),
        ("lower_version", "rolled_back", 2), ("wrong_type", "wrong_type", 2), ("malformed", "malformed", 2), ("gap", None, 4),
    ],
)  # fmt: skip
def test_hostile_histories_are_refused_and_shown(
    host: Host, broken: str, code: Any, version: int
) -> None:
    """Each break of the chain by its own code, in `trust` and in the agent's status; the next good
    set is taken.
    """
    enroll(host)
    host.plane.rotate()
    bring(host, host.plane.key_sets())
    host.plane.rotate(broken=broken)
    done = bring(host, host.plane.key_sets())
    assert facts(trusted(host)) == (version, "enrollment", code)
    if code is not None:
        assert code in done.err and "trust --reset" in done.err
        status = json.loads(host.call("byteor-agent", "status", "--json").out)
        assert "signing_keys_refused" in [problem["code"] for problem in status["problems"]]
        shown = host.call("byteor-firstboot", "trust").out
        assert code in shown and "trust --reset" in shown
    if broken != "lower_version":  # from which this plane counts on: below what the host has
        newest = host.plane.rotate()
        bring(host, host.plane.key_sets())
        assert trusted(host)["version"] == newest["version"]


def test_without_key_sets_in_the_reply_the_first_answer_counts(host: Host) -> None:
    """The plane over TLS is the root of trust then; nothing is signed for us before."""
    host.plane.configure(signing_keys_in_enrollment=False)
    enroll(host)
    assert settings(host)["key_sets"] == []
    assert facts(trusted(host)) == (0, "tls", None)
    bring(host, host.plane.key_sets())
    assert facts(trusted(host)) == (1, "tls", None)


@pytest.mark.parametrize("damage", ["cut", "deleted"])
def test_a_lost_key_ring_is_not_started_again_by_the_inbox(host: Host, damage: str) -> None:
    """What the agent's user lays there after the damage counts for nothing, and is said; the
    operator's reset opens it.
    """
    host.plane.configure(signing_keys_in_enrollment=False)
    enroll(host)
    bring(host, host.plane.key_sets())
    ring = host.path("var/lib/byteor/activation/keyring.json")
    if damage == "cut":
        ring.write_bytes(ring.read_bytes()[:40])
    else:
        ring.with_name("sequence.json").write_bytes(ring.read_bytes())
        ring.unlink()
    stranger = SigningKey.new("kid-stranger")
    done = bring(host, [signing.key_set(9, [signing.key_entry(stranger)], [stranger])])
    assert "no signature is trusted" in done.err and "trust --reset" in done.err
    assert facts(trusted(host)) == (0, "closed", "damaged")
    status = json.loads(host.call("byteor-agent", "status", "--json").out)
    assert "signing_keys_refused" in [problem["code"] for problem in status["problems"]]
    trusted(host, "--reset")
    bring(host, host.plane.key_sets())
    assert facts(trusted(host)) == (1, "tls", None)


def test_a_pinned_key_decides_alone(host: Host) -> None:
    """Neither the enrollment reply nor TLS brings keys that the operator did not pin; a pin that is
    no key is said.
    """
    host.plane.rotate()
    (first,) = (key for key in signed(host.plane.key_sets()[0])["keys"])
    pin = {"kid": first["kid"], "public_key": first["public_key"]}
    enroll(host, signing_keys=[pin])
    assert facts(trusted(host)) == (0, "pinned", None)
    bring(host, host.plane.key_sets())
    assert facts(trusted(host)) == (2, "pinned", None)
    host.defaults(signing_keys=[{**pin, "public_key": "x"}])
    done = host.run()
    assert "signing_keys" in done.err and "43" in done.err


def signed(envelope: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(envelope["payload"]))


def test_reenrolling_takes_the_new_replys_key_sets(host: Host) -> None:
    """They are those of the plane that it is enrolled with now."""
    enroll(host)
    before = settings(host)["key_sets"]
    host.plane.rotate()
    done = host.call("byteor-firstboot", "reenroll", "--token-file", "-", text=host.mint())
    assert done.code == 0, done
    assert len(before) == 1
    assert settings(host)["key_sets"] == host.plane.key_sets()
    assert len(host.plane.key_sets()) == 2


@pytest.fixture
def agent(host: Host) -> Iterator[Any]:
    enroll(host)
    process = host.agent()
    yield process
    process.kill()
    process.communicate()


def test_a_running_agent_follows_refuses_and_starts_over(host: Host, agent: Any) -> None:
    """Rotation by the heartbeat's hint; a broken chain keeps the cached set; after a reset the
    plane's word counts again.
    """

    def reached(*wanted: Any) -> Any:
        return host.plane.wait_for(lambda: facts(trusted(host)) == wanted)

    reached(1, "enrollment", None)
    host.plane.wait_for(lambda: host.path("var/lib/byteor/activation/keyring.json").exists())
    host.plane.rotate(broken="unrelated_signer")
    agent.send_signal(signal.SIGUSR1)
    reached(1, "enrollment", "broken_chain")
    document = trusted(host, "--reset")
    assert (document["version"], document["set_aside"]) == (
        0,
        "/var/lib/byteor/activation/keyring.json.reset-1",
    )
    agent.send_signal(signal.SIGUSR1)
    reached(2, "tls", None)
