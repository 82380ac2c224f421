"""Warn of user data that works but leaks its token, or is too large for a cloud.

Measured in CLOUD-INIT.md, section 2. Nothing here is an error: a host with it enrolls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from firstboot.base.errors import Invalid
from firstboot.provision import writefiles
from firstboot.provision.parts import Part, Unpacking
from firstboot.provision.schema import compose

# Bytes of user data that platforms take; OpenStack counts them as base64.
SIZES = {"EC2": 16_384, "OpenStack": 65_535 // 4 * 3, "Azure": 65_535, "GCE": 262_144}
# Types that cloud-init has a handler for, and those for which it looks at the first line.
HANDLED = re.compile(
    r"|text/(plain|jinja2|cloud-(config(-archive|-jsonp)?|boothook)|part-handler|upstart-job"
    r"|x-(shellscript(-per-(boot|instance|once))?|include(-once)?-url|not-multipart))"
)
_SCRIPT = (b"#!", b"#cloud-boothook")
_TRACED = re.compile(rb"\A#![^\n]*\s-[a-z]*x|^\s*set\s+-[a-z]*x", re.MULTILINE)
_AUTOINSTALL = re.compile(rb"^[\"']?autoinstall[\"']?[ \t]*:", re.MULTILINE)
_META_DATA = re.compile(rb"^[\"']?instance-id[\"']?[ \t]*:", re.MULTILINE)


def on(data: bytes, token: bytes) -> list[str]:
    """Return warnings on user data that holds `token`."""
    said = list(_sizes(len(data)))
    for part in Unpacking("user data").parts(data):
        said += _on_part(part, token)
    return list(dict.fromkeys(said))


def _sizes(size: int) -> Iterator[str]:
    beyond = [f"{name} ({limit})" for name, limit in SIZES.items() if size > limit]
    if beyond:
        yield f"it has {size} bytes, which is more than {', '.join(beyond)} takes"


def _on_part(part: Part, token: bytes) -> Iterator[str]:
    if token.decode() in part.headers:
        yield "a MIME header holds the token: cloud-init writes headers into its log"
    if _AUTOINSTALL.search(part.data):
        yield (
            "the installed system gets what is under user-data of autoinstall alone, without its "
            "comments: put write_files there"
        )
    if token not in part.data:
        return
    script = part.data.lstrip().startswith(_SCRIPT)
    if not HANDLED.fullmatch(part.kind):
        yield f"cloud-init has no handler for {part.kind}: it logs how that part begins"
    if script:
        yield "a script holds the token: cloud-init keeps a copy of it, also of later boots"
    if script and _TRACED.search(part.data):
        yield "a script with -x prints the token into the log, the journal and the console"
    if _META_DATA.search(part.data) and not script:
        yield "meta-data with the token lies in instance-data.json, which everybody can read"
    if b"write_files" in part.data and not script:
        yield from _readable(part.data, token)


def _readable(data: bytes, token: bytes) -> Iterator[str]:
    """Warn of other files that are written with the token, and that everybody can read."""
    try:
        root = compose(data, where="user data")
    except Invalid:
        return
    for entry in writefiles.entries(root):
        path = writefiles.text(entry.get("path"))
        try:
            content = writefiles.content_of(entry, "it")
        except Invalid:
            continue
        if token in content and writefiles.mode_of(entry) & 0o004 and not writefiles.is_ours(path):
            yield f"write_files writes the token into {path}, which everybody can read"
