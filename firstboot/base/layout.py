"""Name every path and file of ours, derived from one root.

With the root ``/`` a path is itself. With ``--root DIR`` every symbolic link met on the way is
resolved inside DIR, as ``chroot`` would, so that an image's absolute links
(``/var/lib/cloud/instance``) lead into the image and never out of it. Contract 5 says what the
files are and who writes them; modes stand where they are written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from firstboot.base.errors import LocalFault

LINKS_FOLLOWED = 40  # the kernel's own limit (path_resolution(7))

# Names inside directories that are opened by descriptor, or of which there are many.
# The agent's inbox:
ENVELOPE, KEY_SETS, REQUEST = "envelope.json", "keysets.json", "request.json"
# After the digest that was wanted: a stale bundle is never taken for the next one's.
BUNDLE = ".bundle"
PARTIAL, PARTIAL_RECORD = "bundle.part", "bundle.json"
# A deployment's directory:
SPEC, APPROVAL, DEPLOYMENT_MARKER = "spec.kv", "approval.cred", ".deployment.json"
SIGNING_KEYS = "signing_keys.json"
# An artifact's directory in the spool or in quarantine, and a list inside a packed incident:
ARTIFACT, REFUSAL, REDACTIONS = "meta.json", "reason.json", "redactions.json"


class Row:
    """One row of the table: a path as the target system names it.

    `follow`: the last link is followed too. True for every directory that others join names to
    (joined, the kernel would follow it out of DIR), and never for what an unprivileged user owns.
    `stays`: a directory or a lock, which an image may have; the rest in our directories is of one
    host alone.
    """

    __slots__ = ("absolute", "follow", "stays")

    def __init__(self, absolute: str, *, follow: bool = False, stays: bool = False) -> None:
        self.absolute, self.follow, self.stays = absolute, follow, stays

    @overload
    def __get__(self, layout: None, kind: type[Layout]) -> Row: ...

    @overload
    def __get__(self, layout: Layout, kind: type[Layout]) -> Path: ...

    def __get__(self, layout: Layout | None, kind: type[Layout]) -> Row | Path:
        # ``Layout.settings`` is the row itself: for messages that name a path.
        return self if layout is None else layout.path(self.absolute, follow=self.follow)


@dataclass(frozen=True)
class Layout:
    """The tree to work on; `root` is an absolute path."""

    root: Path = Path("/")

    # What an operator or an image writes
    image_defaults = Row("/etc/byteor/firstboot.yaml", follow=True)
    token_file = Row("/etc/byteor/enrollment-token")
    spec = Row("/etc/byteor/spec.kv")
    drop_place = Row("/run/byteor-firstboot/settings.yaml")

    # The agent's, on tmpfs
    agent_run = Row("/run/byteor-agent", follow=True)
    agent_status = Row("/run/byteor-agent/status.json")
    handover = Row("/run/byteor-agent/handover.json")
    upload_progress = Row("/run/byteor-agent/upload.json")

    # First boot's, root alone
    state = Row("/var/lib/byteor", follow=True)
    settings = Row("/var/lib/byteor/settings.json")
    identity = Row("/var/lib/byteor/identity", follow=True, stays=True)
    intent = Row("/var/lib/byteor/identity/intent.json")
    credentials = Row("/var/lib/byteor/identity/credentials.sealed")
    sealing_key = Row("/var/lib/byteor/identity/sealing.key")
    sealing_cred = Row("/var/lib/byteor/identity/sealing.cred")
    marks = Row("/var/lib/byteor/identity/marks.json")
    progress = Row("/var/lib/byteor/identity/progress.json")
    erasure = Row("/var/lib/byteor/identity/erasure.json")
    lock = Row("/var/lib/byteor/identity/lock", stays=True)
    run_lock = Row("/var/lib/byteor/identity/run.lock", stays=True)
    set_aside = Row("/var/lib/byteor/identity/set-aside", follow=True)

    # The agent's
    agent = Row("/var/lib/byteor/agent", follow=True, stays=True)
    agent_state = Row("/var/lib/byteor/agent/state.json")
    agent_lock = Row("/var/lib/byteor/agent/lock", stays=True)
    latest = Row("/var/lib/byteor/agent/latest.json")
    kept_key_sets = Row("/var/lib/byteor/agent/keysets.json")
    reports = Row("/var/lib/byteor/agent/reports.json")
    uploaded = Row("/var/lib/byteor/agent/uploaded.json")
    spool_owner = Row("/var/lib/byteor/agent/owner.json")
    inbox = Row("/var/lib/byteor/agent/inbox", stays=True)
    spool = Row("/var/lib/byteor/agent/spool", follow=True, stays=True)
    spool_lock = Row("/var/lib/byteor/agent/spool/lock", stays=True)
    quarantine = Row("/var/lib/byteor/agent/quarantine", follow=True, stays=True)

    # The activator's
    activation = Row("/var/lib/byteor/activation", follow=True, stays=True)
    activation_lock = Row("/var/lib/byteor/activation/lock", stays=True)
    keyring = Row("/var/lib/byteor/activation/keyring.json")
    sequence = Row("/var/lib/byteor/activation/sequence.json")
    history = Row("/var/lib/byteor/activation/deployments.json")
    journal = Row("/var/lib/byteor/activation/journal.json")
    fault = Row("/var/lib/byteor/activation/fault.json")
    retry = Row("/var/lib/byteor/activation/retry.json")
    reserve = Row("/var/lib/byteor/activation/.reserve")
    wanted_bundle = Row("/var/lib/byteor/activation/.bundle")
    outcomes = Row("/var/lib/byteor/activation/outcomes", follow=True, stays=True)
    deployments = Row("/var/lib/byteor/deployments", follow=True, stays=True)
    current = Row("/var/lib/byteor/current")

    # The shield's, on tmpfs
    shield = Row("/run/byteor-shield", follow=True)
    shield_beneath = Row("/run/byteor-shield/cloud")
    shield_state = Row("/run/byteor-shield/state.json")

    # The host's
    machine_id = Row("/etc/machine-id", follow=True)
    hostname = Row("/etc/hostname", follow=True)
    product_uuid = Row("/sys/class/dmi/id/product_uuid", follow=True)
    systemd_secret = Row("/var/lib/systemd/credential.secret")

    # cloud-init's
    cloud = Row("/var/lib/cloud", follow=True)
    cloud_instance = Row("/var/lib/cloud/instance", follow=True)
    cloud_datasource = Row("/var/lib/cloud/instance/datasource", follow=True)
    cloud_instances = Row("/var/lib/cloud/instances")
    cloud_identified = Row("/run/cloud-init/cloud.cfg", follow=True)
    cloud_run = Row("/run/cloud-init", follow=True)
    cloud_id = Row("/run/cloud-init/cloud-id", follow=True)
    cloud_result = Row("/run/cloud-init/result.json")

    @property
    def boot_id(self) -> Path:
        """Return the running kernel's, on whatever tree we work."""
        return Path("/proc/sys/kernel/random/boot_id")

    def staying(self) -> frozenset[Path]:
        """Return our directories and locks, which an image may have."""
        rows = [row for row in vars(Layout).values() if isinstance(row, Row) and row.stays]
        return frozenset(self.path(row.absolute, follow=row.follow) for row in rows)

    @property
    def is_host(self) -> bool:
        """Return True on the running system, whose units, credentials and journal are ours."""
        return self.root == Path("/")

    @property
    def owner(self) -> int:
        """Return the user id that must own what we trust: root, or the caller with ``--root``."""
        return 0 if self.is_host else os.geteuid()

    def path(self, absolute: str, *, follow: bool = False) -> Path:
        """Return the place of `absolute` in this tree; the last link is followed if `follow`."""
        return Path(absolute) if self.is_host else _resolve(self.root, absolute, follow)

    def shown(self, path: Path) -> str:
        """Return `path` as the target system names it, for messages and receipts."""
        if self.is_host:
            return str(path)
        try:
            return "/" + str(path.relative_to(self.root))
        except ValueError:
            return str(path)


@dataclass(frozen=True)
class SettledLayout(Layout):
    """Resolve each path once: for a process that stays on one tree for a million heartbeats."""

    _known: dict[tuple[str, bool], Path] = field(default_factory=dict, compare=False, repr=False)

    def path(self, absolute: str, *, follow: bool = False) -> Path:
        found = self._known.get((absolute, follow))
        if found is None:
            found = self._known[absolute, follow] = super().path(absolute, follow=follow)
        return found


def _resolve(root: Path, absolute: str, follow: bool) -> Path:
    """Walk `absolute` inside `root` by components; a missing tail is kept as it is."""
    done: list[str] = []
    todo = [part for part in absolute.split("/") if part]
    links = 0
    while todo:
        part = todo.pop(0)
        if part == ".":
            continue
        if part == "..":
            del done[-1:]
            continue
        here = "/".join([str(root), *done, part])  # a first boot resolves 2,000: pathlib is slow
        if (todo or follow) and os.path.islink(here):
            links += 1
            if links > LINKS_FOLLOWED:
                raise LocalFault(
                    f"{absolute} leads through more than {LINKS_FOLLOWED} symbolic links",
                    hint="one of them may lead to itself: namei -l shows them",
                )
            target = os.readlink(here)
            if target.startswith("/"):
                done = []
            todo = [piece for piece in target.split("/") if piece] + todo
            continue
        done.append(part)
    return root.joinpath(*done)
