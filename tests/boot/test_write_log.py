"""Every write of a whole first boot to a real disk: with the shield none of them holds the token.

A scan of the disk afterwards would not do: what is overwritten in place was written all the same.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane import ControlPlane

from . import emulated, hosts, seeds
from .facts import ordering_cycles

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1800)]

SHIELD = "byteor-shield.service"
LATE_S = 25
# Ends when our units have ended, the mount is gone and the agent has beaten, or ten minutes after
# the guest's start; says what there is.
JOB = """
state() { systemctl show -p ActiveState --value "$1"; }
while sleep 1 && [ "$(cut -d. -f1 /proc/uptime)" -lt 600 ]; do
    case "$(state byteor-firstboot) $(state byteor-erase)" in *activ*ing*|active*) continue ;; esac
    findmnt -n /var/lib/cloud/instances > /dev/null && continue
    test -s /var/lib/byteor/identity/erasure.json || continue
    grep -q '"last_success_at": *"' /run/byteor-agent/status.json && break
done
sync
echo "JOB mounted $(findmnt -n -o TARGET | grep -cE '/var/lib/cloud/|byteor-shield')"
echo "JOB failed $(systemctl --failed --no-legend --plain | grep -oE '(byteor|cloud)[a-z-]*' | xargs)"
echo "JOB cloud $(cloud-init status | head -1)"
echo "JOB ran $(cat /var/lib/ran | wc -l)"
echo "JOB receipt $(tr -d '\\n' < /var/lib/byteor/identity/erasure.json)"
"""
# Written by cloud-init's own modules: how often each ran.
RUNCMD = "echo once >> /var/lib/ran"
WAIT = "for i in $(seq 200); do test -s /var/lib/byteor/identity/credentials.sealed && break; sleep 1; done"


def comment(settings: dict[str, object], body: dict[str, object]) -> bytes:
    return seeds.user_data(settings, body=body).encode()


def write_files(settings: dict[str, object], body: dict[str, object]) -> bytes:
    content = base64.b64encode(seeds.to_yaml(settings).encode()).decode()
    place = {
        "path": hosts.DROP_PLACE,
        "permissions": "0600",
        "encoding": "b64",
        "content": content,
    }
    return seeds.user_data(None, body={**body, "write_files": [place]}).encode()


def packed(settings: dict[str, object], body: dict[str, object]) -> bytes:
    return gzip.compress(comment(settings, body))


def mime(settings: dict[str, object], body: dict[str, object]) -> bytes:
    parts = MIMEMultipart()
    parts.attach(MIMEText(comment(settings, body).decode(), "cloud-config"))
    return parts.as_bytes()


FORMS: dict[str, Callable[[dict[str, object], dict[str, object]], bytes]] = {
    "comment": comment,
    "write_files": write_files,
    "gzip": packed,
    "mime": mime,
}


@dataclass(frozen=True)
class Seen:
    """What one first boot left: the writes that held the token, and what its job said."""

    writes: list[tuple[int, set[str]]]
    said: dict[str, str]
    console: str

    @property
    def receipt(self) -> dict[str, Any]:
        return json.loads(self.said["receipt"])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def images(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., emulated.Image]:
    """Make each image once: a release, with the shield enabled or not."""
    made: dict[tuple[str, bool], emulated.Image] = {}

    def image(suite: str, *, shielded: bool) -> emulated.Image:
        if (suite, shielded) not in made:
            directory = tmp_path_factory.mktemp(f"disk-{suite}")
            enable = [SHIELD] if shielded else []
            made[suite, shielded] = emulated.make_image(suite, package, directory, enable=enable)
        return made[suite, shielded]

    return image


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path / "plane", names=[emulated.PLANE_ADDRESS]) as plane:
        yield plane


def first_boot(
    image: emulated.Image,
    plane: ControlPlane,
    directory: Path,
    form: str,
    *,
    runcmd: list[str],
) -> Seen:
    """Boot a fresh disk of `image` once, and look at every write of it."""
    token = hosts.mint(plane)
    settings = hosts.settings(plane, token)
    settings["api_base_url"] = f"https://{emulated.PLANE_ADDRESS}:{plane.port}"
    data = FORMS[form](settings, {"hostname": "byteor-guest", "runcmd": [RUNCMD, *runcmd]})
    meta = seeds.to_yaml({"instance-id": "iid-1", "local-hostname": "byteor-guest"}).encode()
    seed = emulated.seed(directory, {"user-data": data, "meta-data": meta})
    machine = emulated.Machine(image, directory / "machine")
    console = machine.boot(JOB, seed=seed)
    said = {}
    for line in console.replace("\r", "").splitlines():
        if line.startswith("JOB "):
            word, _, rest = line[4:].partition(" ")
            said[word] = rest
    return Seen(machine.writes_of(token), said, console)


def check_boot(seen: Seen) -> None:
    """The boot went as without us: nothing failed, no cycle, each script ran once."""
    assert seen.said["failed"] == "", seen.console[-3000:]
    assert seen.said["ran"] == "1"
    assert ordering_cycles(seen.console) == []


def check_shielded(seen: Seen) -> None:
    """No write held the token, the mount is gone, and the receipt says so."""
    check_boot(seen)
    assert seen.said["mounted"] == "0", seen.console[-3000:]
    assert seen.writes == []
    assert seen.receipt["shield"] == "in memory"


SHORT = [("bookworm", "comment", False)]
LONG = [
    pytest.param(suite, form, late, marks=pytest.mark.slow)
    for suite in ("bookworm", "trixie")
    for form in FORMS
    for late in (False, True)
    if (suite, form, late) not in SHORT
]


@pytest.mark.parametrize(("suite", "form", "late"), SHORT + LONG)
def test_with_the_shield_no_write_holds_the_token(
    suite: str, form: str, late: bool, images: Any, plane: ControlPlane, tmp_path: Path
) -> None:
    """In every form of user data, enrolled at once or 25 s late but before cloud-final."""
    if late:
        plane.fault("enroll", "delay", seconds=LATE_S)
    image = images(suite, shielded=True)
    check_shielded(first_boot(image, plane, tmp_path, form, runcmd=[WAIT]))


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_without_the_shield_the_token_is_written(
    suite: str, images: Any, plane: ControlPlane, tmp_path: Path
) -> None:
    """The log sees it: at least four writes, and the receipt claims no shield."""
    image = images(suite, shielded=False)
    seen = first_boot(image, plane, tmp_path, "comment", runcmd=[WAIT])
    check_boot(seen)
    assert len(seen.writes) >= 4
    assert seen.receipt["shield"] == "off"


@pytest.mark.slow
def test_an_enrollment_after_erasing_is_not_called_shielded(
    images: Any, plane: ControlPlane, tmp_path: Path
) -> None:
    """The tree went to the disk with the token in it, and the receipt says that."""
    plane.fault("enroll", "delay", seconds=60)
    image = images("bookworm", shielded=True)
    seen = first_boot(image, plane, tmp_path, "comment", runcmd=[])
    check_boot(seen)
    assert seen.writes
    assert seen.receipt["shield"] != "in memory"
