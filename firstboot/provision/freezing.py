"""Freeze anew what the image's defaults may change of an enrolled host; the sealed routing follows.

``settings.json`` is frozen at enrollment. Later boots take from ``/etc/byteor/firstboot.yaml``
alone, so that changed user data cannot re-route an enrolled host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from firstboot.api import proxies
from firstboot.base import files, log
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.exchange import settings as frozen
from firstboot.exchange.settings import Settings
from firstboot.identity import store
from firstboot.identity.store import Identity, Look
from firstboot.provision.erase import grants
from firstboot.provision.schema import CHECKS, CLEARABLE, PLACE, ROUTING

HTTPS_PORT = 443
IMAGE = Layout.image_defaults.absolute


def refreeze(settings: Settings, image: Mapping[str, Any]) -> Settings:
    """Return `settings` with what the image's own file may change of them.

    Never where an enrolled host reports to, nor what a source above the image gave: else the first
    hand-off would undo it. A key that the file gave and no longer names goes back to its default;
    but certificates, signing keys and a proxy change to another value only, or to null. A file that
    says nothing (absent, empty, broken) changes nothing.
    """
    if not image:
        return replace(settings, reverted=())
    kept = {*PLACE, *settings.pinned}
    given = settings.from_image
    if given is None:  # version 0.1.0 did not say; an interval may be the enrollment reply's
        keys = ("name", "no_proxy", "seal", "signing_keys_trust", "activation")
        given = tuple(key for key in keys if getattr(settings, key) != getattr(Settings, key))
    named = set(image) - kept
    stays = {*named, *kept, *CLEARABLE}
    gone = tuple(key for key in given if key in CHECKS and key not in stays)
    changed = {key: getattr(Settings, key) for key in gone}
    changed.update((key, value) for key, value in image.items() if key in named)
    return replace(settings, **changed, from_image=tuple(sorted(named)), reverted=gone)


def with_proxy_of(environ: Mapping[str, str], settings: Settings) -> Settings:
    """Return `settings` with the proxy of the environment, if the control plane is reached by it.

    The agent, which has another environment, then has it too.
    """
    address = urlsplit(settings.api_base_url or "")
    used = address.scheme == "https" and proxies.proxy_for(
        address.hostname or "",
        address.port or HTTPS_PORT,
        proxy=settings.proxy,
        no_proxy=settings.no_proxy,
        environ=environ,
    )
    named, excepted = proxies.from_environment(environ)
    if settings.proxy is not None or not used:
        return settings
    return replace(settings, proxy=named, no_proxy=settings.no_proxy or excepted)


def as_enrolled(layout: Layout, here: Identity, found: Settings) -> Settings:
    """Return `found`, but routed as the identity that opens here is, whatever a source says.

    For a bare token that an operator gives to `reenroll`: it must not go anywhere else.
    """
    base = replace(_frozen(layout, here)[1], **{key: getattr(here, key) for key in PLACE})

    def origin(kind: str) -> tuple[str, ...]:
        own, former = (set(getattr(settings, kind) or ()) for settings in (found, base))
        return tuple(sorted(own - ROUTING | former & ROUTING))

    routing = {key: getattr(base, key) for key in ROUTING}
    return replace(found, **routing, pinned=origin("pinned"), from_image=origin("from_image"))


def freeze_again(layout: Layout, seen: Look, image: Mapping[str, Any], *, boot_id: str) -> None:
    """Write settings.json and the identity that opens here, where they are to be others."""
    here = seen.identity
    assert here is not None  # noqa: S101 - only called with an identity
    stored, base = _frozen(layout, here)
    fresh = refreeze(base, image)
    for key in fresh.reverted:
        log.notice(f"{key} is back at its default: {IMAGE} no longer names it")
    if not image and base.from_image:
        log.warning(f"{IMAGE} says nothing: what it said before stays", hint=f"look at {IMAGE}")
    written = frozen.freeze(fresh)
    if written != stored:
        files.write_json(layout.settings, written, mode=0o644)
    routed = replace(
        here,
        proxy=fresh.proxy,
        ca_certificates=fresh.ca_certificates,
        no_proxy=fresh.no_proxy,
        routed=True,
    )
    store.rebind(layout, seen, routed, boot_id=boot_id)
    grants.grant(layout, (fresh.erase or {}).get("paths", ()))


def _frozen(layout: Layout, here: Identity) -> tuple[dict[str, Any] | None, Settings]:
    """Return settings.json as it is stored, and as settings.

    What routes comes from the identity where the file is lost: never a wider trust.
    """
    stored, found = None, None
    try:
        stored = files.read_json(layout.settings)
        found = frozen.thaw(stored) if stored is not None else None
    except Corrupt as error:
        log.warning(str(error), kept_as=files.set_aside(layout.settings))
        stored = None
    if found is not None:
        # A proxy with a password is in the sealed identity alone.
        proxy = here.proxy if frozen.has_password(here.proxy) else found.proxy
        found = replace(found, proxy=proxy)
        moved = {key for key in PLACE if getattr(found, key) != getattr(here, key)}
        if here.routed and moved - set(found.from_image or ()):
            # A reenroll that was cut after it had written this file, and before the identity.
            log.warning("settings.json is of another enrollment: the identity says what routes")
            routing = {key: getattr(here, key) for key in ROUTING}
            found = replace(found, **routing, key_sets=())
        return stored, found
    if not here.routed:
        raise LocalFault(
            "settings.json is lost, and with it the certificates that version 0.1.0 kept there",
            hint="restore /var/lib/byteor/settings.json, or run byteor-firstboot reenroll",
        )
    log.warning("settings.json was lost: what routes comes from the sealed identity")
    return None, Settings(name=here.name, **{name: getattr(here, name) for name in ROUTING})
