"""Every place where cloud-init, an installer or we leave a token, as files to look at.

Measured in CLOUD-INIT.md, section 2. Links are followed where root made the link and owns what it
leads to, to a file by the rules of `erase.paths`: so the reader gets to another disk, too. There is
no limit to how many files a tree has; what cannot be looked at is said.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firstboot.base.layout import Layout
from firstboot.provision.erase import seeds
from firstboot.provision.erase.receipt import Copy, unseen

# The last one is what lies on the disk beneath the shield.
TREES = (
    Layout.cloud.absolute,
    Layout.cloud_run.absolute,
    "/etc/cloud/cloud.cfg.d",
    "/var/log/installer",
    f"{Layout.shield_beneath.absolute}/instances",
)
FILES = ("/var/lib/waagent/ovf-env.xml", "/boot/firmware/user-data", "/boot/user-data")
LOGS = "/var/log"  # cloud-init's own files in it, the rotated ones too
# What rsyslog writes: the journal's text again. No reader of user data reads it.
SYSTEM = tuple(f"{LOGS}/{name}{end}" for name in ("syslog", "messages") for end in ("", ".1"))
INSTANCE = Layout.cloud_instance.absolute
STATUS = "/var/lib/cloud/data/status.json"
# Read by `sources`: the first that holds a token hides the next, so they go in this order.
READ = (
    "vendor-data.txt.i",
    "vendor-data2.txt.i",
    "user-data.txt.i",
    "vendor-data.txt",
    "vendor-data2.txt",
    "user-data.txt",
)


class Kind(enum.IntEnum):
    """The treatment of a place, in the order of overwriting."""

    LATE = 1  # a later stage of this boot runs it
    LIVE = 2  # somebody reads it again: overwritten, never removed
    # Read by `sources`, so overwritten last: a run that is cut before sees the token again.
    SOURCE = 3
    OURS = 4  # the drop place and the token file: overwritten, then unlinked


@dataclass(frozen=True)
class Place:
    path: Path
    kind: Kind = Kind.LIVE
    turn: int = 0  # among those of one kind
    plain: bool = False  # a log that may be large: searched for the token as it is, not decoded


@dataclass
class Found:
    """The places in the order of overwriting, and rows for what cannot be looked at."""

    places: list[Place] = field(default_factory=list)
    unseen: list[Copy] = field(default_factory=list)
    # Files and directories of them elsewhere: our units are to write them, too.
    elsewhere: list[Path] = field(default_factory=list)


def find(layout: Layout, named: Sequence[str] = ()) -> Found:
    """Find every regular file to look at; `named` are those of the setting `erase.paths`."""
    found = Found()
    walk = _Walk(layout, found)
    for tree in TREES:
        walk.tree(_real(layout, tree))
    for path in (*(layout.path(file) for file in FILES), *logs(layout)):
        found.places.append(Place(path))
    found.places += [Place(layout.path(name), plain=True) for name in SYSTEM]
    for name in named:
        walk.file(name, name)
    for name in seeds.local(layout):
        if not walk.inside(_real(layout, os.path.dirname(name))):
            walk.file(name, name)
    found.places += [Place(layout.drop_place, Kind.OURS), Place(layout.token_file, Kind.OURS)]
    found.places.sort(key=lambda place: (place.kind, place.turn))
    return found


def _real(layout: Layout, absolute: str) -> Path:
    """Return where a directory is, all links followed; inside the root it never leaves it."""
    path = layout.path(absolute, follow=True)
    return Path(os.path.realpath(path)) if layout.is_host else path


def logs(layout: Layout) -> Iterator[Path]:
    """Yield cloud-init's logs and what its stages printed, the rotated ones too."""
    try:
        names = sorted(os.listdir(layout.path(LOGS, follow=True)))
    except OSError:
        return
    for name in names:
        if name.startswith("cloud-init") and ".log" in name:
            yield layout.path(f"{LOGS}/{name}")


class _Walk:
    """Trees being walked; no directory is entered twice, whatever links say."""

    def __init__(self, layout: Layout, found: Found) -> None:
        self._layout = layout
        self._found = found
        self._entered: set[tuple[int, int]] = set()
        self._tops = [_real(layout, tree) for tree in TREES]
        self._instance = _real(layout, INSTANCE)

    def tree(self, top: Path) -> None:
        """Add every regular file below `top`."""
        todo = [top]
        while todo:
            directory = todo.pop()
            try:
                facts = os.stat(directory)
                if (facts.st_dev, facts.st_ino) in self._entered:
                    continue
                self._entered.add((facts.st_dev, facts.st_ino))
                with os.scandir(directory) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        if entry.is_symlink():
                            todo += self._link(Path(entry.path))
                        elif entry.is_dir(follow_symlinks=False):
                            todo.append(Path(entry.path))
                        elif entry.is_file(follow_symlinks=False):
                            self._found.places.append(self._place(Path(entry.path), top))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                self._unseen(directory, f"cannot be looked at: {os.strerror(error.errno or 0)}")

    def _place(self, path: Path, top: Path) -> Place:
        if path.parent == self._instance and path.name in READ:
            return Place(path, Kind.SOURCE, READ.index(path.name))
        late = {"scripts", "boothooks"} & {*path.parts[len(top.parts) :]}
        return Place(path, Kind.LATE if late else Kind.LIVE)

    def inside(self, path: Path) -> bool:
        """Return True for what is in one of the trees, and met there."""
        return any(top in (path, *path.parents) for top in self._tops)

    def file(self, name: str, shown: str) -> None:
        """Add a file that a setting, a seed or the link `shown` names, or say why it is not one."""
        why = _unfit(self._layout, name)
        if why is None:
            path = _real(self._layout, os.path.dirname(name)) / os.path.basename(name)
            self._found.places.append(Place(path))
            self._found.elsewhere.append(path)
        else:
            self._found.unseen.append(Copy(shown, {}, "not_looked_at", why))

    def _link(self, link: Path) -> list[Path]:
        """Return the directory that a link leads to, if it is to be walked; add a file itself."""
        target = _real(self._layout, self._layout.shown(link))
        try:
            facts = os.stat(target)
        except OSError:
            return []
        if self.inside(target):
            return []
        shown = self._layout.shown(link)
        if stat.S_ISREG(facts.st_mode):
            if os.lstat(link).st_uid == self._layout.owner:
                self.file(self._layout.shown(target), shown)
            else:
                self._unseen(link, "a link that others than root may change")
            return []
        if not stat.S_ISDIR(facts.st_mode):
            return []
        why = None
        if os.lstat(link).st_uid != self._layout.owner or not _kept(facts, self._layout.owner):
            why = "a link to a directory that others than root may change"
        elif any(target in top.parents for top in self._tops):
            why = "a link to a directory above it"
        if why is None:
            self._found.elsewhere.append(target)
            return [target]
        self._unseen(link, why)
        return []

    def _unseen(self, path: Path, why: str) -> None:
        self._found.unseen.append(unseen(self._layout, path, why))


def _kept(facts: os.stat_result, owner: int) -> bool:
    """Return True for what `owner` owns and nobody else may write."""
    return facts.st_uid in (0, owner) and not stat.S_IMODE(facts.st_mode) & 0o022


def _unfit(layout: Layout, name: str) -> str | None:
    """Return why a file of `erase.paths` may not be overwritten; None when it may, or is absent."""
    path = layout.path(name)
    real = _real(layout, os.path.dirname(name))
    try:
        for above in (*reversed(path.parents), real, *real.parents):
            if layout.root in (above, *above.parents):
                facts = os.lstat(above)
                link = stat.S_ISLNK(facts.st_mode) and facts.st_uid in (0, layout.owner)
                if not link and not (stat.S_ISDIR(facts.st_mode) and _kept(facts, layout.owner)):
                    return f"others than root may change {layout.shown(above)}"
        facts = os.lstat(real / path.name)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be looked at: {os.strerror(error.errno or 0)}"
    if not stat.S_ISREG(facts.st_mode):
        return "it is not a regular file"
    if facts.st_uid != layout.owner:
        return f"it is owned by user id {facts.st_uid}"
    return f"it has {facts.st_nlink} hard links" if facts.st_nlink != 1 else None
