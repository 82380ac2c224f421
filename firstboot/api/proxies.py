"""Choose the proxy of a request: from settings, else the environment."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from firstboot.api.connection import Unreachable
from firstboot.base.secret import Secret

# Where clouds serve metadata: a proxy would hand user data, token included, to whoever runs it.
METADATA = tuple(
    ipaddress.ip_network(net) for net in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128")
)


def from_environment(environ: Mapping[str, str]) -> tuple[Secret | None, tuple[str, ...]]:
    """Return the proxy and its exceptions, from variables in either case."""
    proxy, no_proxy = (
        environ.get(name, "").strip() or environ.get(name.lower(), "").strip()
        for name in ("HTTPS_PROXY", "NO_PROXY")
    )
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"  # as curl reads it
    return Secret(proxy) if proxy else None, tuple(no_proxy.replace(",", " ").split())


def proxy_for(
    host: str,
    port: int,
    *,
    proxy: Secret | None,
    no_proxy: Sequence[str],
    environ: Mapping[str, str],
) -> Secret | None:
    """Return the proxy for ``host:port``, or None for a direct connection.

    Unreachable when it is no usable URL.
    """
    named, excepted = from_environment(environ)
    chosen = proxy or named
    if chosen is None or is_link_local(host):
        return None
    if any(_matches(entry, host, port) for entry in no_proxy or excepted):
        return None
    if not usable(chosen):
        raise Unreachable(
            "the proxy is not a usable URL",
            hint="give proxy or HTTPS_PROXY like http://proxy.example:3128",
        )
    return chosen


def usable(proxy: Secret) -> bool:
    """Return True for the URL of an HTTP proxy.

    Libraries quote any other in their errors, password included.
    """
    text = proxy.reveal()
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        return known and all("!" <= c <= "~" for c in text)
    except ValueError:
        return False


def place(proxy: Secret) -> str:
    """Return host and port of a usable proxy, for people to read."""
    parts = urlsplit(proxy.reveal())
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def is_link_local(host: str) -> bool:
    """Return True for a link-local or metadata address, however written."""
    try:
        address = _address(host.partition("%")[0]) or ipaddress.IPv4Address(
            socket.inet_aton(host)  # 0xa9fea9fe
        )
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
    """Judge one exception, with or without ``:port``.

    It is ``*``, a name or suffix, an address, or a CIDR net.
    """
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
