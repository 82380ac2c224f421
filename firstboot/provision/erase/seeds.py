"""The seeds that cloud-init's datasource read, as ``instance/datasource`` names them.

A seed that is a directory of this host is erased as everything else, or named where it may not be:
``seed=/var/lib/cloud/seed/nocloud``, and what a meta-data's ``seedfrom`` pointed to, such as
``file:///srv/seed/``. From any other the token can be read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from firstboot.base import files
from firstboot.base.layout import Layout

# As cloud-init's util.read_seeded names them.
NAMES = ("user-data", "vendor-data", "meta-data")
_LISTED = re.compile(r"\[(?:seed|source)=([^\]]*)\]")
_LOCAL = re.compile(r"(?:file://)?(/(?!dev/).*)")


def still_served(layout: Layout) -> tuple[str, ...]:
    """Return a sentence for the datasource from which the user data can be read again.

    That is any but local seeds alone: a metadata service answers any process of the host or root
    alone, a medium can be mounted again.
    """
    name, seeds = _datasource(layout)
    if not name or name == "DataSourceNone" or (seeds and all(map(_LOCAL.fullmatch, seeds))):
        return ()
    return (
        f"the datasource {name} serves the user data again, at every boot or to whoever asks it on "
        "this host",
    )


def local(layout: Layout) -> Iterator[str]:
    """Yield the files that local seeds have, whether they are there or not."""
    for seed in _datasource(layout)[1]:
        match = _LOCAL.fullmatch(seed)
        if match is not None:
            yield from (f"{match[1].rstrip('/')}/{name}" for name in NAMES)
            if not match[1].endswith("/"):  # old versions join the two as they are
                yield from (f"{match[1]}{name}" for name in NAMES)


def _datasource(layout: Layout) -> tuple[str, list[str]]:
    """Return the datasource's name, and the seeds that it names."""
    line = (files.read(layout.cloud_datasource, limit=4096) or b"").decode("utf-8", "replace")
    seeds = [seed for match in _LISTED.finditer(line) for seed in match.group(1).split(",")]
    return line.split(":")[0].strip(), [seed.strip() for seed in seeds]
