"""Find what an image must not carry: ours, and what else makes hosts alike.

Ours is whatever stands in our directories and is no row of the layout that `stays`: so a file that
a later version adds is found as well. What is not ours is named only, with the command that removes
it. Tokens are looked for where the eraser looks, with the reader's decoders; a token that stands in
a file in another form than ``enrollment_token: ...`` is found where another file shows it so.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstboot.base import files, log
from firstboot.base.errors import ByteorError, LocalFault
from firstboot.base.layout import Layout
from firstboot.provision import userdata
from firstboot.provision.erase import places, receipt, systemjournal
from firstboot.provision.erase.reread import Damaged, texts
from firstboot.provision.erase.unfinished import FILE_LIMIT
from firstboot.provision.sources import Inputs, image

_TOKEN = re.compile(rb"""enrollment_token\\*["']?[ \t]*[:=][ \t]*\\*["']?([!-~]{16,})""")
_NO_TOKEN = re.compile(rb"x+|[<{$].*")  # erased, or a placeholder
_AFTER = b"\"'\\,}"  # what may follow a value without a gap
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
)
TOKEN = "enrollment token"
JOURNAL = "/var/log/journal"


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
    tops = (layout.state, layout.agent_run, layout.drop_place.parent)
    found = [path for top in tops for path in _below(layout, top, staying)]
    return [*found, *filter(os.path.lexists, [layout.token_file])]


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
    found = list(_machine_ids(layout))
    for what, where, remedy in ALIKE:
        directory, _, pattern = where.rpartition("/")
        try:
            names = os.listdir(layout.path(directory, follow=True))
        except OSError:
            continue
        for name in sorted(fnmatch.filter(names, pattern)):
            path = f"{directory}/{name}"
            found.append(Leftover(path, what, remedy or f"rm -f {path}"))
    return found + _tokens(layout, _named(layout, config))


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


def _named(layout: Layout, config: Path | None) -> Sequence[str]:
    """Return the files of the setting `erase.paths`."""
    try:
        source = image(layout, Inputs(config=config))
    except ByteorError as error:
        log.warning(str(error), hint=error.hint)
        return ()
    paths: Sequence[str] = source.values.get("erase", {}).get("paths", ()) if source else ()
    return paths


def _tokens(layout: Layout, named: Sequence[str]) -> list[Leftover]:
    """Return the files that give a token, or hold one that another file gives."""
    candidates = [place.path for place in places.find(layout, named).places]
    candidates += [layout.image_defaults]
    ours_too = (layout.drop_place, layout.token_file)
    held = [(path, data, _given(path, data)) for path in candidates if (data := _read(path))]
    # A journal's files are not what a reader reads.
    journals = layout.path(JOURNAL, follow=True).glob("*/*.journal*")
    held += [(path, data, _values(data)) for path in journals if (data := _read(path))]
    given = {token for _, _, gives in held for token in gives}
    left = {row.path for row in receipt.earlier(layout).of("remains")}
    for path, data, gives in held:
        if path not in ours_too and (gives or any(token in data for token in given)):
            left.add(layout.shown(path))
    found = [
        Leftover(path, TOKEN, f"take it out, or rm -f {path}")
        for path in sorted(left)
        if os.path.lexists(layout.path(path))
    ]
    try:
        row = systemjournal.search(layout, sorted(given))
    except LocalFault as error:
        log.warning(str(error), hint=error.hint)
        row = None
    if row is not None:
        remedy = "journalctl --rotate && journalctl --vacuum-time=1s"
        found.append(Leftover(row.path, TOKEN, remedy))
    return found


def _read(path: Path) -> bytes | None:
    try:
        return files.read(path, limit=FILE_LIMIT)
    except LocalFault as error:
        log.warning(f"not looked at: {error}")
        return None


def _given(path: Path, data: bytes) -> set[bytes]:
    """Return the tokens that reading a file gives, whatever it is wrapped in."""
    found = set()
    try:
        for text in texts(data):
            for said in userdata.spoken(text):
                found |= _values(said)
    except Damaged as error:
        log.warning(f"not looked at whole: {path} {error}")
    return found


def _values(data: bytes) -> set[bytes]:
    found = {value.rstrip(_AFTER) for value in _TOKEN.findall(data)}
    return {value for value in found if value and not _NO_TOKEN.fullmatch(value)}
