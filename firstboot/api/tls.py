"""Which certificates are trusted: the operating system's store, or exactly the configured ones; TLS 1.2 or newer."""

from __future__ import annotations

import socket
import ssl
import weakref
from pathlib import Path
from typing import Any

from firstboot.api.connection import TlsSocket, current
from firstboot.base.errors import LocalFault

# The compiled-in place of OpenSSL comes first; a Python built elsewhere points at nothing, so then where systems keep it.
OS_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # RHEL family
    "/etc/ssl/ca-bundle.pem",  # SUSE
)


class NamedContext(ssl.SSLContext):
    """A context that knows whom this thread expects, and whose connections keep to its deadline.

    urllib3 1.26 does not pass a name on that is an address.
    """

    sslsocket_class = TlsSocket

    def wrap_socket(  # type: ignore[override]  # every caller names all but the first
        self, sock: socket.socket, *, server_hostname: str | None = None, **keywords: Any
    ) -> ssl.SSLSocket:
        return super().wrap_socket(
            sock, server_hostname=server_hostname or current.expected, **keywords
        )


# The system's store costs 55 ms and 2 MiB: the loops of one process share it for as long as one of them uses it.
_shared: weakref.WeakValueDictionary[str | None, NamedContext] = weakref.WeakValueDictionary()


def tls_context(ca_certificates: str | None) -> NamedContext:
    """Names are checked; trust is `ca_certificates` (PEM) alone, else the operating system's store, or LocalFault.

    Transports of several threads with the same trust get the same context. Not `ssl.create_default_context`, which
    honours SSLKEYLOGFILE, SSL_CERT_FILE and SSL_CERT_DIR.
    """
    context = _shared.get(ca_certificates)
    if context is None:
        _shared[ca_certificates] = context = _new_context(ca_certificates)
    return context


def _new_context(ca_certificates: str | None) -> NamedContext:
    context = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_certificates is not None:
        try:
            context.load_verify_locations(cadata=ca_certificates)
        except (ssl.SSLError, ValueError) as error:
            raise LocalFault("ca_certificates does not hold certificates in PEM form") from error
        return context
    compiled = ssl.get_default_verify_paths()
    for bundle in (compiled.openssl_cafile, *OS_BUNDLES):
        if Path(bundle).is_file():
            context.load_verify_locations(cafile=bundle)
            return context
    if Path(compiled.openssl_capath).is_dir():
        context.load_verify_locations(capath=compiled.openssl_capath)
        return context
    raise LocalFault(
        "this system has no trust store", hint="install ca-certificates, or set ca_certificates"
    )
