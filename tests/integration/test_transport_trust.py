"""Which certificates the door to the network accepts, and what it says of others."""

from __future__ import annotations

import datetime
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Callable

import certifi
import pytest
import trustme

from firstboot.api import tls
from firstboot.api.transport import Transport, Unreachable
from firstboot.base.errors import LocalFault
from firstboot.base.secret import Secret
from tests.integration.answering import (
    OK,
    PEM,
    Proxy,
    Server,
    answer,
    connect,
    get,
    relay,
)


def test_exactly_the_configured_authority_is_trusted(serve: Callable[..., Server]) -> None:
    """The plane's CA: fine; another: a sentence about the authority, and certainly nothing
    arrived.
    """
    server = serve(answer(OK))
    assert get(server).body == b"{}"
    with pytest.raises(Unreachable, match="certificate") as caught:
        connect(ca_certificates=trustme.CA().cert_pem.bytes().decode(), environ={}).request(
            "GET", server.url
        )
    assert not caught.value.maybe_arrived


def test_a_certificate_of_another_name_is_refused(serve: Callable[..., Server]) -> None:
    """An address counts as a name too, also where urllib3 does not pass it on."""
    with pytest.raises(Unreachable, match="certificate"):
        get(serve(answer(OK), names=("10.1.2.3", "plane.example")))


def test_bundles_of_wheels_and_of_the_environment_are_not_trusted(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither certifi nor any variable adds a root; keys are logged nowhere."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(PEM)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setattr(certifi, "where", lambda: str(bundle))
    server = serve(answer(OK))
    with pytest.raises(Unreachable):
        connect(environ={}).request("GET", server.url)
    connect(ca_certificates=PEM, environ={}).request("GET", server.url)
    assert not (tmp_path / "keys").exists()
    assert tls.tls_context(PEM).minimum_version >= ssl.TLSVersion.TLSv1_2
    with pytest.raises(LocalFault):
        tls.tls_context("no certificate")


def test_an_expired_certificate_is_refused(serve: Callable[..., Server]) -> None:
    """The sentence says so, and the hint thinks of the host's clock."""
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    with pytest.raises(Unreachable, match="expired") as caught:
        get(serve(answer(OK), not_after=yesterday))
    assert not caught.value.maybe_arrived and "clock" in str(caught.value.hint)


@pytest.mark.filterwarnings("ignore:.*TLSv1:DeprecationWarning")
def test_tls_before_1_2_is_refused(serve: Callable[..., Server]) -> None:
    """A server that can do no better got nothing; the very same server with 1.2 is answered."""
    server = serve(answer(OK))
    assert server._context is not None
    server._context.set_ciphers("DEFAULT:@SECLEVEL=0")
    server._context.minimum_version = ssl.TLSVersion.TLSv1
    server._context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(Unreachable, match="no TLS session") as caught:
        get(server)
    assert not caught.value.maybe_arrived
    server._context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert get(server).status == 200


def test_without_configured_certificates_the_systems_store_is_trusted_alone(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled-in file first, then where systems keep it, then the directory; without any of
    them: said.
    """
    store, none = tmp_path / "store.pem", str(tmp_path / "none")
    store.write_text(PEM)
    server, compiled = serve(answer(OK)), ssl.get_default_verify_paths()

    def system(cafile: str, bundles: tuple[str, ...], capath: str) -> Transport:
        paths = compiled._replace(openssl_cafile=cafile, openssl_capath=capath)
        monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
        monkeypatch.setattr(tls, "OS_BUNDLES", bundles)
        tls.forget()  # what other threads would share
        return connect()

    for transport in (system(str(store), (), none), system(none, (none, str(store)), none)):
        assert transport.request("GET", server.url).status == 200
        transport.close()
    with pytest.raises(Unreachable, match="certificate"):
        system(none, (), str(tmp_path)).request("GET", server.url)
    with pytest.raises(LocalFault, match="no trust store"):
        system(none, (), none)


CERTIFI_IS_OURS = """
import sys, certifi
certifi.where = lambda: sys.argv[2]
import requests.certs
assert requests.certs.where() == sys.argv[2]
from firstboot.base.errors import TryAgain
from firstboot.api.transport import Transport
transport = Transport(environ={})
try:
    print(transport.request("GET", sys.argv[1]).status)
except TryAgain as error:
    print(error)
finally:
    transport.close()
"""


def test_a_root_that_only_certifi_holds_is_not_trusted(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """Not even where requests loads the bundle as it is imported (2.32.0 and later do); no session
    key is logged.
    """
    bundle, keys = tmp_path / "certifi.pem", tmp_path / "keys"
    bundle.write_text(PEM)
    command = [sys.executable, "-c", CERTIFI_IS_OURS, serve(answer(OK)).url, str(bundle)]
    environ = {
        **os.environ,
        "REQUESTS_CA_BUNDLE": str(bundle),
        "SSL_CERT_FILE": str(bundle),
        "SSLKEYLOGFILE": str(keys),
    }
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert "certificate" in ran.stdout, ran.stdout
    assert (
        not keys.exists() or b"SECRET" not in keys.read_bytes()
    )  # importing some versions of requests makes the file


@pytest.mark.parametrize(("name", "accepted"), [("127.0.0.1", True), ("localhost", False)])
def test_a_proxy_behind_tls_answers_to_its_own_name(
    serve: Callable[..., Server], name: str, accepted: bool
) -> None:
    """Reached by its address, it must show that address; the plane's name does not make it a
    proxy.
    """
    server, proxy = serve(answer(OK), names=("localhost",)), serve(relay, names=(name,))
    transport = connect(
        ca_certificates=PEM, proxy=Secret(f"https://user:password@127.0.0.1:{proxy.port}")
    )
    url = f"https://localhost:{server.port}/x"
    if accepted:
        assert transport.request("GET", url).status == 200
        transport.close()
    else:
        with pytest.raises(Unreachable, match="certificate"):
            transport.request("GET", url)


def test_whose_certificate_is_not_accepted_is_said(serve: Callable[..., Server]) -> None:
    """An https proxy's own, or what comes through a proxy, which may inspect TLS."""
    server, behind = serve(answer(OK)), serve(relay)
    for pem, proxy, said in (
        (None, Secret(f"https://127.0.0.1:{behind.port}"), f"the proxy 127.0.0.1:{behind.port} i"),
        (None, Secret(Proxy(serve).url), f"127.0.0.1:{server.port}, seen through the proxy"),
    ):
        with pytest.raises(Unreachable, match=f"certificate (of|for) {said}") as caught:
            connect(ca_certificates=pem, proxy=proxy).request("GET", server.url)
        assert "authority to ca_certificates" in str(caught.value.hint)
