"""Make a verified deployment a complete directory, or refuse it with the reason (contract 3)."""

from __future__ import annotations

import json

from firstboot.activate import directories, keyring, unpack
from firstboot.activate.admission import Deployment, approve
from firstboot.activate.chain import Ring
from firstboot.activate.intake import Inbox
from firstboot.activate.journal import RESERVED_BYTES
from firstboot.activate.signatures import APPROVAL_LIMIT
from firstboot.base import files, log, trees
from firstboot.base.errors import NoRoom, Untrusted
from firstboot.base.layout import APPROVAL, DEPLOYMENT_MARKER, SIGNING_KEYS, Layout


def prepare(
    layout: Layout, inbox: Inbox, deployment: Deployment, *, name: str, ring: Ring, now: float
) -> bool:
    """Make the complete directory `name`; False when its bundle is not in the inbox.

    Untrusted when bundle or approval are wrong. NoRoom, with the bytes that are needed, when the
    disk cannot hold it. A directory that is there already was made from this payload, or is
    replaced: it is another environment's, or nobody vouches for it.
    """
    final = layout.deployments / name
    if directories.holds(layout, name, deployment):
        approve(_approval(layout, name), deployment, ring=ring, now=now)
        return True
    bundle = deployment.bundle
    needed = bundle.size + RESERVED_BYTES
    try:
        with inbox.bundle(bundle.sha256, bundle.size) as source:
            if source is None:
                return False
            _require_room(layout, needed)
            # Our own copy: what the agent does to its file from here on changes nothing.
            size, digest = trees.copy(source, layout.wanted_bundle, limit=bundle.size + 1)
        if size != bundle.size:
            raise Untrusted("bundle_size", f"the bundle has {size} bytes, not {bundle.size}")
        if digest != bundle.sha256:
            raise Untrusted("bundle_digest", "the bundle is not the one that was signed")
        unpacked = unpack.measure(layout.wanted_bundle, packed_size=size)
        needed += unpacked
        _require_room(layout, unpacked + RESERVED_BYTES)
        keys = json.dumps(keyring.public(ring), sort_keys=True, indent=1).encode() + b"\n"
        ours = {DEPLOYMENT_MARKER: directories.marking(deployment), SIGNING_KEYS: keys}
        staging = layout.deployments / directories.STAGING
        unpack.unpack(layout.wanted_bundle, staging, packed_size=size, ours=ours)
        if unpack.spec_hash(staging) != deployment.spec_hash:
            raise Untrusted("spec_hash", "spec.kv is not the one that was signed")
        approve(_approval(layout, directories.STAGING), deployment, ring=ring, now=now)
        trees.remove(final)
        trees.complete(staging, final)
        return True
    except NoRoom as error:
        raise NoRoom(str(error), hint=error.hint, needed=needed) from error
    finally:
        clear(layout)


def clear(layout: Layout) -> None:
    """Remove what is half made. Housekeeping: a failure is a warning."""
    with log.warned():
        files.remove(layout.wanted_bundle)
        trees.remove(layout.deployments / directories.STAGING)


def _require_room(layout: Layout, needed: int) -> None:
    if trees.free_bytes(layout.deployments) < needed:
        directories.prune(layout, newest=0)
    if trees.free_bytes(layout.deployments) < needed:
        raise NoRoom("the disk is too full", hint="free some space on the disk")


def _approval(layout: Layout, name: str) -> bytes | None:
    return unpack.read_member(layout.deployments / name, APPROVAL, limit=APPROVAL_LIMIT)
