"""Which certificates are trusted: the operating system's store, or exactly the configured ones; TLS 1.2 or newer."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Optional

from firstboot.errors import LocalFault

# The compiled-in place of OpenSSL comes first; a Python built elsewhere points at nothing, so then where systems keep it.
OS_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # RHEL family
    "/etc/ssl/ca-bundle.pem",  # SUSE
)


def tls_context(ca_certificates: Optional[str]) -> ssl.SSLContext:
    """Names are checked; trust is `ca_certificates` (PEM) alone, else the operating system's store, or LocalFault.

    Not `ssl.create_default_context`, which honours SSLKEYLOGFILE, SSL_CERT_FILE and SSL_CERT_DIR.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
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
    raise LocalFault("this system has no trust store", hint="install ca-certificates, or set ca_certificates")
