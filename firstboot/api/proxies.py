"""Which proxy a request goes through: settings first, else ``HTTPS_PROXY``/``NO_PROXY``; the only reader of those."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from firstboot.base.secret import Secret

# Where clouds serve metadata: a proxy would hand user data, token included, to whoever runs it.
METADATA = tuple(
    ipaddress.ip_network(net) for net in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128")
)


def proxy_for(
    host: str,
    port: int,
    *,
    proxy: Secret | None,
    no_proxy: Sequence[str],
    environ: Mapping[str, str],
) -> Secret | None:
    """Return the proxy for ``host:port``, or None for a direct connection."""
    found = environ.get("HTTPS_PROXY", "").strip()
    if found and "://" not in found:
        found = f"http://{found}"  # as curl reads it
    chosen = proxy or (Secret(found) if found else None)
    excluded = no_proxy or environ.get("NO_PROXY", "").replace(",", " ").split()
    if (
        chosen is None
        or _is_metadata(host)
        or any(_matches(entry, host, port) for entry in excluded)
    ):
        return None
    return chosen


def usable(proxy: Secret) -> bool:
    """Whether it is the URL of an HTTP proxy; libraries quote one that is not, password included."""
    text = proxy.reveal()
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        return known and all("!" <= c <= "~" for c in text)
    except ValueError:
        return False


def place(proxy: Secret) -> str:
    """Host and port of a usable proxy for people to read: never its user or password."""
    parts = urlsplit(proxy.reveal())
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _is_metadata(host: str) -> bool:
    try:
        address = _address(host) or ipaddress.IPv4Address(
            socket.inet_aton(host)
        )  # 0xa9fea9fe, as a resolver reads it
    except (OSError, ValueError):
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in net for net in METADATA if net.version == address.version)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _matches(entry: str, host: str, port: int) -> bool:
    """One NO_PROXY entry: ``*``, a name or suffix with or without a leading dot, an address, a CIDR net, ``:port``."""
    entry = entry.strip().lower()
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdigit() and (":" not in name or name.endswith("]")):
        if wanted.lstrip("0") != str(port):
            return False
        entry = name
    if entry == "*":
        return True
    address = _address(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            return False
    suffix = entry.lstrip("*").strip(".")
    host = host.lower().rstrip(".")
    return bool(suffix) and (host == suffix or host.endswith("." + suffix))
