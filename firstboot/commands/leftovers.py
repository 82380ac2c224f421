"""Find what an image must not carry: ours, and what else makes hosts alike.

Ours is whatever stands in our directories and is no row of the layout that `stays`: so a file that
a later version adds is found as well. What is not ours is named only, with the command that removes
it. Tokens are looked for where the eraser looks, with the reader's decoders; a token that stands in
a file in another form than ``enrollment_token: ...`` is found where another file shows it so, or
where the receipt names it. What cannot be looked at is a leftover, too.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firstboot.base import files
from firstboot.base.errors import ByteorError, LocalFault
from firstboot.base.layout import Layout
from firstboot.provision import userdata
from firstboot.provision.erase import places, receipt, systemjournal
from firstboot.provision.erase.reread import Damaged, texts
from firstboot.provision.erase.unfinished import FILE_LIMIT
from firstboot.provision.sources import Inputs, image

CLEAN = "cloud-init clean --logs"
# (what, where, how it is removed); a pattern in the last component alone
ALIKE = (
    ("systemd's sealing secret", Layout.systemd_secret.absolute, ""),
    ("random seed", "/var/lib/systemd/random-seed", ""),
    ("random seed of the boot loader", "/efi/loader/random-seed", ""),
    ("random seed of the boot loader", "/boot/loader/random-seed", ""),
    ("random seed of the boot loader", "/boot/efi/loader/random-seed", ""),
    ("ssh host key", "/etc/ssh/ssh_host_*_key", "rm -f /etc/ssh/ssh_host_*"),
    ("cloud-init's instance", Layout.cloud_instance.absolute, CLEAN),
    ("cloud-init's instance", f"{Layout.cloud_instances.absolute}/*", CLEAN),
    ("cloud-init's instance", "/var/lib/cloud/data/instance-id", CLEAN),
    # It cannot be read here, and each clone would be given it (contract 4.2).
    ("encrypted credential", "/etc/credstore.encrypted/byteor.*", ""),
    ("encrypted credential", "/run/credstore.encrypted/byteor.*", ""),
    ("encrypted credential", "/usr/lib/credstore.encrypted/byteor.*", ""),
)
CREDENTIALS = ("/etc/credstore", "/run/credstore", "/usr/lib/credstore")
BARE = ("byteor.enrollment-token", Path(Layout.token_file.absolute).name)  # the token alone in it
TOKEN = "enrollment token"
UNSEEN = "not looked at"
JOURNAL = "/var/log/journal"
VACUUM = "journalctl --rotate && journalctl --vacuum-time=1s"


@dataclass(frozen=True)
class Leftover:
    """One file, as the target system names it, and the command that removes it."""

    path: str
    what: str
    remedy: str


def ours(layout: Layout) -> list[Path]:
    """Return what is of this host alone, as `generalize` removes it; LocalFault if it cannot look.

    What is in the agent's directories is to be looked at, and never removed by its path: the agent
    may replace them meanwhile. A link in place of one is a leftover, and leads nowhere.
    """
    staying = layout.staying()
    if standing(layout):  # they alone tell of these copies
        staying |= {layout.erasure, layout.marks}
    tops = (layout.state, layout.agent_run, layout.drop_place.parent)
    found = [path for top in tops for path in _below(layout, top, staying)]
    return [*found, *filter(os.path.lexists, [layout.token_file])]


def standing(layout: Layout) -> list[receipt.Copy]:
    """Return the receipt's rows of copies that are there, or on a disk that is not mounted."""
    rows = receipt.earlier(layout)
    there = []
    for row in (*rows.of("remains"), *rows.of("kept")):
        in_journal = row.path == systemjournal.NAME
        places_of = [layout.path(JOURNAL)] if in_journal else receipt.paths(layout, row)
        if row.mount_point or any(map(os.path.lexists, places_of)):
            there.append(row)
    return there


def _below(layout: Layout, directory: Path, staying: frozenset[Path]) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        files.fail("look into", directory, error)
    for path in (directory / name for name in names):
        if path not in staying or (path.is_symlink() and directory == layout.agent):
            yield path
        elif path.is_dir():
            yield from _below(layout, path, staying)


def others(layout: Layout, *, config: Path | None) -> list[Leftover]:
    """Return what is not ours: what makes clones alike, then the tokens that are left."""
    found = [*_machine_ids(layout), *_led_to(layout)]
    for what, where, remedy in ALIKE:
        directory, _, pattern = where.rpartition("/")
        try:
            names = os.listdir(layout.path(directory, follow=True))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            found.append(_unseen(directory, os.strerror(error.errno or 0)))
            continue
        for name in sorted(fnmatch.filter(names, pattern)):
            path = f"{directory}/{name}"
            found.append(Leftover(path, what, remedy or f"rm -f {path}"))
    found += _Tokens(layout).left(config)
    return [*dict.fromkeys(found)]


def _unseen(path: str, why: str, remedy: str = "") -> Leftover:
    return Leftover(path, f"{UNSEEN}: {why}", remedy or f"look at it, or rm -rf {path}")


def _led_to(layout: Layout) -> Iterator[Leftover]:
    """Yield what a link in place of one of our directories leads to: named, never followed."""
    for path in ours(layout):
        if path.parent in (layout.state, layout.agent) and path.is_symlink():
            shown = layout.shown(path)
            try:
                target = layout.path(shown, follow=True)
            except LocalFault:
                continue  # it leads to itself
            target = Path(os.path.realpath(path)) if layout.is_host else target
            if layout.state not in target.parents and os.path.lexists(target):
                remedy = "look at it, and remove what is of this host"
                yield Leftover(layout.shown(target), f"where {shown} leads", remedy)


def _machine_ids(layout: Layout) -> Iterator[Leftover]:
    """Yield the machine-id, and D-Bus's where it is no link; machine-id(5): first boot."""
    dbus = layout.path("/var/lib/dbus/machine-id")
    for path, remedy in ((layout.machine_id, "truncate -s 0"), (dbus, "rm -f")):
        if path.is_symlink() and path == dbus:
            continue
        try:
            data = files.read(Path(os.path.realpath(path)), limit=4096) or b""
        except LocalFault:
            data = b"?"
        if data.strip() not in (b"", b"uninitialized"):
            shown = layout.shown(path)
            yield Leftover(shown, "machine-id", f"{remedy} {shown}")


@dataclass
class _Tokens:
    """One search for tokens, and the rows of what it could not look at."""

    layout: Layout
    rows: list[Leftover] = field(default_factory=list)

    def left(self, config: Path | None) -> list[Leftover]:
        """Return the files that give a token, or hold one that another file gives."""
        layout = self.layout
        seen = places.find(layout, self._named(config))
        self.rows += [_unseen(row.path, row.reason or "") for row in seen.unseen]
        candidates = [place.path for place in seen.places]
        for directory in CREDENTIALS:
            for name in (BARE[0], "byteor.firstboot"):
                candidates.append(layout.path(directory, follow=True) / name)
        candidates.append(layout.image_defaults)
        held = [(path, data, self._given(path, data)) for path, data in self._read(candidates)]
        # A journal's files are not what a reader reads.
        journals = sorted(layout.path(JOURNAL, follow=True).glob("*/*.journal*"))
        held += [(path, data, userdata.named(data)) for path, data in self._read(journals, VACUUM)]
        given = {token for _, _, gives in held for token in gives}
        ours_too = (layout.drop_place, layout.token_file)
        for path, data, gives in held:
            if path not in ours_too and (gives or any(token in data for token in given)):
                shown = layout.shown(path)
                self.rows.append(Leftover(shown, TOKEN, f"take it out, or rm -f {shown}"))
        self._recorded()
        try:
            if systemjournal.search(layout, sorted(given)) is not None:
                self.rows.append(Leftover(systemjournal.NAME, TOKEN, VACUUM))
        except LocalFault as error:
            self.rows.append(_unseen(systemjournal.NAME, str(error), error.hint or VACUUM))
        return self.rows

    def _recorded(self) -> None:
        """Add the copies that the receipt names, whatever form the token has there."""
        known = {row.path for row in self.rows if row.what == TOKEN}
        for row in standing(self.layout):
            if row.path == systemjournal.NAME:
                # No source shows the token any more, so `erase --journal` would not find it.
                remedy = f"{VACUUM} && byteor-firstboot erase"
                self.rows.append(Leftover(row.path, TOKEN, remedy))
            elif row.path not in known:
                remedy = f"rm -f {row.path}, or take it out and run byteor-firstboot erase"
                self.rows.append(Leftover(row.path, TOKEN, remedy))

    def _named(self, config: Path | None) -> Sequence[str]:
        """Return the files of the setting `erase.paths`; a row where no host could read it."""
        try:
            source = image(self.layout, Inputs(config=config))
        except ByteorError as error:
            shown = str(config or self.layout.shown(self.layout.image_defaults))
            self.rows.append(Leftover(shown, f"no host can use it: {error}", error.hint or ""))
            return ()
        paths: Sequence[str] = source.values.get("erase", {}).get("paths", ()) if source else ()
        return paths

    def _read(self, paths: Sequence[Path], remedy: str = "") -> Iterator[tuple[Path, bytes]]:
        for path in paths:
            try:
                data = files.read(path, limit=FILE_LIMIT)
            except LocalFault as error:
                self.rows.append(_unseen(self.layout.shown(path), str(error), remedy))
            else:
                if data:
                    yield path, data

    def _given(self, path: Path, data: bytes) -> set[bytes]:
        """Return the tokens that reading a file gives, whatever it is wrapped in."""
        bare = data.strip()
        found = {bare} if path.name in BARE and userdata.is_token(bare) else set()
        try:
            for text in texts(data):
                for said in userdata.spoken(text):
                    found |= userdata.named(said)
        except Damaged as error:
            self.rows.append(_unseen(self.layout.shown(path), str(error)))
        return found
