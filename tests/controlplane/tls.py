"""A throw-away CA, the server's certificate for its addresses, and the certificates that must be
refused.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import trustme

HANDSHAKE_FAILURE = "handshake_failure"
MODES = ("expired", "not_yet_valid", "wrong_name", "unknown_ca", HANDSHAKE_FAILURE)


def load_ca(state: Path) -> trustme.CA:
    """The CA kept in `state`, made at the first call; clients trust `ca.pem`."""
    certificate, key = state / "ca.pem", state / "ca.key"
    if certificate.exists() and key.exists():
        return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
    ca = trustme.CA(organization_name="throw-away CA of the reference control plane")
    with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(ca.private_key_pem.bytes())
    certificate.write_bytes(ca.cert_pem.bytes())
    return ca


def names_for(host: str, extra: Sequence[str] = ()) -> Sequence[str]:
    """The subject alternative names of a plane that listens on `host`."""
    names = [host, *extra]
    if ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified:
        names += ["127.0.0.1", "localhost", "::1"]
    return list(dict.fromkeys(names))


def _context(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    leaf.configure_cert(context)
    return context


class Certificates:
    """The context for listeners; per handshake `fault()` may name a mode that spoils it."""

    def __init__(
        self, ca: trustme.CA, names: Sequence[str], *, fault: Callable[[], str | None]
    ) -> None:
        self._ca, self._names, self._fault = ca, names, fault
        self._spoilt: dict[str, ssl.SSLContext] = {}
        self.context = _context(ca.issue_cert(*names))
        self.context.sni_callback = (
            self._choose
        )  # called with None, too, when the client names no server

    def _choose(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        mode = self._fault()
        if mode is None:
            return None
        if mode == HANDSHAKE_FAILURE:
            return int(ssl.AlertDescription.ALERT_DESCRIPTION_HANDSHAKE_FAILURE)
        if mode not in self._spoilt:
            self._spoilt[mode] = self._spoil(mode)
        connection.context = self._spoilt[mode]
        return None

    def _spoil(self, mode: str) -> ssl.SSLContext:
        now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
        if mode == "expired":
            return _context(
                self._ca.issue_cert(*self._names, not_before=now - 30 * day, not_after=now - day)
            )
        if mode == "not_yet_valid":
            return _context(
                self._ca.issue_cert(*self._names, not_before=now + day, not_after=now + 30 * day)
            )
        if mode == "wrong_name":
            return _context(self._ca.issue_cert("another-host.invalid"))
        return _context(
            trustme.CA(organization_name="nobody trusts this one").issue_cert(*self._names)
        )
