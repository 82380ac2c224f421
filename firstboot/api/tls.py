"""The certificates that are trusted, and TLS 1.2 or newer.

Trust is the operating system's store, or exactly the configured certificates instead.
"""

from __future__ import annotations

import base64
import functools
import re
import socket
import ssl
import weakref
from pathlib import Path
from typing import Any

from firstboot.api.connection import TlsSocket, current
from firstboot.base.errors import LocalFault

# The compiled-in place of OpenSSL comes first; a Python built elsewhere points at nothing, so then
# where systems keep it.
OS_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # RHEL family
    "/etc/ssl/ca-bundle.pem",  # SUSE
)
PARTIAL_CHAIN = 0x80000  # of OpenSSL; Python 3.9 has no name for it
_BEGIN = r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----"
_BLOCK = re.compile(_BEGIN + r"([A-Za-z0-9+/=\s]+)-----END (?:X509 |TRUSTED )?CERTIFICATE-----")


class NamedContext(ssl.SSLContext):
    """A context that knows whom this thread expects.

    Its connections keep to the deadline. urllib3 1.26 does not pass a name on that is an address.
    """

    sslsocket_class = TlsSocket

    def wrap_socket(  # type: ignore[override]  # every caller names all but the first
        self, sock: socket.socket, *, server_hostname: str | None = None, **keywords: Any
    ) -> ssl.SSLSocket:
        return super().wrap_socket(
            sock, server_hostname=server_hostname or current.expected, **keywords
        )


# The system's store costs 55 ms and 2 MiB: the workers of one process share it while one uses it.
# It is read anew afterwards: somebody may have added an authority while first boot waited.
_shared: weakref.WeakValueDictionary[None, NamedContext] = weakref.WeakValueDictionary()


def forget() -> None:
    """Read the system's store anew for the next transport; those that are there keep theirs."""
    _shared.clear()


def tls_context(ca_certificates: str | None) -> NamedContext:
    """Return the context for `ca_certificates` (PEM), else for the system's store; LocalFault.

    Transports of several threads with the same trust get the same context. Not
    `ssl.create_default_context`, which honours SSLKEYLOGFILE, SSL_CERT_FILE and SSL_CERT_DIR.
    """
    if ca_certificates is not None:
        return _anchored(ca_certificates)
    context = _shared.get(None)
    if context is None:
        context = _bare()
        _trust_the_system(context)
        _shared[None] = context
    return context


@functools.cache  # first boot reads its settings at each step
def _anchored(ca_certificates: str) -> NamedContext:
    context = _bare()
    try:
        context.load_verify_locations(cadata=certificates(ca_certificates))
    except (ssl.SSLError, ValueError) as error:
        raise LocalFault(
            "ca_certificates does not hold certificates in PEM form",
            hint="give BEGIN CERTIFICATE blocks, as the authority publishes them",
        ) from error
    # An intermediate or a leaf is an anchor too, as with curl --cacert.
    context.verify_flags |= PARTIAL_CHAIN
    return context


def _bare() -> NamedContext:
    context = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def certificates(text: str) -> bytes:
    """Return the DER of all certificates in a text, or ValueError.

    What stands outside of BEGIN and END (a BOM, comments in any encoding) is not looked at.
    ``TRUSTED CERTIFICATE`` is OpenSSL's form: the certificate, then its own notes, cut off here.
    """
    blocks = [base64.b64decode(found) for found in _BLOCK.findall(text)]
    if not blocks or len(blocks) != len(re.findall(_BEGIN, text)):
        raise ValueError("no certificate, or not whole")
    return b"".join(block[: _length(block)] for block in blocks)


def _length(der: bytes) -> int:
    """Return the length of the first element of `der`, in bytes."""
    if len(der) < 2 or der[1] < 0x80:
        raise ValueError("no certificate is that short")
    end = 2 + (der[1] & 0x7F)
    return end + int.from_bytes(der[2:end], "big")


def _trust_the_system(context: ssl.SSLContext) -> None:
    compiled = ssl.get_default_verify_paths()
    for bundle in (compiled.openssl_cafile, *OS_BUNDLES):
        if Path(bundle).is_file():
            context.load_verify_locations(cafile=bundle)
            return
    if not Path(compiled.openssl_capath).is_dir():
        raise LocalFault(
            "this system has no trust store", hint="install ca-certificates, or set ca_certificates"
        )
    context.load_verify_locations(capath=compiled.openssl_capath)
