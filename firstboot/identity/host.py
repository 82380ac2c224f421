"""Tell which host this is, by three facts, and whether a fingerprint was taken of it.

A fingerprint holds salted hashes only, and is kept in the cleartext header of the sealed identity
and in the intent. Comparing needs no key: it comes before any key is touched, since `systemd-creds`
under a changed machine-id destroys the host's secret. `foreign` is the rule of contract 6, pure:

| machine-id | instance id | product UUID | who wrote the instance id | foreign |
|------------|-------------|--------------|---------------------------|---------|
| different  | any         | any          | any                       | yes     |
| other      | different   | any          | the platform              | yes     |
| other      | different   | different    | an author or tool         | yes     |
| other      | other       | any          | any                       | no      |

Absent, on either side, is not evidence; nor is a machine-id that is not committed to the disk, an
instance id that cloud-init made up for want of one, or a product UUID that a firmware left at its
default. UUIDs, Azure's instance id among them, are compared without case and in both byte orders.
Processors, memory, disks and addresses change on the same host and are not looked at.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import re
import secrets
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstboot.base import files
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout

FACT_LIMIT = 4096  # bytes; mountinfo has a limit of its own
MOUNTINFO = Path("/proc/self/mountinfo")
MOUNTINFO_LIMIT = 4 << 20
SALT_BYTES = 16
DAMAGED = "its fingerprint of a host is damaged"

# The instance id comes from the platform's metadata service or DMI and no other instance gets it.
# The names are cloud-init's classes without "DataSource" and without the stage ("Local"), in lower
# case.
PLATFORMS = re.compile(
    "akamai|aliyun|azure|cloudcix|cloudsigma|cloudstack|digitalocean|ec2|exoscale|gce|hetzner"
    "|ibmcloud|nwcs|openstack|oracle|rbxcloud|scaleway|smartos|upcloud|vultr"
)
# What cloud-init's cloud-id file says where its name is not the class's.
CLOUD_IDS = {"aws": "ec2"}
# What cloud-init puts where the datasource gave no instance id (DEFAULT_IID and the like in its
# sources).
NO_INSTANCE_IDS = re.compile(
    "nocloud|iid-datasource|iid-datasource-none|iid-dsconfigdrive|iid-dsopenstack"
    "|iid-dsopennebula|iid-dsovf|iid-vmware-imc|iid-qemufwcfg",
    re.IGNORECASE,
)
# Firmware defaults: all zeros, all ones, and the two that board vendors ship.
NO_PRODUCT_UUIDS = frozenset(
    ("0" * 32, "f" * 32, "03000200040005000006000700080009", "00020003000400050006000700080009")
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class Match(enum.Enum):
    """One fact then and now; ABSENT when either side lacks it."""

    SAME = "same"
    DIFFERENT = "different"
    ABSENT = "absent"


@dataclass(frozen=True)
class HostFacts:
    """This host's own facts; None for what is absent or not evidence.

    `machine_id` is the file's content even when it is not `committed`: systemd-creds looks at no
    more than that.
    """

    machine_id: str | None
    committed: bool
    instance_id: str | None
    datasource: str  # "ec2", "nocloud", … or "unknown"
    product_uuid: str | None


@dataclass(frozen=True)
class Verdict:
    """`foreign`, and why in words that can follow a colon (empty when it is not).

    `moved` when the product UUID alone differs: a copy of a virtual machine, or another board.
    """

    foreign: bool
    why: str = ""
    moved: bool = False


def host_facts(layout: Layout) -> HostFacts:
    """Read the facts; a file that cannot be read is an absent fact.

    With ``--root`` only that tree's files count.
    """
    machine_id = _machine_id(layout)
    return HostFacts(
        machine_id=machine_id,
        committed=machine_id is not None and not _laid_over(_real(layout, layout.machine_id)),
        instance_id=_instance_id(layout),
        datasource=_datasource(layout),
        product_uuid=_product_uuid(_text(layout.product_uuid)),
    )


def hostname(layout: Layout) -> str:
    """Return the short host name: under ``--root`` of the tree where it has one."""
    written = None if layout.is_host else _text(layout.hostname)
    return (written or socket.gethostname()).split(".")[0].strip() or "localhost"


def fingerprint(facts: HostFacts, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what binds a file to this host, for JSON: a salt, hashes of facts, the datasource.

    ``cloud-init clean`` removes the instance id until the next boot. What was known `before` stays
    till then: else a copy of the disk would be bound anew, as its original.
    """
    if before and "instance_id" in before and facts.instance_id is None:
        machine_id = _evidence(facts)["machine_id"]
        if machine_id is None or "machine_id" in before:
            return dict(before)
        return {**before, "machine_id": _hashed(_salt(before), "machine_id", machine_id)}
    salt = secrets.token_bytes(SALT_BYTES)
    hashes = {
        name: _hashed(salt, name, value)
        for name, value in _evidence(facts).items()
        if value is not None
    }
    return {"salt": salt.hex(), "datasource": facts.datasource, **hashes}


def compare(stored: Mapping[str, Any], facts: HostFacts) -> Verdict:
    """Judge whether `stored` was taken of another host; ValueError when it is no fingerprint."""
    salt, datasource = _salt(stored), stored.get("datasource")
    if not isinstance(datasource, str):
        raise ValueError(DAMAGED)
    matches = {
        name: _match(stored.get(name), value, salt=salt, name=name)
        for name, value in _evidence(facts).items()
    }
    # Ids of two datasources are not comparable: one OpenStack instance has one id as "ec2", another
    # as "openstack".
    assigned = datasource == facts.datasource and bool(PLATFORMS.fullmatch(datasource))
    return foreign(
        matches["machine_id"],
        matches["instance_id"],
        matches["product_uuid"],
        platform_assigned=assigned,
    )


def foreign(
    machine_id: Match, instance_id: Match, product_uuid: Match, *, platform_assigned: bool
) -> Verdict:
    """Apply the rule in the module's docstring."""
    moved = product_uuid is Match.DIFFERENT
    if machine_id is Match.DIFFERENT:
        return Verdict(True, "the machine-id is not the one that it was sealed for")
    if instance_id is Match.DIFFERENT and platform_assigned:
        return Verdict(
            True, "the platform gave this instance another id than the one that it was sealed for"
        )
    if instance_id is Match.DIFFERENT and moved:
        return Verdict(True, "instance id and product UUID are not the ones that it was sealed for")
    return Verdict(False, moved=moved)


def same_machine_id(stored: Mapping[str, Any], facts: HostFacts) -> bool:
    """Return True only when the machine-id, committed or not, is certainly the one in `stored`."""
    try:
        then = stored.get("machine_id")
        return _match(then, facts.machine_id, salt=_salt(stored), name="machine_id") is Match.SAME
    except ValueError:
        return False


def _evidence(facts: HostFacts) -> dict[str, str | None]:
    return {
        "machine_id": facts.machine_id if facts.committed else None,
        "instance_id": facts.instance_id,
        "product_uuid": facts.product_uuid,
    }


def _salt(stored: Mapping[str, Any]) -> bytes:
    try:
        return bytes.fromhex(stored["salt"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(DAMAGED) from None


def _hashed(salt: bytes, name: str, value: str) -> str:
    # The name keeps a value that two facts share (Azure: instance id and product UUID) from showing
    # it.
    return hmac.new(salt, f"{name}\0{value}".encode(), hashlib.sha256).hexdigest()


def _match(stored: object, value: str | None, *, salt: bytes, name: str) -> Match:
    if stored is not None and not isinstance(stored, str):
        raise ValueError(DAMAGED)
    if stored is None or value is None:
        return Match.ABSENT
    same = [
        hmac.compare_digest(stored.encode(), _hashed(salt, name, spelling).encode())
        for spelling in _spellings(value)
    ]
    return Match.SAME if any(same) else Match.DIFFERENT


def _spellings(value: str) -> Iterator[str]:
    """Yield `value`, and a UUID in either case and byte order: kernels and firmware disagree."""
    yield value
    if _UUID.fullmatch(value):
        one = uuid.UUID(value)
        for spelling in (str(one), str(uuid.UUID(bytes=one.bytes_le))):
            yield spelling
            yield spelling.upper()


def _text(path: Path) -> str | None:
    try:
        data = files.read(path, limit=FACT_LIMIT)
    except LocalFault:
        return None
    return (data or b"").decode("utf-8", "replace").strip() or None


def _real(layout: Layout, path: Path) -> Path:
    """Follow the last link on the running system; under a root the layout has done it."""
    return Path(os.path.realpath(path)) if layout.is_host else path


def _machine_id(layout: Layout) -> str | None:
    text = _text(_real(layout, layout.machine_id)) or ""
    # Else empty, "uninitialized" or damaged: machine-id(5).
    return text if re.fullmatch("[0-9a-f]{32}", text) else None


def _laid_over(path: Path) -> bool:
    """Return True for a mount from elsewhere: systemd's transient machine-id."""
    try:
        # Both tests: a bind mount from the same disk stays; overlayfs gives a file another device
        # without a mount.
        if os.stat(path).st_dev == os.stat(path.parent).st_dev:
            return False
        mounts = files.read(MOUNTINFO, limit=MOUNTINFO_LIMIT) or b""
    except (OSError, LocalFault):
        return True
    return any(line.split(b" ")[4:5] == [os.fsencode(path)] for line in mounts.splitlines())


def _instance_id(layout: Layout) -> str | None:
    text = _text(layout.cloud_run / ".instance-id") or _text(layout.cloud / "data" / "instance-id")
    return None if text is None or NO_INSTANCE_IDS.fullmatch(text) else text


def _datasource(layout: Layout) -> str:
    described = _text(layout.cloud_datasource) or ""
    if described.startswith("DataSource"):
        name = described.split(":")[0][len("DataSource") :].lower()
        return re.sub("(local|net)$", "", name) or "unknown"
    cloud_id = (_text(_real(layout, layout.cloud_id)) or "unknown").lower()
    return CLOUD_IDS.get(cloud_id, cloud_id)


def _product_uuid(text: str | None) -> str | None:
    try:
        value = uuid.UUID(text or "")
    except ValueError:
        return None
    # Both byte orders of the first three fields are one host.
    plain = min(value.hex, uuid.UUID(bytes=value.bytes_le).hex)
    return None if {value.hex, plain} & NO_PRODUCT_UUIDS else plain
