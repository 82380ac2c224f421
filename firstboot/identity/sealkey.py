"""Where the sealing key comes from: the host's `systemd-creds` secret, or a key file.

Provider "host" keeps a random key in ``identity/sealing.cred``, encrypted by ``systemd-creds --with-key=host``: it
opens with ``/var/lib/systemd/credential.secret`` under the machine-id of that moment, and not elsewhere. Under another
machine-id `systemd-creds` removes that secret (measured on 252, and decrypting does it too), so the file carries a
salted hash of the machine-id, and none is started before it matches. Provider "file" keeps the key in
``identity/sealing.key``, 0400.

A key that exists is used again, never overwritten: a crash between key and identity leaves a usable state. The key
travels by stdin and stdout pipes alone, never in an argument, the environment or a temporary file.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from firstboot.base import files, log
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.identity.host import HostFacts, fingerprint, host_facts, same_machine_id

HOST = "host"
FILE = "file"
KEY_BYTES = 32
CREDENTIAL_NAME = "byteor-sealing-key"
OLDEST_SYSTEMD = 250  # the first with systemd-creds
CREDS_TIMEOUT_S = 60  # 0.15 s as a rule; a starved guest's first use also makes the host's secret
# Nothing of the caller's environment reaches systemd-creds: $SYSTEMD_CREDENTIAL_SECRET would name another secret.
CREDS_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
}


def choose(layout: Layout, seal: str, *, facts: HostFacts) -> str:
    """Return the provider for the setting `seal` (auto, host, file); LocalFault where "host" cannot last."""
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
    """Return (provider, key), made durable if there was none; Corrupt when the one that exists is not usable.

    With "auto" a `systemd-creds` that is there and does not work costs a warning and means a key file.
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
        files.write(layout.sealing_key, key, mode=0o400)
        return FILE, key
    return provider, fetch(layout, provider)


def fetch(layout: Layout, provider: str) -> bytes:
    """Return the key that is on disk; Corrupt when it is missing, damaged or not this host's; never makes one."""
    if provider == FILE:
        return _fetch_file_key(layout)
    if provider == HOST:
        return _fetch_host_key(layout)
    raise Corrupt("it is sealed with a key of a kind that this version does not know")


@contextmanager
def only_what_is_there() -> Iterator[None]:
    """Turn a link, FIFO, wrong size, mode or owner in place of a file of ours into Corrupt.

    What the operating system did not let us read stays a LocalFault: it says nothing about what the file holds.
    """
    try:
        yield
    except LocalFault as error:
        cause = error.__cause__
        if isinstance(error, Corrupt) or (
            isinstance(cause, OSError) and cause.errno != errno.ELOOP
        ):
            raise
        raise Corrupt(str(error), hint=error.hint) from error


def _fetch_file_key(layout: Layout) -> bytes:
    with only_what_is_there():
        key = files.read(layout.sealing_key, limit=KEY_BYTES, private_to=layout.owner)
    if key is None:
        raise Corrupt(f"its key {layout.sealing_key} is missing")
    if len(key) != KEY_BYTES:
        raise Corrupt(f"its key {layout.sealing_key} is damaged: {len(key)} bytes, not {KEY_BYTES}")
    return key


def _fetch_host_key(layout: Layout) -> bytes:
    path = layout.sealing_cred
    if not layout.is_host:
        raise Corrupt(
            "it is sealed with the systemd secret of that system, which opens only when that system runs"
        )
    with only_what_is_there():
        stored = files.read_json(path)
    if stored is None:
        raise Corrupt(f"its key {path} is missing")
    host, credential = stored.get("host"), stored.get("credential")
    if stored["v"] != 1 or not isinstance(host, dict) or not isinstance(credential, str):
        raise Corrupt(f"its key {path} is damaged")
    if not same_machine_id(host, host_facts(layout)):
        raise Corrupt(f"its key {path} was made under another machine-id")
    code, key, said = _systemd_creds(
        ["decrypt", f"--name={CREDENTIAL_NAME}", "-", "-"],
        "".join(credential.split()).encode("utf-8", "replace"),
    )
    if code or len(key) != KEY_BYTES:
        raise Corrupt(f"systemd-creds does not open its key {path}: {said}")
    return key


def _make_host_key(layout: Layout, facts: HostFacts) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    code, credential, said = _systemd_creds(
        ["encrypt", "--with-key=host", f"--name={CREDENTIAL_NAME}", "-", "-"], key
    )
    if code:
        raise LocalFault(
            f"systemd-creds does not encrypt: {said}",
            hint="seal: file in /etc/byteor/firstboot.yaml",
        )
    try:
        base64.b64decode(b"".join(credential.split()), validate=True)
    except binascii.Error as error:
        raise LocalFault("systemd-creds wrote something else than base64") from error
    files.write_json(
        layout.sealing_cred,
        {"v": 1, "host": fingerprint(facts), "credential": credential.decode("ascii")},
        mode=0o400,
    )
    return key


def _systemd_creds(arguments: list[str], stdin: bytes) -> tuple[int, bytes, str]:
    """Return (exit code, stdout, last line of stderr); LocalFault when it cannot run or does not end."""
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
        # `from None`: the time-out's exception carries what was written so far, which may be the key.
        raise LocalFault(
            f"cannot run systemd-creds: {type(error).__name__}",
            hint="it is part of systemd, from version 250 on",
        ) from None
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return done.returncode, done.stdout, lines[-1] if lines else f"exit code {done.returncode}"


def _systemd_version() -> int:
    """systemd's version as its `systemd-creds` says it, 0 where there is none."""
    try:
        code, out, _ = _systemd_creds(["--version"], b"")
    except LocalFault:
        return 0
    found: re.Match[bytes] | None = re.match(rb"systemd (\d+)", out)
    return int(found.group(1)) if found and not code else 0
