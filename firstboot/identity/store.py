"""Keep the sealed identity: look before any key is touched, set aside, never delete.

``identity/credentials.sealed`` is an envelope (`seal`) whose cleartext header names the key's
provider and carries a fingerprint of the host (`host`). `look` compares that first: a foreign
identity changes nothing on disk and starts no `systemd-creds`. What this protects is a copied
*file*, not a disk or backup that also holds the key.

``set-aside/<n>/`` holds what belonged together under the names it had: moving the files back
restores it. The host's ``credential.secret`` is never copied: it would lie beside what it opens.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Optional

from firstboot.base import documents, files, inplace, log, private
from firstboot.base.documents import Rule
from firstboot.base.errors import Corrupt, Foreign, LocalFault, NoToken
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.identity import host as hostfacts
from firstboot.identity import seal as envelope
from firstboot.identity import sealkey
from firstboot.identity.host import host_facts

PURPOSE = "byteor identity"
PROBE = "byteor probe"
CONTENT_VERSION = 1
MOVED = (
    "the product UUID of this machine is another than before: if it is a copy, give the copy an"
    " identity of its own (byteor-firstboot reenroll)"
)

Text = Annotated[str, Rule(bool, "a text that is not empty")]
Key = Annotated[Secret, Rule(bool, "a key")]
Pem = Annotated[Any, Rule(lambda value: isinstance(value, str), "a text")]  # of any length


class State(enum.Enum):
    """The first column of contract section 7."""

    NONE = "none"
    HERE = "here"
    FOREIGN = "foreign"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Identity:
    """One enrollment's result, as it is sealed; times are RFC 3339."""

    api_base_url: Text
    org_id: Text
    project_id: Text
    environment_id: Text
    agent_id: Text
    api_key: Key
    enrolled_at: Text
    name: Optional[Text] = None
    scopes: tuple[Text, ...] = ()
    expires_at: Optional[Text] = None
    proxy: Optional[Secret] = None
    ca_certificates: Optional[Pem] = None
    no_proxy: tuple[str, ...] = ()
    routed: bool = False  # the last two are sealed; version 0.1.0 did not
    idempotency_key: Optional[Text] = None  # of the intent that this is the answer to
    moved_in: Optional[Text] = None  # the boot in which the product UUID was another than before


@dataclass(frozen=True)
class Look:
    """Whose identity is on this disk.

    `identity` when the state is HERE; `why`, a clause that can follow a colon, when it is FOREIGN
    or UNREADABLE.
    """

    state: State
    identity: Identity | None = None
    why: str = ""
    provider: str = ""
    unbound: bool = False  # sealed before the machine-id was committed to the disk, which it is now
    moved: bool = False  # the product UUID alone is another than the one it was sealed under
    bound_to: Mapping[str, Any] | None = None  # the fingerprint that it is sealed with


def look(layout: Layout) -> Look:
    """Say whose identity is on this disk, and open it if it is this host's. Writes nothing.

    UNREADABLE is what is proven bad: no document, a failed tag, a key that is missing or of the
    wrong size. LocalFault for anything else that keeps it from being opened, a mode, a link, a disk
    or `systemd-creds` that fails: the identity must not be set aside for it.
    """
    try:
        sealkey.refuse_link(layout.credentials)
        sealed = files.read(layout.credentials, limit=envelope.SEALED_LIMIT)
        if sealed is None:
            return Look(State.NONE)
        header, facts = envelope.unverified_header(sealed), host_facts(layout)
        bound_to = _host(header)
        verdict = hostfacts.compare(bound_to, facts)
        if verdict.foreign:
            return Look(State.FOREIGN, why=verdict.why)
        provider = str(header.get("provider"))
        key = sealkey.fetch(layout, provider)
        opened = _from_content(envelope.open(sealed, key=key, purpose=PURPOSE))
    except (Corrupt, ValueError) as error:
        return Look(State.UNREADABLE, why=str(error))
    unbound = facts.committed and "machine_id" not in bound_to
    return Look(
        State.HERE,
        opened,
        provider=provider,
        unbound=unbound,
        moved=verdict.moved,
        bound_to=bound_to,
    )


def required(layout: Layout) -> Identity:
    """Return the identity that opens here; NoToken (3), LocalFault (7) or Foreign (8) if none."""
    seen = look(layout)
    if seen.identity is not None:
        return seen.identity
    hint = "byteor-firstboot status"
    if seen.state is State.NONE:
        raise NoToken("this host is not enrolled", hint=hint)
    if seen.state is State.FOREIGN:
        raise Foreign(f"the identity on this disk belongs to another host: {seen.why}", hint=hint)
    raise LocalFault(f"the sealed identity does not open: {seen.why}", hint=hint)


def save(
    layout: Layout, identity: Identity, *, seal: str, before: Mapping[str, Any] | None = None
) -> None:
    """Seal and write durably, 0600, replacing what is there; LocalFault if it cannot.

    `before`: the fingerprint of what is replaced. Not checked: that it opens again. The caller
    looks.
    """
    provider, key = _key(layout, seal)
    bound_to = hostfacts.fingerprint(host_facts(layout), before)
    header = {"provider": provider, "host": bound_to}
    sealed = envelope.seal(_to_content(identity), key=key, purpose=PURPOSE, header=header)
    files.write(layout.credentials, sealed, mode=0o600)


def rebind(layout: Layout, seen: Look, wanted: Identity, *, boot_id: str) -> None:
    """Seal `wanted`, bound to this host as it is now, where the identity that was seen is not so.

    It was sealed under a machine-id that was not committed yet, or under another product UUID: that
    is told in this boot, then recorded anew. A sealed file that others could read is tightened.
    """
    if private.tighten(layout.credentials):
        log.warning("the sealed identity could be read by others: its mode is 0600 again")
    if seen.moved:
        wanted = replace(wanted, moved_in=boot_id)
        log.notice(MOVED)
    if seen.unbound or wanted != seen.identity:
        save(layout, wanted, seal=seen.provider, before=seen.bound_to)
        log.info("the identity is sealed anew, bound to this host as it is now")


def drop_unused_key(layout: Layout) -> None:
    """Remove the key of the provider that the identity, read back already, is not sealed with."""
    unused = layout.sealing_cred
    if look(layout).provider == sealkey.HOST:
        unused = layout.sealing_key
    try:
        inplace.wipe_file(unused)
    except LocalFault as error:
        log.warning("a sealing key that nothing is sealed with any more stays", because=error)


def probe_sealing(layout: Layout, *, seal: str) -> None:
    """Raise LocalFault unless sealing and opening work now; leave the key that `save` will use.

    The caller holds the lock.
    """
    provider, key = _key(layout, seal)
    sealed = envelope.seal(b"probe", key=key, purpose=PROBE, header={"provider": provider})
    envelope.open(sealed, key=sealkey.fetch(layout, provider), purpose=PROBE)


def set_aside(layout: Layout) -> None:
    """Move the sealed identity and its keys into the next ``set-aside/<n>/``.

    The identity goes last: until then a run that was cut finds the same verdict, and goes on in the
    same directory.
    """
    moving = (layout.sealing_key, layout.sealing_cred, layout.credentials)
    target = _aside_directory(layout, moving)
    files.make_directory(layout.set_aside, 0o700)
    files.make_directory(target, 0o700)
    for path in moving:
        files.move_into(path, target)


def fingerprint(layout: Layout) -> dict[str, Any]:
    """Return what binds a file to this host, for JSON; the intent carries one too."""
    return hostfacts.fingerprint(host_facts(layout))


def same_host(layout: Layout, taken: Mapping[str, Any]) -> bool:
    """Return False when `taken` is of another host, by the identity's rule, or no fingerprint."""
    try:
        return not hostfacts.compare(taken, host_facts(layout)).foreign
    except ValueError:
        return False


def _key(layout: Layout, seal: str) -> tuple[str, bytes]:
    """Obtain the key; a damaged one that nothing is sealed with must not stop an enrollment."""
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


def _host(header: dict[str, Any]) -> dict[str, Any]:
    host = header.get("host")
    if not isinstance(host, dict):
        raise Corrupt("the sealed file names no host")
    return host


def _aside_directory(layout: Layout, moving: Sequence[Path]) -> Path:
    """Return the newest ``set-aside/<n>`` where a run was cut while filling it, else the next."""
    number = 1
    while os.path.lexists(layout.set_aside / str(number + 1)):
        number += 1
    newest = layout.set_aside / str(number)
    names = {path.name for path in moving if os.path.lexists(path)} | {layout.credentials.name}
    taken = any(os.path.lexists(newest / name) for name in names)
    return layout.set_aside / str(number + 1) if taken else newest


def _to_content(identity: Identity) -> bytes:
    members = {
        name: value.reveal() if isinstance(value, Secret) else value
        for name, value in vars(identity).items()
    }
    return json.dumps({"v": CONTENT_VERSION, **members}, sort_keys=True).encode()


def _from_content(plain: bytes) -> Identity:
    """Return the identity in opened bytes; unknown members are ignored.

    LocalFault for the content of another version, which an upgrade or downgrade may have left.
    """
    try:
        document = json.loads(plain)
        if isinstance(document, dict) and document.get("v", 1) != CONTENT_VERSION:
            raise LocalFault(
                f"its content is not of version {CONTENT_VERSION}, which this program knows",
                hint="install the version that enrolled this host",
            )
        found = documents.parse(Identity, document)
    except (ValueError, RecursionError):
        # `from None`: a JSON error carries the whole text, and the key is in it.
        raise Corrupt("its content is not what this program seals") from None
    return replace(found, proxy=found.proxy or None)
