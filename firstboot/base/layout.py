"""Every path this package touches, derived from one root.

With the root ``/`` a path is itself. With ``--root DIR`` every symbolic link met on the way is resolved inside DIR, as
``chroot`` would, so that an image's absolute links (``/var/lib/cloud/instance``) lead into the image and never out of
it. The table of contract section 5 says what the files are; modes stand where they are written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from firstboot.base.errors import LocalFault

# As the kernel's own limit (path_resolution(7)).
LINKS_FOLLOWED = 40


@dataclass(frozen=True)
class Layout:
    """The tree to work on; `root` is an absolute path."""

    root: Path = Path("/")

    @property
    def is_host(self) -> bool:
        """True on the running system, where units, credentials and the journal belong to us."""
        return self.root == Path("/")

    @property
    def owner(self) -> int:
        """The user id that must own what we trust: root, or with ``--root`` whoever runs us."""
        return 0 if self.is_host else os.geteuid()

    def path(self, absolute: str, *, follow: bool = False) -> Path:
        """Return where `absolute` (as the target system names it) lies; the last link is followed if `follow`."""
        return Path(absolute) if self.is_host else _resolve(self.root, absolute, follow)

    def shown(self, path: Path) -> str:
        """Return `path` as the target system names it, for messages and receipts."""
        if self.is_host:
            return str(path)
        try:
            return "/" + str(path.relative_to(self.root))
        except ValueError:
            return str(path)

    # A directory that others join names to is followed to its end here: joined, the kernel would follow it out of DIR.

    # /etc, /run
    @property
    def image_defaults(self) -> Path:
        return self.path("/etc/byteor/firstboot.yaml", follow=True)

    @property
    def token_file(self) -> Path:
        return self.path("/etc/byteor/enrollment-token")

    @property
    def drop_place(self) -> Path:
        return self.path("/run/byteor-firstboot/settings.yaml")

    @property
    def agent_run(self) -> Path:
        return self.path("/run/byteor-agent", follow=True)

    @property
    def agent_status(self) -> Path:
        return self.agent_run / "status.json"

    @property
    def handover(self) -> Path:
        return self.agent_run / "handover.json"

    # /var/lib/byteor
    @property
    def state(self) -> Path:
        return self.path("/var/lib/byteor", follow=True)

    @property
    def settings(self) -> Path:
        return self.state / "settings.json"

    @property
    def identity(self) -> Path:
        return self.path("/var/lib/byteor/identity", follow=True)

    @property
    def intent(self) -> Path:
        return self.identity / "intent.json"

    @property
    def credentials(self) -> Path:
        return self.identity / "credentials.sealed"

    @property
    def sealing_key(self) -> Path:
        return self.identity / "sealing.key"

    @property
    def sealing_cred(self) -> Path:
        return self.identity / "sealing.cred"

    @property
    def marks(self) -> Path:
        return self.identity / "marks.json"

    @property
    def erasure(self) -> Path:
        return self.identity / "erasure.json"

    @property
    def lock(self) -> Path:
        return self.identity / "lock"

    @property
    def run_lock(self) -> Path:
        return self.identity / "run.lock"

    @property
    def set_aside(self) -> Path:
        return self.path("/var/lib/byteor/identity/set-aside", follow=True)

    @property
    def agent(self) -> Path:
        return self.path("/var/lib/byteor/agent", follow=True)

    @property
    def agent_state(self) -> Path:
        return self.agent / "state.json"

    @property
    def agent_lock(self) -> Path:
        return self.agent / "lock"

    @property
    def inbox(self) -> Path:
        # The agent's own directory: never followed if it is a link.
        return self.agent / "inbox"

    @property
    def spool(self) -> Path:
        return self.path("/var/lib/byteor/agent/spool", follow=True)

    @property
    def quarantine(self) -> Path:
        return self.path("/var/lib/byteor/agent/quarantine", follow=True)

    @property
    def uploaded(self) -> Path:
        return self.agent / "uploaded.json"

    @property
    def upload_progress(self) -> Path:
        return self.agent_run / "upload.json"

    @property
    def activation(self) -> Path:
        return self.path("/var/lib/byteor/activation", follow=True)

    @property
    def outcomes(self) -> Path:
        return self.activation / "outcomes"

    @property
    def deployments(self) -> Path:
        return self.path("/var/lib/byteor/deployments", follow=True)

    @property
    def current(self) -> Path:
        return self.state / "current"

    # The host
    @property
    def machine_id(self) -> Path:
        return self.path("/etc/machine-id", follow=True)

    @property
    def product_uuid(self) -> Path:
        return self.path("/sys/class/dmi/id/product_uuid", follow=True)

    @property
    def boot_id(self) -> Path:
        return Path(
            "/proc/sys/kernel/random/boot_id"
        )  # the running kernel's, whatever tree we work on

    @property
    def systemd_secret(self) -> Path:
        return self.path("/var/lib/systemd/credential.secret")

    # cloud-init
    @property
    def cloud(self) -> Path:
        return self.path("/var/lib/cloud", follow=True)

    @property
    def cloud_run(self) -> Path:
        return self.path("/run/cloud-init", follow=True)


@dataclass(frozen=True)
class SettledLayout(Layout):
    """For a process that stays on one tree: each path is resolved once, and not at each of a million heartbeats."""

    _known: dict[tuple[str, bool], Path] = field(default_factory=dict, compare=False, repr=False)

    def path(self, absolute: str, *, follow: bool = False) -> Path:
        found = self._known.get((absolute, follow))
        if found is None:
            found = self._known[absolute, follow] = super().path(absolute, follow=follow)
        return found


def _resolve(root: Path, absolute: str, follow: bool) -> Path:
    """Walk `absolute` inside `root` one component at a time; a missing tail is kept as it is."""
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
        here = root.joinpath(*done, part)
        if (todo or follow) and here.is_symlink():
            links += 1
            if links > LINKS_FOLLOWED:
                raise LocalFault(f"too many symbolic links in {absolute}")
            target = os.readlink(here)
            if target.startswith("/"):
                done = []
            todo = [piece for piece in target.split("/") if piece] + todo
            continue
        done.append(part)
    return root.joinpath(*done)
