"""``byteor-firstboot check-userdata``: offline, would this user data enroll a host?"""

from __future__ import annotations

import json

from firstboot.base import log
from firstboot.base.errors import ByteorError, NoToken
from firstboot.provision import userdata
from firstboot.provision.schema import Rank, Source, merge, parse

LONGEST_BYTES = 16384  # EC2's limit; others allow more


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
