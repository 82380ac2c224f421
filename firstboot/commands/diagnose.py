"""``byteor-agent diagnose``: one archive of what support needs, without credentials.

Both status documents, the validation checks, settings, receipt, deployments, versions, our units
and their journal of this boot. What this user cannot read is said in ``redactions.json``. Every
part goes through `redaction`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Callable

from firstboot import __version__
from firstboot.agent.artifacts import packing
from firstboot.agent.artifacts.packing import Packed, Part
from firstboot.agent.artifacts.spool import About
from firstboot.base import files, log, systemd
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import ByteorError
from firstboot.base.layout import Layout
from firstboot.commands import agent_status, history, status, upload, verify
from firstboot.commands.enroll import inputs
from firstboot.commands.flags import flag

DIAGNOSTIC = "diagnostic"
LIBRARIES = ("requests", "urllib3", "PyYAML", "cryptography")
LARGEST_FILE, LARGEST_OUTPUT = 1 << 20, 8 << 20  # bytes
JOURNAL_LINES = 20_000  # the newest
TIMEOUT_S = 30.0
UNITS = "byteor-*"
HELP = """\
Write one tar.gz of what support needs: both status documents, the validation checks, settings,
receipt, deployments, versions, our units and their journal of this boot. Credentials are cut out
of all of it. Run as root, or parts are missing; redactions.json in the archive says which.

example: byteor-agent diagnose -o /var/tmp/byteor.tar.gz"""


def diagnose_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``diagnose``."""
    parser.description = HELP
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="default: byteor-diagnose-TIME.tar.gz, here"
    )
    flag(parser, "--upload", "also queue it for upload, or only that without -o")


def diagnose_command(arguments: argparse.Namespace) -> int:
    """Gather, write, and queue for upload where asked; print the file's name or artifact's id."""
    layout: Layout = arguments.layout
    upload.know_own_key(layout)
    now = Clock().wall()
    name = f"byteor-diagnose-{rfc3339(now).replace(':', '')}.tar.gz"
    account = upload.writer(layout) if arguments.upload else None
    held = packing.hold(b"")
    try:
        packed = Packed()
        with os.fdopen(os.dup(held), "wb") as stream:
            packing.write(_parts(arguments, packed), packed, stream)
        for row in packed.left_out:
            log.warning(f"not in the archive: {row['part']}: {row['why']}")
        if arguments.output is not None or not arguments.upload:
            path = Path(arguments.output or name)
            files.write(path, os.pread(held, os.fstat(held).st_size, 0))
            print(path)
        if arguments.upload:
            added, _ = upload.hand_in(layout, account, held, About(DIAGNOSTIC, name, now))
            print(added.id)
    finally:
        os.close(held)
    return 0


def _parts(arguments: argparse.Namespace, packed: Packed) -> Iterator[Part]:
    """Yield every part that can be had; what cannot goes to `left_out` with the reason."""
    layout: Layout = arguments.layout
    makers: dict[str, Callable[[], bytes]] = {
        "agent-status.json": lambda: _json(agent_status.look(layout, Clock())),
        "firstboot-status.json": lambda: _json(
            status.describe(layout, inputs(arguments), clock=Clock())[0]
        ),
        "verify.json": lambda: _json(verify.shown(verify.checks(layout, config=arguments.config))),
        layout.history.name: lambda: _json(history.look(layout)),
        "versions.json": lambda: _json(versions(layout)),
        layout.settings.name: lambda: _file(layout.settings),
        layout.image_defaults.name: lambda: _file(arguments.config or layout.image_defaults),
        layout.erasure.name: lambda: _file(layout.erasure),
    }
    if layout.is_host and systemd.booted():
        makers["units.txt"] = lambda: _output(
            "systemctl", "status", "--no-pager", "--full", "--lines=0", UNITS
        )
        makers["journal.txt"] = lambda: _output(
            *("journalctl", "--no-pager", "--boot", "--output=short-iso-precise"),
            *(f"--lines={JOURNAL_LINES}", f"--unit={UNITS}"),
        )
    for name, make in sorted(makers.items()):
        try:
            yield name, 0.0, make()
        except FileNotFoundError:
            packed.left_out.append({"part": name, "why": "there is none"})
        except (ByteorError, OSError, subprocess.SubprocessError) as error:
            why = str(error) if isinstance(error, ByteorError) else type(error).__name__
            packed.left_out.append({"part": name, "why": why})


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _file(path: Path) -> bytes:
    data = files.read(path, limit=LARGEST_FILE)
    if data is None:
        raise FileNotFoundError(path)
    return data


def _output(*command: str) -> bytes:
    """Return the end of what a command prints, whatever its exit code."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.stdout[-LARGEST_OUTPUT:]


def versions(layout: Layout) -> dict[str, Any]:
    """Return the versions of this package, Python, libraries, kernel and distribution."""
    found: dict[str, Any] = {"byteor-firstboot": __version__, "python": sys.version.split()[0]}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    for name in ("systemctl", "cloud-init") if layout.is_host else ():
        try:
            found[name] = _output(name, "--version").decode("utf-8", "replace").partition("\n")[0]
        except (OSError, subprocess.SubprocessError):
            found[name] = None
    # A link on nearly every distribution.
    os_release = files.read(
        layout.path("/etc/os-release", follow=True).resolve(), limit=LARGEST_FILE
    )
    found["os_release"] = (os_release or b"").decode("utf-8", "replace").splitlines()
    system = platform.uname()
    found["kernel"] = f"{system.system} {system.release} {system.machine}"
    return {"v": 1, **found}
