"""What enrollment gave us: sealed to this host, looked at before any key is touched, set aside but never deleted.

``identity/credentials.sealed`` is an envelope (`envelope`) whose cleartext header names the key's provider and carries
a fingerprint of the host (`hostfacts`). `look` compares that first: a foreign identity changes nothing on disk and
starts no `systemd-creds`. What this protects is a copied *file*, not a disk or backup that also holds the key.

``set-aside/<n>/`` holds what belonged together under the names it had: moving the files back restores it.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstboot.base import files, log
from firstboot.base.documents import optional_text, text
from firstboot.base.errors import Corrupt, Foreign, LocalFault, NoToken
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.identity import host as hostfacts
from firstboot.identity import seal as envelope
from firstboot.identity import sealkey
from firstboot.identity.host import host_facts, hostname

__all__ = [
    "Identity",
    "Look",
    "State",
    "drop_unused_key",
    "fingerprint",
    "hostname",
    "look",
    "probe_sealing",
    "rebind",
    "required",
    "same_host",
    "save",
    "set_aside",
]

PURPOSE = "byteor identity"
PROBE = "byteor probe"
CONTENT_VERSION = 1
_TEXTS = ("api_base_url", "org_id", "project_id", "environment_id", "agent_id", "enrolled_at")
SECRET_LIMIT = 1 << 16  # bytes; systemd's credential.secret has 4112


class State(enum.Enum):
    """The first column of contract section 7."""

    NONE = "none"
    HERE = "here"
    FOREIGN = "foreign"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Identity:
    """One enrollment's result; times are RFC 3339."""

    api_base_url: str
    org_id: str
    project_id: str
    environment_id: str
    agent_id: str
    name: str | None
    api_key: Secret
    scopes: tuple[str, ...]
    expires_at: str | None
    enrolled_at: str
    proxy: Secret | None = None
    idempotency_key: str | None = None  # of the intent that this is the answer to


@dataclass(frozen=True)
class Look:
    """`identity` when the state is HERE; `why`, a clause that can follow a colon, when it is FOREIGN or UNREADABLE."""

    state: State
    identity: Identity | None = None
    why: str = ""
    unbound: bool = False  # sealed before the machine-id was committed to the disk, which it is now


def look(layout: Layout) -> Look:
    """Say whose identity is on this disk, and open it if it is this host's. Writes nothing.

    LocalFault when this process may not read, the disk does not, or `systemd-creds` cannot run: that says nothing
    about the identity, which must not be set aside for it.
    """
    try:
        with sealkey.only_what_is_there():
            sealed = files.read(layout.credentials, limit=envelope.SEALED_LIMIT)
        if sealed is None:
            return Look(State.NONE)
        header = envelope.unverified_header(sealed)
        facts = host_facts(layout)
        verdict = hostfacts.compare(_host(header), facts)
        if verdict.foreign:
            return Look(State.FOREIGN, why=verdict.why)
        key = sealkey.fetch(layout, str(header.get("provider")))
        opened = _from_content(envelope.open(sealed, key=key, purpose=PURPOSE))
        return Look(
            State.HERE, opened, unbound=facts.committed and "machine_id" not in _host(header)
        )
    except (Corrupt, ValueError) as error:
        return Look(State.UNREADABLE, why=str(error))


def required(layout: Layout) -> Identity:
    """Return the identity that opens here; NoToken (3), LocalFault (7) or Foreign (8) says why none does."""
    seen = look(layout)
    if seen.state is State.NONE:
        raise NoToken("this host is not enrolled", hint="byteor-firstboot status")
    if seen.state is State.FOREIGN:
        raise Foreign(
            f"the identity on this disk belongs to another host: {seen.why}",
            hint="byteor-firstboot status",
        )
    if seen.identity is None:
        raise LocalFault(
            f"the sealed identity does not open: {seen.why}", hint="byteor-firstboot status"
        )
    return seen.identity


def save(layout: Layout, identity: Identity, *, seal: str) -> None:
    """Seal and write durably, 0600, replacing what is there; LocalFault if it cannot.

    Not checked: that it opens again. The caller looks.
    """
    provider, key = _key(layout, seal)
    header = {"provider": provider, "host": fingerprint(layout)}
    sealed = envelope.seal(_to_content(identity), key=key, purpose=PURPOSE, header=header)
    files.write(layout.credentials, sealed, mode=0o600)


def rebind(layout: Layout, seen: Look) -> None:
    """Seal again what was sealed under a machine-id that nobody had committed yet, so that a clone is told from now on."""
    if seen.unbound and seen.identity is not None:
        save(
            layout, seen.identity, seal=sealkey.FILE
        )  # without a committed machine-id there was no other provider
        log.info("the identity is bound to the machine-id, which is committed now")


def drop_unused_key(layout: Layout) -> None:
    """Overwrite and remove the key of the provider that the identity here, read back already, is not sealed with."""
    sealed = files.read(layout.credentials, limit=envelope.SEALED_LIMIT) or b""
    by_host = envelope.unverified_header(sealed).get("provider") == sealkey.HOST
    try:
        files.wipe(layout.sealing_key if by_host else layout.sealing_cred)
    except LocalFault as error:
        log.warning("a sealing key that nothing is sealed with any more stays", because=error)


def probe_sealing(layout: Layout, *, seal: str) -> None:
    """LocalFault unless sealing and opening work now; leaves the key that `save` will use, and nothing else."""
    provider, key = _key(layout, seal)
    sealed = envelope.seal(b"probe", key=key, purpose=PROBE, header={"provider": provider})
    envelope.open(sealed, key=sealkey.fetch(layout, provider), purpose=PROBE)


def set_aside(layout: Layout) -> None:
    """Move the sealed identity and its keys into the next ``set-aside/<n>/``, with a copy of the systemd secret.

    The copy comes first, since the next seal may make `systemd-creds` replace that secret. The identity goes last:
    until then a run that was cut finds the same verdict, and goes on in the same directory.
    """
    moving = (layout.sealing_key, layout.sealing_cred, layout.credentials)
    target = _aside_directory(layout, moving)
    files.make_directory(layout.set_aside, 0o700)
    files.make_directory(target, 0o700)
    copy = target / layout.systemd_secret.name
    secret = files.read(layout.systemd_secret, limit=SECRET_LIMIT) if layout.is_host else None
    if secret is not None and not os.path.lexists(copy):
        files.write(copy, secret, mode=0o400)
    for path in moving:
        files.move_into(path, target)


def fingerprint(layout: Layout) -> dict[str, Any]:
    """Return what binds a file to this host, for JSON; the intent carries one too."""
    return hostfacts.fingerprint(host_facts(layout))


def same_host(layout: Layout, taken: Mapping[str, Any]) -> bool:
    """False when `taken` is of another host, by the identity's own rule, or is no fingerprint at all."""
    try:
        return not hostfacts.compare(taken, host_facts(layout)).foreign
    except ValueError:
        return False


def _key(layout: Layout, seal: str) -> tuple[str, bytes]:
    """`sealkey.obtain`; a damaged key that nothing is sealed with must not stop an enrollment for ever."""
    _keep_foreign_secret(layout, seal)
    try:
        return sealkey.obtain(layout, seal)
    except Corrupt as error:
        if os.path.lexists(layout.credentials):
            raise
        log.warning("a sealing key that nothing is sealed with is set aside", because=error)
    files.make_directory(layout.set_aside, 0o700)
    for path in (layout.sealing_key, layout.sealing_cred):
        files.set_aside(path, layout.set_aside, label="unused")
    return sealkey.obtain(layout, seal)


def _keep_foreign_secret(layout: Layout, seal: str) -> None:
    """Copy the systemd secret before a seal that may replace it (a preflight comes before anything is set aside)."""
    if not os.path.lexists(layout.credentials) or os.path.lexists(layout.sealing_cred):
        return
    facts = host_facts(layout)
    if sealkey.choose(layout, seal, facts=facts) != sealkey.HOST:
        return
    try:
        sealed = files.read(layout.credentials, limit=envelope.SEALED_LIMIT) or b""
        ours = hostfacts.same_machine_id(_host(envelope.unverified_header(sealed)), facts)
    except LocalFault:
        ours = False
    secret = None if ours else files.read(layout.systemd_secret, limit=SECRET_LIMIT)
    if secret is not None:
        files.make_directory(layout.set_aside, 0o700)
        # Named by its content: however often a preflight runs, one copy of each.
        mark = hashlib.sha256(secret).hexdigest()[:8]
        files.write(layout.set_aside / f"{layout.systemd_secret.name}.{mark}", secret, mode=0o400)


def _host(header: dict[str, Any]) -> dict[str, Any]:
    host = header.get("host")
    if not isinstance(host, dict):
        raise Corrupt("the sealed file names no host")
    return host


def _aside_directory(layout: Layout, moving: Sequence[Path]) -> Path:
    """The newest ``set-aside/<n>`` where a run was cut while filling it, else the next."""
    number = 1
    while os.path.lexists(layout.set_aside / str(number + 1)):
        number += 1
    newest = layout.set_aside / str(number)
    names = {path.name for path in moving if os.path.lexists(path)} | {layout.credentials.name}
    taken = any(os.path.lexists(newest / name) for name in names)
    return layout.set_aside / str(number + 1) if taken else newest


def _to_content(identity: Identity) -> bytes:
    document = {
        "v": CONTENT_VERSION,
        "api_base_url": identity.api_base_url,
        "org_id": identity.org_id,
        "project_id": identity.project_id,
        "environment_id": identity.environment_id,
        "agent_id": identity.agent_id,
        "name": identity.name,
        "api_key": identity.api_key.reveal(),
        "scopes": list(identity.scopes),
        "expires_at": identity.expires_at,
        "enrolled_at": identity.enrolled_at,
        "proxy": identity.proxy.reveal() if identity.proxy is not None else None,
        "idempotency_key": identity.idempotency_key,
    }
    return json.dumps(document, sort_keys=True).encode()


def _from_content(plain: bytes) -> Identity:
    """Return the identity in opened bytes; unknown fields are ignored, so that an older version reads a newer file."""
    try:
        document = json.loads(plain)
        if document["v"] != CONTENT_VERSION:
            raise Corrupt(
                f"its content has version {document['v']}, and this program knows {CONTENT_VERSION}"
            )
        proxy = optional_text(document.get("proxy"))
        return Identity(
            **{name: text(document[name]) for name in _TEXTS},
            name=optional_text(document.get("name")),
            expires_at=optional_text(document.get("expires_at")),
            idempotency_key=optional_text(document.get("idempotency_key")),
            api_key=Secret(text(document["api_key"])),
            scopes=tuple(text(scope) for scope in document.get("scopes") or ()),
            proxy=None if proxy is None else Secret(proxy),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        # `from None`: a JSON error carries the whole text, and the key is in it.
        raise Corrupt("its content is not what this program seals") from None
