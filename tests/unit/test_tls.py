"""Which certificates count as anchors, and how they are found in whatever a person pasted."""

from __future__ import annotations

import base64
import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from firstboot.api import connection
from firstboot.api.tls import certificates, tls_context
from firstboot.base.errors import LocalFault

Issued = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def issue(name: str, issuer: Issued | None, *, authority: bool) -> Issued:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


ROOT = issue("root.example", None, authority=True)
INTERMEDIATE = issue("intermediate.example", ROOT, authority=True)
LEAF = issue("plane.example", INTERMEDIATE, authority=False)


def pem(issued: Issued) -> str:
    return issued[0].public_bytes(serialization.Encoding.PEM).decode()


def trusted(issued: Issued) -> str:
    """OpenSSL's own form: the certificate, then what it is trusted for."""
    der = (
        issued[0].public_bytes(serialization.Encoding.DER) + b"\x30\x0c\x30\x0a\x06\x08+" + bytes(7)
    )
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN TRUSTED CERTIFICATE-----\n{text}-----END TRUSTED CERTIFICATE-----\n"


def handshake(ca_certificates: str, tmp_path: Path) -> None:
    """Meet a server that sends leaf and intermediate."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_text(pem(LEAF) + pem(INTERMEDIATE))
    key.write_bytes(
        LEAF[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server.load_cert_chain(chain, key)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def serve() -> None:
            try:
                server.wrap_socket(theirs, server_side=True).close()
            except OSError:
                theirs.close()

        thread = threading.Thread(target=serve)
        thread.start()
        connection.current.limit = float("inf")
        try:
            tls_context(ca_certificates).wrap_socket(ours, server_hostname="plane.example").close()
        finally:
            thread.join(10)


GOOD = {
    "root": pem(ROOT),
    "intermediate alone": pem(INTERMEDIATE),
    "the server's own": pem(LEAF),
    "a BOM": "\ufeff" + pem(ROOT),
    "comments": f"# Főtanúsítvány (példa)\n{pem(INTERMEDIATE)}\n# \x00 end",
    "CRLF": pem(ROOT).replace("\n", "\r\n"),
    "one among many": pem(issue("other.example", None, authority=True)) + pem(ROOT),
    "openssl x509 -text": f"Certificate:\n    Data:\n{pem(ROOT)}",
    "TRUSTED CERTIFICATE": trusted(ROOT),
    "both forms": trusted(issue("other.example", None, authority=True)) + pem(ROOT),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_certificate_that_is_named_is_an_anchor(name: str, tmp_path: Path) -> None:
    """Whatever stands around it."""
    handshake(GOOD[name], tmp_path)


def test_another_authority_is_none(tmp_path: Path) -> None:
    """Partial chains widen trust to what is named, and to nothing else."""
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pem(issue("other.example", None, authority=True)), tmp_path)


@given(st.text())
def test_a_text_without_a_certificate_is_refused(text: str) -> None:
    """With the hint that says what to give."""
    with pytest.raises(ValueError):
        certificates(text)
    for wrong in (text, f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----"):
        with pytest.raises(LocalFault, match="ca_certificates") as caught:
            tls_context(wrong)
        assert caught.value.hint
