"""The settings as values, and their frozen form in ``settings.json``: no yaml, so that the resident agent can read it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple
from urllib.parse import urlsplit

from firstboot import files
from firstboot.errors import Corrupt, LocalFault
from firstboot.layout import Layout
from firstboot.secret import Secret

VERSION = 1
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})\Z")
_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 5.0, 3600.0
MOST_KEY_SETS, MOST_SIGNATURES = 64, 16  # of an enrollment reply that are kept; of one set
KEY_SETS_LIMIT = 1 << 17  # bytes of them in all: everything in settings.json is read by every process


@dataclass(frozen=True)
class Settings:
    """The mapping of contract 4.1, merged; what nobody set is None."""

    api_base_url: Optional[str] = None
    org_id: Optional[str] = None
    project_id: Optional[str] = None
    environment_id: Optional[str] = None
    name: Optional[str] = None
    ca_certificates: Optional[str] = None
    proxy: Optional[Secret] = None
    no_proxy: Tuple[str, ...] = ()
    heartbeat_interval_s: Optional[float] = None
    seal: str = "auto"
    signing_keys: Tuple[Mapping[str, str], ...] = ()
    signing_keys_trust: Optional[str] = None
    activation: Optional[Mapping[str, Any]] = None
    key_sets: Tuple[Mapping[str, Any], ...] = ()  # the enrollment reply's, as envelopes; no setting of a source
    # Keys that a source above the image's defaults gave: a later boot does not take them from there.
    pinned: Tuple[str, ...] = field(default=(), compare=False)


def base_url(text: str, *, under_systemd: bool) -> str:
    """Return the origin in `text` without a trailing slash, ``/v1`` or ``/api/v1``; ValueError saying what is wrong."""
    if not re.fullmatch(r"[!-~]+", text.strip()):  # urlsplit drops tabs and line ends without a word
        raise ValueError("is not a URL")
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("https", "http") or not host:
        raise ValueError("must be an https URL such as https://api.example")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("must be an origin, without user, query or fragment")
    path = parts.path.rstrip("/")
    if path not in ("", "/v1", "/api/v1"):
        raise ValueError("must be an origin, without a path")
    if parts.scheme == "http":
        if not _loopback(host):
            raise ValueError("must be https (http only towards loopback)")
        if under_systemd:
            raise ValueError("must be https (under systemd http is refused, even towards loopback)")
    bracketed = parts.netloc.startswith("[")
    if port == 0 or not (_is_ipv6(host) if bracketed else _HOST.match(host)):
        raise ValueError("has no usable host name or port")
    shown = f"[{host}]" if bracketed else host
    return f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "")


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Not `is_loopback`: Python 3.13 counts ::ffff:127.0.0.1 in, older ones do not.
    return address in _LOOPBACK if address.version == 4 else host == "::1"


def _is_ipv6(host: str) -> bool:
    try:
        return "%" not in host and ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def has_password(proxy: Optional[Secret]) -> bool:
    return proxy is not None and urlsplit(proxy.reveal()).password is not None


def envelopes(value: Any) -> Tuple[Dict[str, Any], ...]:
    """The key sets (DSSE envelopes, contract 2.5) that a list begins with, in shape only: nobody vouches for them here.

    A chain is good up to where it is cut, and the plane is asked for the rest: so what is malformed, or beyond the bounds,
    ends the list and is no error. Members that DSSE does not know are dropped.
    """
    found: List[Dict[str, Any]] = []
    room = KEY_SETS_LIMIT
    for item in value[:MOST_KEY_SETS] if isinstance(value, list) else ():
        listed = item.get("signatures") if isinstance(item, dict) else None
        if not isinstance(listed, list) or len(listed) > MOST_SIGNATURES or not all(isinstance(one, dict) for one in listed):
            break
        made = [{"keyid": one.get("keyid"), "sig": one.get("sig")} for one in listed]
        texts = [item.get("payload"), item.get("payloadType"), *(text for one in made for text in one.values())]
        # ASCII, since JSON takes up to twelve bytes for any other character.
        if not all(isinstance(text, str) and text.isascii() and text.isprintable() for text in texts):
            break
        room -= sum(map(len, texts))
        if room < 0:
            break
        found.append({"payload": texts[0], "payloadType": texts[1], "signatures": made})
    return tuple(found)


def freeze(settings: Settings) -> Dict[str, Any]:
    """Return what ``settings.json`` (0644) holds: everything but a proxy with a password, which is sealed."""
    proxy = None if settings.proxy is None or has_password(settings.proxy) else settings.proxy.reveal()
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
        raise LocalFault("this host is not enrolled: there is no settings.json", hint="byteor-firstboot status")
    return thaw(stored)


def thaw(stored: Mapping[str, Any]) -> Settings:
    """Read what `freeze` wrote, ignoring what it does not know; Corrupt when it is not that, or a key has another shape."""
    # Without these two the agent would fall to another plane's address, or to every certificate authority of the system.
    if stored.get("v") != VERSION or not {"api_base_url", "ca_certificates"} <= set(stored):
        raise Corrupt("settings.json is damaged: it is not what first boot froze", hint="byteor-firstboot run freezes it again")
    texts = ("api_base_url", "org_id", "project_id", "environment_id", "name", "ca_certificates", "signing_keys_trust")
    for key in texts:
        if not isinstance(stored.get(key), (str, type(None))):
            raise Corrupt(f"settings.json is damaged: {key} is not a text")
    interval, proxy, no_proxy = stored.get("heartbeat_interval_s"), stored.get("proxy"), stored.get("no_proxy") or []
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
