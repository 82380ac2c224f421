"""Let our units write where the token may be on this host alone: a drop-in for each, on tmpfs.

Those are the files of `erase.paths`, local seeds, and what links in cloud-init's trees lead to. The
units see a read-only file system but for the places that every host has. `run` writes the drop-ins
when it hands off, so that ``byteor-erase.service``, which starts later, may write those files. The
kernel forgets them at the end of the boot, and the next `run` writes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from firstboot.base import files, systemd
from firstboot.base.layout import Layout
from firstboot.provision.erase import places

UNITS = ("byteor-erase.service", "byteor-firstboot.service")
RUNTIME = Path("/run/systemd/system")


def grant(layout: Layout, named: Sequence[str], *, runtime: Path = RUNTIME) -> None:
    """Make the drop-ins say the files `named` and what is elsewhere, or remove them.

    LocalFault where systemd refuses them.
    """
    if not layout.is_host or not systemd.booted():
        return
    elsewhere = map(str, places.find(layout).elsewhere)
    paths = [*named, *sorted({*elsewhere} - {*named})]
    changed = False
    for unit in UNITS:
        path = runtime / f"{unit}.d" / "erase-paths.conf"
        wanted = _text(paths) if paths else None
        if files.read(path, limit=1 << 20) == wanted:
            continue
        changed = True
        if wanted is None:
            files.remove(path)
        else:
            files.make_directory(path.parent, 0o755)
            files.write(path, wanted, mode=0o644, durable=False)
    if changed:
        systemd.reload()


def _text(paths: Sequence[str]) -> bytes:
    quoted = [path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") for path in paths]
    lines = [f'ReadWritePaths="-{path}"' for path in quoted]
    return "\n".join(
        ["# Written by byteor-firstboot: erase.paths", "[Service]", *lines, ""]
    ).encode()
