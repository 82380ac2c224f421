"""Obtain the sealing key: from the host's `systemd-creds` secret, or from a key file.

Provider "host" keeps a random key in ``identity/sealing.cred``, encrypted by ``systemd-creds
--with-key=host``: it opens with ``/var/lib/systemd/credential.secret`` under the machine-id of that
moment, and not elsewhere. Under another machine-id `systemd-creds` removes that secret (measured on
252, and decrypting does it too), so the file carries a salted hash of the machine-id, and none is
started before it matches. Provider "file" keeps the key in ``identity/sealing.key``, 0400.

A key that exists is used again and never replaced: it is made with link(2). The key travels by
stdin and stdout pipes alone, never in an argument, the environment or a temporary file.

Corrupt is for what is proven bad: a key that is missing, of the wrong size, or no document. A mode,
owner or link, a `systemd-creds` that fails or is killed: LocalFault, which says nothing about the
identity.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from firstboot.base import documents, files, log
from firstboot.base.documents import Rule
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.identity.host import HostFacts, fingerprint, host_facts, same_machine_id

HOST, FILE = "host", "file"
KEY_BYTES = 32
KEY_LIMIT = 4096  # bytes that are read, to say how many there are
CREDENTIAL_NAME = "byteor-sealing-key"
OLDEST_SYSTEMD = 250  # the first with systemd-creds
CREDS_TIMEOUT_S = 60  # 0.15 s as a rule; a starved guest's first use also makes the host's secret
# Nothing of the caller's environment reaches systemd-creds: $SYSTEMD_CREDENTIAL_SECRET would name
# another secret.
CREDS_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
}
ANOTHER_KEY = "if it stays, byteor-firstboot reenroll with a fresh token replaces the identity"

Version = Annotated[int, Rule(lambda v: v == 1, "version 1")]


@dataclass(frozen=True)
class _Credential:
    host: Mapping[str, Any]
    credential: str
    v: Version = 1


def choose(layout: Layout, seal: str, *, facts: HostFacts) -> str:
    """Return the provider for the setting `seal` (auto, host, file).

    LocalFault where "host" cannot last.
    """
    if seal == FILE or not layout.is_host:
        return FILE
    if seal == HOST and not facts.committed:
        raise LocalFault(
            "seal: host needs a machine-id that is committed to the disk",
            hint="systemd-machine-id-setup --commit; or seal: file in /etc/byteor/firstboot.yaml",
        )
    if seal == HOST or (facts.committed and _systemd_version() >= OLDEST_SYSTEMD):
        return HOST
    return FILE


def obtain(layout: Layout, seal: str) -> tuple[str, bytes]:
    """Return (provider, key), made durable if there was none; as `fetch` when there is one.

    With "auto" a `systemd-creds` that is there and does not work costs a warning and means a key
    file. The caller holds the lock.
    """
    facts = host_facts(layout)
    provider = choose(layout, seal, facts=facts)
    files.make_directory(layout.identity, 0o700)
    if provider == HOST and not os.path.lexists(layout.sealing_cred):
        try:
            return HOST, _make_host_key(layout, facts)
        except LocalFault as error:
            if seal == HOST:
                raise
            log.warning("the identity will be sealed with a key file", because=error)
            provider = FILE
    if provider == FILE and not os.path.lexists(layout.sealing_key):
        key = secrets.token_bytes(KEY_BYTES)
        files.create(layout.sealing_key, key, mode=0o400)
        return FILE, key
    return provider, fetch(layout, provider)


def fetch(layout: Layout, provider: str) -> bytes:
    """Return the key that is on disk, and never make one; Corrupt or LocalFault as said above."""
    if provider == FILE:
        path = layout.sealing_key
        refuse_link(path)
        key = files.read(path, limit=KEY_LIMIT, private_to=layout.owner)
    elif provider != HOST:
        raise LocalFault(
            "it is sealed with a key of a kind that this version does not know",
            hint="install the version that enrolled this host",
        )
    elif not layout.is_host:
        raise LocalFault(
            "it is sealed with the systemd secret of that system, and opens only when that runs",
            hint="look at it there; or enroll with seal: file in /etc/byteor/firstboot.yaml",
        )
    else:
        path, key = layout.sealing_cred, _fetch_host_key(layout)
    if key is None:
        raise Corrupt(f"its key {path} is missing")
    if len(key) != KEY_BYTES:
        raise Corrupt(f"its key {path} is damaged: {len(key)} bytes, not {KEY_BYTES}")
    return key


def refuse_link(path: Path) -> None:
    """Raise LocalFault for a symbolic link: it may lead to what is good."""
    with files.attempt("look at", path):
        is_link = path.is_symlink()
    if is_link:
        raise LocalFault(
            f"{path} is a symbolic link, and is not followed", hint=f"put the file itself at {path}"
        )


def _fetch_host_key(layout: Layout) -> bytes | None:
    path, facts = layout.sealing_cred, host_facts(layout)
    refuse_link(path)
    stored = documents.read(path, _Credential)
    if stored is None:
        return None
    if not same_machine_id(stored.host, facts):
        if facts.committed:
            raise Corrupt(f"its key {path} was made under another machine-id")
        raise LocalFault(
            f"its key {path} needs the machine-id, which is not on the disk yet",
            hint="systemd-machine-id-setup --commit",
        )
    code, key, said = _systemd_creds(
        ["decrypt", f"--name={CREDENTIAL_NAME}", "-", "-"],
        "".join(stored.credential.split()).encode(),
    )
    if code:
        raise LocalFault(f"systemd-creds does not open its key {path}: {said}", hint=ANOTHER_KEY)
    return key


def _make_host_key(layout: Layout, facts: HostFacts) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    code, credential, said = _systemd_creds(
        ["encrypt", "--with-key=host", f"--name={CREDENTIAL_NAME}", "-", "-"], key
    )
    hint = "seal: file in /etc/byteor/firstboot.yaml"
    if code:
        raise LocalFault(f"systemd-creds does not encrypt: {said}", hint=hint)
    try:
        base64.b64decode(b"".join(credential.split()), validate=True)
    except binascii.Error as error:
        raise LocalFault("systemd-creds wrote something else than base64", hint=hint) from error
    made = _Credential(fingerprint(facts), credential.decode("ascii"))
    files.create(layout.sealing_cred, json.dumps(asdict(made)).encode(), mode=0o400)
    return key


def _systemd_creds(arguments: list[str], stdin: bytes) -> tuple[int, bytes, str]:
    """Return (exit code, stdout, last line of stderr); LocalFault when it does not run or end."""
    try:
        done = subprocess.run(
            ["systemd-creds", *arguments],
            input=stdin,
            capture_output=True,
            timeout=CREDS_TIMEOUT_S,
            env=CREDS_ENVIRONMENT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        # `from None`: the time-out's exception carries what was written so far, which may be the
        # key.
        raise LocalFault(
            f"cannot run systemd-creds: {type(error).__name__}",
            hint="it is part of systemd, from version 250 on",
        ) from None
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return done.returncode, done.stdout, lines[-1] if lines else f"exit code {done.returncode}"


def _systemd_version() -> int:
    """Return systemd's version as its `systemd-creds` says it, 0 where there is none."""
    try:
        code, out, _ = _systemd_creds(["--version"], b"")
    except LocalFault:
        return 0
    found: re.Match[bytes] | None = re.match(rb"systemd (\d+)", out)
    return int(found.group(1)) if found and not code else 0
