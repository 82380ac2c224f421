"""``byteor-firstboot check-userdata`` and ``preflight``: check all that spends no token."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Callable

from firstboot.base import files, inplace, log
from firstboot.base.clock import Clock
from firstboot.base.errors import ByteorError, Invalid, LocalFault, NoToken
from firstboot.base.layout import Layout
from firstboot.commands import enroll
from firstboot.commands.agent_page import show
from firstboot.identity import store
from firstboot.provision import leaks, preflight, progress, userdata
from firstboot.provision.schema import PLACE, parse, require_complete
from firstboot.provision.sources import USER_DATA_LIMIT, gather
from firstboot.provision.tokens import Marks

# The class of the token that counts -> the line about it
TOKENS = {
    None: "- token: none in any source",
    "fresh": "+ token: there is one",
    "refused": "! token: the control plane refused it (byteor-firstboot status)",
    "spent": "- token: spent, it has enrolled this host",
}


def check_userdata_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument of ``check-userdata``."""
    parser.add_argument("file", metavar="FILE|-", type="path")


def check_userdata_command(arguments: argparse.Namespace) -> int:
    """Judge the user data in a file, or on stdin, read with the limit that a host has."""
    name = arguments.file
    try:
        with sys.stdin.buffer if name == "-" else open(name, "rb") as stream:
            data = stream.read(USER_DATA_LIMIT + 1)
    except OSError as error:
        reason = (error.strerror or "failed").lower()
        raise Invalid(
            f"cannot read {name}: {reason}", hint="name a file, or - for stdin"
        ) from error
    if len(data) > USER_DATA_LIMIT:
        raise Invalid(f"user data is larger than {USER_DATA_LIMIT} bytes", hint="send less")
    return check_userdata(data, as_json=arguments.json)


def check_userdata(data: bytes, *, as_json: bool = False) -> int:
    """Return 0 when a host with this would enroll; NoToken or Invalid otherwise."""
    try:
        form, missing, warnings = _judge(data)
    except ByteorError as error:
        verdict = {"v": 1, "would_enroll": False, "problem": str(error), "hint": error.hint}
        show(verdict, (), as_json=as_json)
        raise
    said = [f"left to the image's /etc/byteor/firstboot.yaml: {', '.join(missing)}"] * bool(missing)
    for warning in [] if as_json else [*said, *warnings]:
        log.warning(warning)
    found = {"form": form, "left_to_the_image": missing, "warnings": warnings}
    document = {"v": 1, "would_enroll": True, **found}
    show(document, [f"would enroll a host: {form} form"], as_json=as_json)
    return 0


def _judge(data: bytes) -> tuple[str, list[str], list[str]]:
    """Return the form, the keys that are left to the image, and warnings."""
    where = "user data"
    reading = userdata.examine(data, where=where)
    found = reading.chosen()
    for miss in reading.misses:
        raise miss
    values = parse(found.raw, where=where) if found is not None else {}
    token = values.get("enrollment_token")
    if found is None or token is None:
        if reading.written_late and (found is None or found.form != "write_files"):
            return "script", [], ["a script writes our settings or token: it cannot be judged"]
        raise NoToken(
            "this user data carries no enrollment token",
            hint="after #cloud-config: #byteor-firstboot:, then lines of # and two spaces (README)",
        )
    for one in reading.found:
        if one.refusal:
            raise Invalid(f"{where}: {one.refusal}", hint="correct it: first boot refuses the file")
    warnings = [warning for one in reading.found for warning in one.warnings]
    if found.form == "mapping":
        warnings.append(
            "cloud-init 24.2 and newer reports degraded for a byteor: mapping; "
            "a comment block costs nothing"
        )
    warnings += leaks.on(data, token.reveal().encode())
    rendered = {key for one in reading.found for key in one.rendered}
    return found.form, [key for key in PLACE if key not in {*values, *rendered}], warnings


def preflight_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flag of ``preflight``."""
    enroll.token_file(parser)


def preflight_command(arguments: argparse.Namespace) -> int:
    """Make every check, one line each; the first failure decides the exit code."""
    layout = arguments.layout
    marks = Marks.load(layout, repair=False)
    found = gather(layout, enroll.inputs(arguments), classify=marks.classify)
    settings = found.settings

    def reaches() -> None:
        require_complete(settings)
        with preflight.plane(settings) as api:
            preflight.check_plane(api)

    checks: tuple[tuple[str, Callable[[], None]], ...] = (
        ("settings", lambda: require_complete(settings)),
        ("state directory", lambda: preflight.check_disk(layout)),
        ("clock", lambda: preflight.check_clock(Clock())),
        ("sealing", lambda: _seals(layout, settings.seal)),
        ("agent's unit", lambda: preflight.check_agent(layout)),
        ("control plane", reaches),
    )
    failed: ByteorError | None = None
    rows: list[dict[str, str | None]] = []
    for name, check in checks:
        row: dict[str, str | None] = {"check": name, "result": "ok", "problem": None, "hint": None}
        try:
            check()
        except ByteorError as error:
            row.update(result="failed", problem=str(error), hint=error.hint)
            failed = failed or error
        rows.append(row)
    lines = [f"{'!' if r['problem'] else '+'} {r['check']}: {r['problem'] or 'ok'}" for r in rows]
    lines.append(TOKENS[marks.classify(found.token).value if found.token is not None else None])
    document = {"v": 1, "checks": rows, "token": found.token is not None}
    show(document, lines, as_json=arguments.json)
    if failed is not None:
        raise failed
    return 0


def _seals(layout: Layout, seal: str) -> None:
    """Raise LocalFault unless sealing works; a key that it needed is removed again.

    An image that was checked must not give all its hosts one key.
    """
    busy = LocalFault(
        "identity/lock is held by another process", hint="rerun preflight when it has ended"
    )
    preflight.make_state(layout)
    with files.locked(layout.lock, busy=lambda: busy):
        if not progress.at_work(layout):  # what a run writes outside of this lock is not half-made
            preflight.sweep(layout)
        # A foreign identity's key must not be touched; `run` sets it aside before it seals.
        if store.look(layout).state is store.State.FOREIGN:
            return
        keys = (layout.sealing_key, layout.sealing_cred)
        missing = [key for key in keys if not os.path.lexists(key)]
        try:
            store.probe_sealing(layout, seal=seal)
        finally:
            for key in missing:
                inplace.wipe_file(key)
