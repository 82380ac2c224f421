"""Settings as values, and their frozen form in ``settings.json``.

No yaml here: the resident agent reads the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Optional
from urllib.parse import urlsplit

from firstboot.base import documents, files
from firstboot.base.documents import LONGEST_INTERVAL_S, SHORTEST_INTERVAL_S, Malformed, Rule
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret

VERSION = 1
_Pem = Annotated[Any, Rule(lambda value: isinstance(value, str), "a text")]  # of any length


@dataclass(frozen=True)
class Settings:
    """The mapping of contract 4.1, merged; what nobody set is None."""

    api_base_url: Optional[str] = None
    org_id: Optional[str] = None
    project_id: Optional[str] = None
    environment_id: Optional[str] = None
    name: Optional[str] = None
    ca_certificates: Optional[_Pem] = None
    proxy: Optional[Secret] = None
    no_proxy: tuple[str, ...] = ()
    heartbeat_interval_s: Optional[float] = None
    seal: str = "auto"
    signing_keys: tuple[Mapping[str, str], ...] = ()
    signing_keys_trust: Optional[str] = None
    activation: Optional[Mapping[str, Any]] = None
    erase: Optional[Mapping[str, Any]] = None
    # The enrollment reply's, as envelopes; no setting of a source.
    key_sets: tuple[Mapping[str, Any], ...] = ()
    # Keys that a source above the image's defaults gave: later boots do not take them from there.
    pinned: tuple[str, ...] = field(default=(), compare=False)
    # Keys that the image's defaults gave, None in a file of version 0.1.0; those that went back to
    # their default at the last `run`, because the file no longer names them.
    from_image: Optional[tuple[str, ...]] = field(default=None, compare=False)
    reverted: tuple[str, ...] = field(default=(), compare=False)


def has_password(proxy: Secret | None) -> bool:
    """Return True for a proxy that does not go into a file that everybody reads."""
    return proxy is not None and urlsplit(proxy.reveal()).password is not None


def freeze(settings: Settings) -> dict[str, Any]:
    """Return what ``settings.json`` (0644) holds.

    That is everything but a proxy with a password, which is sealed with the identity.
    """
    shown = settings.proxy if not has_password(settings.proxy) else None
    values = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(settings).items()
    }
    return {"v": VERSION, **values, "proxy": shown and shown.reveal()}


def load(layout: Layout) -> Settings:
    """Return the settings that first boot froze; LocalFault when this host is not enrolled."""
    stored = files.read_json(layout.settings)
    if stored is None:
        raise LocalFault(
            "this host is not enrolled: there is no settings.json", hint="byteor-firstboot status"
        )
    return thaw(stored)


def thaw(stored: Mapping[str, Any]) -> Settings:
    """Read what `freeze` wrote, ignoring unknown members; Corrupt when it is damaged."""
    try:
        # Without these two the agent would fall to another control plane's address, or to every
        # certificate authority of the system.
        if stored.get("v") != VERSION or not {"api_base_url", "ca_certificates"} <= set(stored):
            raise Malformed("it is not what first boot froze")
        key_sets = list(documents.envelopes(stored.get("key_sets")))
        found = documents.parse(Settings, {**stored, "key_sets": key_sets})
    except Malformed as error:
        raise Corrupt(
            f"settings.json is damaged: {error}", hint="byteor-firstboot run freezes it again"
        ) from error
    interval = found.heartbeat_interval_s
    if interval is not None:
        interval = min(LONGEST_INTERVAL_S, max(SHORTEST_INTERVAL_S, interval))
    return replace(found, heartbeat_interval_s=interval, proxy=found.proxy or None)
