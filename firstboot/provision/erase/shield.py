"""Keep cloud-init's instance directory in memory until the token is erased: the shield.

Opt-in, for one boot (contract 7). ``up`` runs before cloud-init-local and mounts memory on
``/var/lib/cloud/instances``; ``bind``, after the local and the network stage, puts ``sem`` and
``scripts`` back on the disk, so that no semaphore is more durable than what it guards; ``down``,
when byteor-erase has ended or at shutdown, copies the erased tree to the disk and removes the
mount. Only where cloud-init discards its cache at boot anyway: a power cut before ``down`` then
costs nothing that the next boot would have used. Everything here runs before cloud-init and
imports `base` alone.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from firstboot.base import files, inplace, log, trees
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout

# Sources that never confirm a cached instance id (no check_instance_id in cloud-init 20.4 to 25.1):
# cloud-init reads them again at every boot, whatever its cache holds.
DISCARDING = frozenset(
    {"NoCloud", "Ec2", "AliYun", "GCE", "CloudStack", "Exoscale", "OpenNebula", "Scaleway"}
)
ON_DISK = ("sem", "scripts")
# The cache last: without it cloud-init reads its datasource again.
LAST = "obj.pkl"

BLOCK = 4096  # bytes that an entry takes at least
FILE_LIMIT = 1 << 26  # bytes of one file beneath; cloud-init refuses user data far below
MEMORY, COPIED, OFF = "in memory", "copied to the disk", "off"


def unsuitable(listed: str | None, last: str | None, *, seeded: bool, manual: bool) -> str | None:
    """Return why this boot must not be shielded, None when it may be.

    `listed`: ds-identify's ``/run/cloud-init/cloud.cfg``; `last`: the last boot's
    ``instance/datasource``; `seeded`: a NoCloud seed directory stands on the disk; `manual`:
    cloud-init was told to trust its cache (``manual-clean``).
    """
    if manual:
        return "cloud-init trusts its cache here (manual-clean)"
    found = re.search(r"(?m)^datasource_list:\s*\[([^\]\n]*)\]", listed or "")
    names = {word.strip(" '\"") for word in found[1].split(",")} if found is not None else set()
    if last:
        word = re.match(r"DataSource([A-Za-z0-9]+?)(?:Local|Net)?\b", last)
        names.add(word[1] if word is not None else last[:40])
    names -= {"", "None"}
    if not names:
        return "neither ds-identify nor the last boot names a datasource"
    keeping = sorted(names - DISCARDING)
    if keeping:
        return f"the datasource {keeping[0]} may use cloud-init's cache"
    if "NoCloud" in names and (seeded or "seed=/var/lib/cloud" in (last or "")):
        return "the seed is a directory on the disk"
    return None


class Shield:
    """The mounts of one boot: `disk` is the disk's instance directory, `live` the one in use."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        # As the kernel names it in its list of mounts: /var or /var/lib/cloud may be links.
        self._cloud = Path(os.path.realpath(layout.cloud))
        self.live = self._cloud / layout.cloud_instances.name
        self._staging = layout.shield / "memory"
        self._beneath = layout.shield_beneath
        self.disk = self._beneath / self.live.name

    def state(self) -> str:
        """Return `MEMORY`, `COPIED`, or why this boot is not shielded; `OFF` where nobody asked."""
        stored = files.read_json(self._layout.shield_state) or {}
        said = stored.get("state")
        return said if isinstance(said, str) else OFF

    def up(self) -> None:
        """Mount memory on the instance directory, filled from the disk, or leave all as it is.

        LocalFault when a step fails: cloud-init then goes on as without a shield.
        """
        if self.live in self._mounts():
            return
        reason = self._unsuitable()
        files.make_directory(self._layout.shield, 0o700)
        if reason is not None:
            log.notice(f"cloud-init's instance directory stays on the disk: {reason}")
            self._say(f"not shielded: {reason}")
            return
        staging = self._staging
        try:
            for directory in (self._beneath, staging):
                files.make_directory(directory, 0o700)
            files.make_directory(self.live, 0o755)
            _run("mount", "--bind", "--make-private", str(self._cloud), str(self._beneath))
            options = "mode=0755,nosuid,nodev"
            try:  # never swapped: noswap from Linux 6.4 on, else ramfs
                _run(
                    "mount", "-t", "tmpfs", "-o", f"{options},size=0,noswap", "byteor", str(staging)
                )
            except LocalFault:
                _run("mount", "-t", "ramfs", "-o", options, "byteor", str(staging))
            for path in self.disk.rglob(".*.tmp"):  # of a `down` that the power cut
                inplace.wipe_file(path, limit=FILE_LIMIT)
            _run("cp", "-a", f"{self.disk}/.", str(staging))
            self._say(MEMORY, names=sorted(_names(staging)))
            _run("mount", "--bind", str(staging), str(self.live))
            if self.live not in self._mounts():
                raise LocalFault(f"{self.live} is not mounted", hint="findmnt shows what is")
            _run("umount", str(staging))
            self.bind()
        except LocalFault as error:
            self._unmount()
            self._say(f"not shielded: {error}")
            raise
        log.notice("cloud-init's instance directory is in memory until byteor-erase has ended")

    def bind(self) -> None:
        """Put ``sem`` and ``scripts`` of the current instance on the disk; nothing when done."""
        mounts = self._mounts()
        try:
            instance = Path(os.readlink(self._cloud / "instance")).name
        except OSError:
            return  # no instance yet
        if self.live not in mounts or instance in ("", ".", ".."):
            return
        for name in ON_DISK:
            live, disk = self.live / instance / name, self.disk / instance / name
            if live in mounts:
                continue
            for directory in (live, disk):
                files.make_directory(directory, 0o755)
            # Only what is newer: at shutdown the mount may be gone, and what is beneath it is old.
            _run("cp", "-a", "--update", f"{live}/.", str(disk))
            _run("mount", "--bind", str(disk), str(live))

    def down(self) -> None:
        """Copy the tree to the disk and remove the mounts; nothing when the shield is not up.

        LocalFault when the disk cannot take it (full): the mount stays, and the next boot reads
        its datasource again. What lies beneath is overwritten before it is replaced.
        """
        mounts = self._mounts()
        if self.live not in mounts:
            self._unmount()
            return
        self.bind()
        stored = files.read_json(self._layout.shield_state) or {}
        present = set(_names(self.live))
        # Asked first: a disk that is full must not lose what lies beneath.
        needed = sum(BLOCK + _size(self.live / name) for name in present)
        if trees.free_bytes(self.disk) < needed:
            raise LocalFault(
                f"the disk of {self.live} has no room for {needed} bytes",
                hint="free some space on the disk",
            )
        for name in sorted(present, key=lambda name: (name.endswith(LAST), name)):
            _copy(self.live / name, self.disk / name)
        for name in sorted(set(stored.get("names") or ()) - present, reverse=True):
            _delete(self.disk / name)
        _run("sync", "--file-system", str(self.disk))
        self._unmount()
        self._say(COPIED)
        log.notice("cloud-init's instance directory is on the disk again", entries=len(present))

    def _unsuitable(self) -> str | None:
        seeds = [self._cloud / "seed" / name for name in ("nocloud", "nocloud-net")]
        return unsuitable(
            _text(self._layout.cloud_identified),
            _text(self._layout.cloud_datasource),
            seeded=any(seed.is_dir() and any(seed.iterdir()) for seed in seeds),
            manual=(self._layout.cloud_instance / "manual-clean").exists(),
        )

    def _mounts(self) -> list[Path]:
        """Return the mount points at and below the live directory, deepest last."""
        found = []
        for line in (_text(Path("/proc/self/mountinfo")) or "").splitlines():
            path = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]))
            if path == self.live or self.live in path.parents:
                found.append(path)
        return sorted(set(found))

    def _unmount(self) -> None:
        for path in reversed(self._mounts()):
            try:
                _run("umount", str(path))
            except LocalFault:  # a process works in it: what it sees is gone with its last file
                _run("umount", "--lazy", str(path))
        for path in (self._staging, self._beneath):
            if os.path.ismount(path):
                _run("umount", "--lazy", str(path))

    def _say(self, state: str, **facts: object) -> None:
        files.write_json(
            self._layout.shield_state, {"v": 1, "state": state, **facts}, durable=False
        )


def _names(top: Path, below: str = "") -> Iterator[str]:
    """Yield the paths below `top`, parents first, without what is on the disk at all times."""
    for entry in sorted(os.scandir(top / below), key=lambda entry: entry.name):
        name = f"{below}/{entry.name}" if below else entry.name
        if name.count("/") == 1 and entry.name in ON_DISK:
            continue
        yield name
        if entry.is_dir(follow_symlinks=False):
            yield from _names(top, name)


def _copy(source: Path, target: Path) -> None:
    """Copy one entry to the disk; a file that is there and the same is left alone."""
    try:
        facts = os.lstat(source)
    except FileNotFoundError:
        return  # a temporary file of somebody's
    owner, mode = (facts.st_uid, facts.st_gid), stat.S_IMODE(facts.st_mode)
    if stat.S_ISDIR(facts.st_mode):
        files.make_directory(target, mode, owner=owner)
    elif stat.S_ISLNK(facts.st_mode):
        trees.point(target, os.readlink(source))
    elif stat.S_ISREG(facts.st_mode):
        data = files.read(source, limit=FILE_LIMIT)
        beneath = inplace.read(target, limit=FILE_LIMIT)
        same = beneath is not None and beneath.data == data
        if same and stat.S_IMODE(os.lstat(target).st_mode) == mode:
            return
        if beneath is not None:  # it may hold a token: never left to the free blocks
            inplace.overwrite(beneath, bytes(len(beneath.data)))
        if data is not None:
            files.write(target, data, mode=mode, owner=owner)
    else:
        log.warning(f"{source} is neither file, directory nor link, and is not kept")


def _delete(path: Path) -> None:
    """Remove what is gone from memory; a directory only when nobody else put anything there."""
    if path.is_symlink():
        files.remove(path)
    elif path.is_file():
        inplace.wipe_file(path, limit=FILE_LIMIT)
    elif not path.is_dir() or not any(path.iterdir()):
        trees.remove(path)  # if it is not there, what a removal left that was cut


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _run(*command: str) -> None:
    """Run one command; LocalFault with its own last words when it fails."""
    with files.attempt("run", Path(command[0])):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise LocalFault(
            f"{' '.join(command[:2])} failed: {said}", hint="journalctl -b -u byteor-shield"
        )
