"""``byteor-firstboot check-userdata``: offline, would this user data enroll a host?"""

from __future__ import annotations

from firstboot import log
from firstboot.errors import NoToken
from firstboot.provision import userdata
from firstboot.settings import Rank, Source, merge, parse

LONGEST_BYTES = 16384  # EC2's limit; others allow more


def check_userdata(data: bytes) -> int:
    """0 when it carries a token (and says what it leaves to the image); NoToken or Invalid otherwise."""
    found = userdata.read(data, where="user data")
    values = parse(found.raw, where="user data", rank=Rank.USER_DATA) if found is not None else {}
    token = values.pop("enrollment_token", None)
    if token is None:
        raise NoToken("this user data carries no enrollment token", hint="README: a comment block, write_files, byteor:")
    settings, _ = merge([Source(Rank.USER_DATA, "user data", values)], chosen=None)
    missing = [k for k in ("api_base_url", "org_id", "project_id", "environment_id") if getattr(settings, k) is None]
    if missing:
        log.warning(f"left to the image's /etc/byteor/firstboot.yaml: {', '.join(missing)}")
    if found is not None and found.form == "mapping":
        log.warning("cloud-init 24.2 and newer reports degraded for a byteor: mapping", hint="use a comment block")
    if len(data) > LONGEST_BYTES:
        log.warning(f"it is larger than the {LONGEST_BYTES} bytes that some platforms allow")
    print(f"would enroll a host: {found.form if found else ''} form")
    return 0
