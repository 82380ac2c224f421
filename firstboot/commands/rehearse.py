"""``byteor-firstboot check-userdata`` and ``preflight``: check all that spends no token."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Callable

from firstboot.base import files, log
from firstboot.base.clock import Clock
from firstboot.base.errors import ByteorError, Invalid, LocalFault, NoToken
from firstboot.commands import enroll
from firstboot.provision import userdata
from firstboot.provision.schema import Rank, parse
from firstboot.provision.sources import Source, merge

LOCK_WAIT_S = 30.0
LONGEST_BYTES = 16384  # EC2's limit; others allow more


def check_userdata_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument of ``check-userdata``."""
    parser.add_argument("file", metavar="FILE|-", type="path")


def check_userdata_command(arguments: argparse.Namespace) -> int:
    """Judge the user data in a file, or on stdin."""
    name = arguments.file
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        reason = (error.strerror or "failed").lower()
        raise Invalid(
            f"cannot read {name}: {reason}", hint="name a file, or - for stdin"
        ) from error
    return check_userdata(data, as_json=arguments.json)


def check_userdata(data: bytes, *, as_json: bool = False) -> int:
    """0 when it carries a token (and says what it leaves to the image); NoToken or Invalid otherwise."""
    try:
        form, missing, warnings = _judge(data)
    except ByteorError as error:
        if as_json:
            print(
                json.dumps(
                    {"v": 1, "would_enroll": False, "problem": str(error), "hint": error.hint},
                    indent=1,
                )
            )
        raise
    if as_json:
        document = {
            "v": 1,
            "would_enroll": True,
            "form": form,
            "left_to_the_image": missing,
            "warnings": warnings,
        }
        print(json.dumps(document, indent=1))
        return 0
    if missing:
        log.warning(f"left to the image's /etc/byteor/firstboot.yaml: {', '.join(missing)}")
    for warning in warnings:
        log.warning(warning)
    print(f"would enroll a host: {form} form")
    return 0


def _judge(data: bytes) -> tuple[str, list[str], list[str]]:
    """Return the form, the keys that are left to the image, and warnings."""
    found = userdata.read(data, where="user data")
    values = parse(found.raw, where="user data", rank=Rank.USER_DATA) if found is not None else {}
    token = values.pop("enrollment_token", None)
    if found is None or token is None:
        raise NoToken(
            "this user data carries no enrollment token",
            hint="README: a comment block, write_files, byteor:",
        )
    settings, _ = merge([Source(Rank.USER_DATA, "user data", values)], chosen=None)
    needed = ("api_base_url", "org_id", "project_id", "environment_id")
    warnings = []
    if found.form == "mapping":
        warnings.append(
            "cloud-init 24.2 and newer reports degraded for a byteor: mapping; a comment block costs nothing"
        )
    if len(data) > LONGEST_BYTES:
        warnings.append(f"it is larger than the {LONGEST_BYTES} bytes that some platforms allow")
    return found.form, [key for key in needed if getattr(settings, key) is None], warnings


def preflight_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flag of ``preflight``."""
    enroll.token_file(parser)


def preflight_command(arguments: argparse.Namespace) -> int:
    """Make every check, one line each; the first failure decides the exit code."""
    from firstboot.identity import store
    from firstboot.provision import preflight
    from firstboot.provision.schema import require_complete
    from firstboot.provision.sources import gather
    from firstboot.provision.tokens import Marks

    layout = arguments.layout
    found = gather(
        layout, enroll.inputs(arguments), classify=Marks.load(layout, repair=False).classify
    )
    settings = found.settings

    def seals() -> None:
        busy = LocalFault(
            "identity/lock is held by another process", hint="rerun preflight when it has ended"
        )
        preflight.make_state(layout)
        with files.locked(layout.lock, wait_s=LOCK_WAIT_S, busy=lambda: busy):
            # A foreign identity's key must not be touched; `run` sets it aside before it seals.
            if store.look(layout).state is not store.State.FOREIGN:
                store.probe_sealing(layout, seal=settings.seal)

    def reaches() -> None:
        require_complete(settings)
        with preflight.plane(settings) as api:
            preflight.check_plane(api)

    checks: tuple[tuple[str, Callable[[], None]], ...] = (
        ("settings", lambda: require_complete(settings)),
        ("state directory", lambda: preflight.check_disk(layout)),
        ("clock", lambda: preflight.check_clock(Clock())),
        ("sealing", seals),
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
    if arguments.json:
        print(json.dumps({"v": 1, "checks": rows, "token": found.token is not None}, indent=1))
    else:
        for row in rows:
            print(f"{'!' if row['problem'] else '+'} {row['check']}: {row['problem'] or 'ok'}")
        print("+ token: there is one" if found.token is not None else "- token: none in any source")
    if failed is not None:
        raise failed
    return 0
