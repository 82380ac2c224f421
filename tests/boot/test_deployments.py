"""A guest with a stand-in for the vendor's runtime: good deployments activate, a bad one is undone,
nothing is tried twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane import ControlPlane

from . import hosts, seeds
from .guest import Guest
from .network import Network

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

RUNTIME = "byteor-runtime.service"
SPEC = "/etc/byteor/spec.kv"
# Fails a second after its start where the specification says so, as a runtime that finds its
# configuration wrong would.
RUNTIME_UNIT = f"""[Unit]
Description=Stand-in for the vendor's runtime
ConditionPathExists={SPEC}
StartLimitIntervalSec=0

[Service]
DynamicUser=yes
ExecStart=/bin/sh -c 'grep -q "^health = good" {SPEC} || {{ sleep 1; exit 1; }}; exec sleep infinity'

[Install]
WantedBy=multi-user.target
"""
WINDOW_S = 10.0  # the contract's default health gate
ALLOWED_S = WINDOW_S + 5.0
EXPOSURE_TENTHS = "25"


def spec(number: int, *, good: bool) -> dict[str, bytes]:
    """The files of a deployment."""
    return {"spec.kv": f"name = edge {number}\nhealth = {'good' if good else 'bad'}\n".encode()}


# Arbitrary code as the agent's user, with all that it has: its inbox, and a key of its own to sign
# with.
ATTACK = r"""
import base64, datetime, gzip, hashlib, io, json, os, sys, tarfile, uuid
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

inbox, key, place = "/var/lib/byteor/agent/inbox", Ed25519PrivateKey.generate(), json.loads(sys.argv[1])

def envelope(kind, value, keyid):
    payload = json.dumps(value).encode()
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    sig = base64.b64encode(key.sign(message)).decode()
    return {"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": [{"keyid": keyid, "sig": sig}]}

def put(name, data):
    with open(f"{inbox}/.{name}", "wb") as stream:
        stream.write(data)
    os.rename(f"{inbox}/.{name}", f"{inbox}/{name}")

public = base64.urlsafe_b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).rstrip(b"=").decode()
listed = [{"kid": kid, "alg": "Ed25519", "public_key": public, "status": "active"} for kid in ("kid-evil", sys.argv[2])]
kind = "application/vnd.byteor.signing-keys+json"
sets = [envelope(kind, {"version": 99, "keys": listed}, one["kid"]) for one in listed]
spec, buffer = b"name = evil\nhealth = good\n", io.BytesIO()
with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
    info = tarfile.TarInfo("spec.kv")
    info.size = len(spec)
    tar.addfile(info, io.BytesIO(spec))
bundle = buffer.getvalue()
digest = hashlib.sha256(bundle).hexdigest()
now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
payload = {**place, "v": 1, "environment_posture": "dev", "deployment_id": "dep_evil", "sequence": 1000, "issued_at": now,
           "spec_hash": "sha256:" + hashlib.sha256(spec).hexdigest(), "bundle": {"sha256": digest, "size": len(bundle)}}
put("keysets.json", json.dumps({"key_sets": sets}).encode())
put("envelope.json", json.dumps(envelope("application/vnd.byteor.deployment+json", payload, sys.argv[2])).encode())
put(f"{digest}.bundle", bundle)
put("request.json", json.dumps({"v": 1, "request": str(uuid.uuid4()), "clock_offset_s": 0}).encode())
state = "/var/lib/byteor"
books = ("activation/x", "activation/keyring.json", "activation/retry.json")
places = ("x", "deployments/x", "identity/x", "settings.json", *books)
for path in (*(f"{state}/{name}" for name in places), "/etc/byteor/x", "/run/byteor-firstboot/settings.yaml"):
    try:
        open(path, "a").close()
    except OSError:
        continue
    print("WRITTEN", path)
for attempt in (lambda: os.unlink(f"{state}/current"), lambda: os.symlink("/etc", f"{state}/current.new"),
                lambda: os.rename(f"{state}/agent", f"{state}/agent.old"), lambda: os.listdir(f"{state}/identity")):
    try:
        attempt()
    except OSError:
        continue
    print("DONE", attempt)
"""


@dataclass
class Story:
    """What was seen, in the order in which it happened."""

    guest: Guest
    plane: ControlPlane
    agent_id: str
    deployed: list[Mapping[str, Any]] = field(default_factory=list)
    specs: list[bytes] = field(default_factory=list)
    undone_after_s: float = 0.0
    reports_before_next: list[Mapping[str, Any]] = field(default_factory=list)
    tries: int = 0
    attacked: str = ""
    after_attack: Mapping[str, Any] = field(default_factory=dict)
    exposure: str = ""
    exposure_code: int = -1
    failed_units: list[str] = field(default_factory=list)

    def reports(self) -> list[tuple[str, str]]:
        """(deployment id, status) in the order in which the plane has them."""
        return [(report["deployment_id"], report["status"]) for report in self.plane.reports()]

    def deploy(self, files: Mapping[str, bytes], **options: Any) -> Mapping[str, Any]:
        self.deployed.append(self.plane.deploy(files, **options))
        return self.deployed[-1]

    def wait_for_report(self, deployment: Mapping[str, Any], status: str) -> None:
        wanted = (deployment["deployment_id"], status)
        self.guest.wait_for(
            lambda: wanted in self.reports(), f"the report {status}", timeout=120, every=0.2
        )

    def active_spec(self) -> bytes:
        return self.guest.run("cat", SPEC).stdout.encode()


@pytest.fixture(scope="module")
def story(
    suite: str,
    image: Sequence[Path],
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    """Live it once; the tests look at what was seen."""
    with ControlPlane(tmp_path_factory.mktemp("plane"), host=network.plane_address) as plane:
        token, guest = hosts.mint(plane), new_guest(f"runtime-{suite}", image)
        text = seeds.user_data(hosts.settings(plane, token), body={"hostname": guest.name})
        guest.write_all(seeds.nocloud(text, name=guest.name, link=guest.link))
        guest.write(f"/etc/systemd/system/{RUNTIME}", RUNTIME_UNIT)
        guest.symlink(
            f"/etc/systemd/system/multi-user.target.wants/{RUNTIME}",
            f"/etc/systemd/system/{RUNTIME}",
        )
        guest.boot()
        story = Story(guest, plane, hosts.wait_for_agent(guest, plane))
        hosts.wait_for_beat(guest, plane, story.agent_id)
        _first(story)
        _bad(story)
        _next(story)
        _attacked(story)
        limit = f"--threshold={EXPOSURE_TENTHS}"
        security = guest.run(
            "systemd-analyze",
            "security",
            "--no-pager",
            limit,
            "byteor-activate.service",
            check=False,
        )
        story.exposure, story.exposure_code = security.stdout, security.returncode
        story.failed_units = hosts.failed(guest.look())
        guest.stop()
        yield story


def _first(story: Story) -> None:
    story.wait_for_report(story.deploy(spec(1, good=True)), "active")
    story.specs.append(story.active_spec())


def _bad(story: Story) -> None:
    started = "Started byteor-runtime.service"
    before = story.guest.journal("-b", "-u", RUNTIME).count(started)
    bad = story.deploy(spec(2, good=False))
    story.guest.wait_for(
        lambda: "health = bad" in story.guest.run("cat", SPEC).stdout,
        "the bad one to be switched to",
        timeout=60,
        every=0.1,
    )
    switched = time.monotonic()
    story.guest.wait_for(
        lambda: story.active_spec() == story.specs[0] and story.guest.unit(RUNTIME)["ActiveState"] == "active",
        "the old one to be active again", timeout=ALLOWED_S + 30, every=0.2,
    )  # fmt: skip
    story.undone_after_s = time.monotonic() - switched
    story.wait_for_report(bad, "rolled_back")
    beats = len(hosts.beats(story.plane, story.agent_id))
    for extra in range(3):  # time in which it would be tried again
        hosts.wait_for_beat(story.guest, story.plane, story.agent_id, after=beats + extra)
    story.tries = story.guest.journal("-b", "-u", RUNTIME).count(started) - before
    story.specs.append(story.active_spec())
    story.reports_before_next = list(story.reports())  # type: ignore[arg-type]


def _next(story: Story) -> None:
    story.wait_for_report(story.deploy(spec(3, good=True)), "active")
    story.specs.append(story.active_spec())


def _attacked(story: Story) -> None:
    """Code of somebody else's runs as the agent's user; then the real agent goes on."""
    guest, plane = story.guest, story.plane
    ring = json.loads(guest.run("cat", "/var/lib/byteor/activation/keyring.json").stdout)
    place = {
        "org_id": plane.org_id,
        "project_id": plane.project_id,
        "environment_id": plane.environment_id,
    }
    guest.run("systemctl", "stop", "byteor-agent")
    guest.write("/attack.py", ATTACK)
    done = guest.run(
        "runuser",
        "-u",
        "byteor-agent",
        "--",
        "python3",
        "/attack.py",
        json.dumps(place),
        ring["keys"][0]["kid"],
    )
    story.attacked = done.stdout + done.stderr

    def listing() -> Any:
        return json.loads(guest.run("byteor-agent", "deployments", "--json").stdout)

    guest.wait_for(
        lambda: listing()["deployments"][-1]["verdict"] == "refused",
        "the refusal",
        timeout=60,
        every=0.5,
    )
    story.after_attack = {
        "listing": listing(), "spec": story.active_spec(), "before": ring,
        "ring": json.loads(guest.run("cat", "/var/lib/byteor/activation/keyring.json").stdout),
    }  # fmt: skip
    guest.run("systemctl", "start", "byteor-agent")


def test_a_compromised_agent_gets_nothing_activated(story: Story) -> None:
    """With its inbox, its user and keys of its own: the key ring, `current` and everything outside
    its directory stay.
    """
    assert story.attacked.strip() == ""
    after = story.after_attack
    row = after["listing"]["deployments"][-1]
    assert (row["verdict"], row["code"]) == ("refused", "bad_signature")
    assert (
        after["ring"]["version"] == after["before"]["version"]
        and after["ring"]["keys"] == after["before"]["keys"]
    )
    assert after["ring"]["refused"]["code"] == "broken_chain"
    assert b"evil" not in after["spec"]


def test_a_good_deployment_is_active_and_its_runtime_reads_it(story: Story) -> None:
    """The documented path leads to the specification that was deployed, and the runtime's own user
    could read it.
    """
    assert b"name = edge 1" in story.specs[0]
    assert story.reports()[0] == (story.deployed[0]["deployment_id"], "active")


def test_a_bad_one_is_undone_within_the_window(story: Story) -> None:
    """The previous deployment is active again within the health window and five seconds."""
    assert story.undone_after_s <= ALLOWED_S, story.undone_after_s
    assert story.specs[1] == story.specs[0]


def test_the_plane_hears_failed_then_rolled_back_and_nothing_is_tried_again(story: Story) -> None:
    """Two reports for the bad one, in this order, and no third attempt while the plane goes on
    offering it.
    """
    bad = story.deployed[1]["deployment_id"]
    of_the_bad = [status for named, status in story.reports() if named == bad]
    assert of_the_bad == ["failed", "rolled_back"]
    assert [report for report in story.reports_before_next if report[0] == bad] == [
        (bad, "failed"),
        (bad, "rolled_back"),
    ]


def test_the_next_good_one_activates(story: Story) -> None:
    """A failure does not stand in the way of its successor."""
    assert b"name = edge 3" in story.specs[2]


def test_the_activator_is_hardened_and_nothing_failed(story: Story) -> None:
    """`systemd-analyze security` counts at most 2.5 for the unit that has just done all this; the
    plane has no complaint.
    """
    assert story.exposure_code == 0, story.exposure
    assert story.failed_units == []
    assert hosts.objections(story.plane) == []
