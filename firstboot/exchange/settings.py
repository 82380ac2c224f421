"""The settings as values, and their frozen form in ``settings.json``: no yaml, so that the resident agent can read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from firstboot.base import files
from firstboot.base.documents import LONGEST_INTERVAL_S, SHORTEST_INTERVAL_S, envelopes
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret

VERSION = 1


@dataclass(frozen=True)
class Settings:
    """The mapping of contract 4.1, merged; what nobody set is None."""

    api_base_url: str | None = None
    org_id: str | None = None
    project_id: str | None = None
    environment_id: str | None = None
    name: str | None = None
    ca_certificates: str | None = None
    proxy: Secret | None = None
    no_proxy: tuple[str, ...] = ()
    heartbeat_interval_s: float | None = None
    seal: str = "auto"
    signing_keys: tuple[Mapping[str, str], ...] = ()
    signing_keys_trust: str | None = None
    activation: Mapping[str, Any] | None = None
    key_sets: tuple[
        Mapping[str, Any], ...
    ] = ()  # the enrollment reply's, as envelopes; no setting of a source
    # Keys that a source above the image's defaults gave: a later boot does not take them from there.
    pinned: tuple[str, ...] = field(default=(), compare=False)


def has_password(proxy: Secret | None) -> bool:
    return proxy is not None and urlsplit(proxy.reveal()).password is not None


def freeze(settings: Settings) -> dict[str, Any]:
    """Return what ``settings.json`` (0644) holds: everything but a proxy with a password, which is sealed."""
    proxy = (
        None if settings.proxy is None or has_password(settings.proxy) else settings.proxy.reveal()
    )
    return {
        "v": VERSION,
        "api_base_url": settings.api_base_url,
        "org_id": settings.org_id,
        "project_id": settings.project_id,
        "environment_id": settings.environment_id,
        "name": settings.name,
        "ca_certificates": settings.ca_certificates,
        "proxy": proxy,
        "no_proxy": list(settings.no_proxy),
        "heartbeat_interval_s": settings.heartbeat_interval_s,
        "seal": settings.seal,
        "signing_keys": [dict(key) for key in settings.signing_keys],
        "signing_keys_trust": settings.signing_keys_trust,
        "activation": dict(settings.activation) if settings.activation is not None else None,
        "key_sets": [dict(envelope) for envelope in settings.key_sets],
        "pinned": list(settings.pinned),
    }


def load(layout: Layout) -> Settings:
    """The settings that first boot froze on this host; LocalFault when it is not enrolled."""
    stored = files.read_json(layout.settings)
    if stored is None:
        raise LocalFault(
            "this host is not enrolled: there is no settings.json", hint="byteor-firstboot status"
        )
    return thaw(stored)


def thaw(stored: Mapping[str, Any]) -> Settings:
    """Read what `freeze` wrote, ignoring what it does not know; Corrupt when it is not that, or a key has another shape."""
    # Without these two the agent would fall to another plane's address, or to every certificate authority of the system.
    if stored.get("v") != VERSION or not {"api_base_url", "ca_certificates"} <= set(stored):
        raise Corrupt(
            "settings.json is damaged: it is not what first boot froze",
            hint="byteor-firstboot run freezes it again",
        )
    texts = (
        "api_base_url",
        "org_id",
        "project_id",
        "environment_id",
        "name",
        "ca_certificates",
        "signing_keys_trust",
    )
    for key in texts:
        if not isinstance(stored.get(key), (str, type(None))):
            raise Corrupt(f"settings.json is damaged: {key} is not a text")
    interval, proxy, no_proxy = (
        stored.get("heartbeat_interval_s"),
        stored.get("proxy"),
        stored.get("no_proxy") or [],
    )
    if isinstance(interval, bool) or not isinstance(interval, (int, float, type(None))):
        raise Corrupt("settings.json is damaged: heartbeat_interval_s is not a number")
    keys, activation = stored.get("signing_keys") or [], stored.get("activation")
    if not isinstance(proxy, (str, type(None))) or not isinstance(no_proxy, list):
        raise Corrupt("settings.json is damaged: proxy or no_proxy")
    if not isinstance(keys, list) or not isinstance(activation, (dict, type(None))):
        raise Corrupt("settings.json is damaged: signing_keys or activation")
    if not all(isinstance(key, dict) for key in keys):
        raise Corrupt("settings.json is damaged: signing_keys")
    pinned = stored.get("pinned") or []
    if not isinstance(pinned, list) or not all(isinstance(key, str) for key in pinned):
        raise Corrupt("settings.json is damaged: pinned")
    if interval is not None:
        interval = min(LONGEST_INTERVAL_S, max(SHORTEST_INTERVAL_S, float(interval)))
    return Settings(
        **{key: stored.get(key) for key in texts},
        proxy=Secret(proxy) if proxy else None,
        no_proxy=tuple(str(item) for item in no_proxy),
        heartbeat_interval_s=interval,
        seal=str(stored.get("seal") or "auto"),
        signing_keys=tuple(keys),
        activation=activation,
        key_sets=envelopes(stored.get("key_sets")),
        pinned=tuple(pinned),
    )
