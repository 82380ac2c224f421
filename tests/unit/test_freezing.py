"""What an enrollment freezes beyond its sources: the proxy that the environment named."""

from __future__ import annotations

import pytest

from firstboot.base.secret import Secret
from firstboot.exchange.settings import Settings
from firstboot.provision.freezing import with_proxy_of

USED = {"HTTPS_PROXY": "http://u:secret0123@proxy.example:3128", "NO_PROXY": "a.example,b.example"}


@pytest.mark.parametrize("lower", [False, True])
def test_the_proxy_that_enrollment_used_is_frozen(lower: bool) -> None:
    """The agent, which has another environment, is not dark behind it."""
    environ = {name.lower() if lower else name: value for name, value in USED.items()}
    found = with_proxy_of(environ, Settings(api_base_url="https://plane.example"))
    assert found.proxy is not None and found.proxy.reveal() == USED["HTTPS_PROXY"]
    assert found.no_proxy == ("a.example", "b.example")


@pytest.mark.parametrize(
    ("address", "proxy", "no_proxy"),
    [
        ("https://a.example", None, ()),
        ("https://plane.example", Secret("http://own.example:1"), ()),
        ("https://plane.example", None, ("plane.example",)),
        ("http://127.0.0.1:8000", None, ()),
        ("https://169.254.169.254", None, ()),
        (None, None, ()),
    ],
)
def test_one_that_it_did_not_use_is_not(
    address: str | None, proxy: Secret | None, no_proxy: tuple[str, ...]
) -> None:
    """Excluded, settled by the settings, or not for this address."""
    settings = Settings(api_base_url=address, proxy=proxy, no_proxy=no_proxy)
    assert with_proxy_of(USED, settings) == settings
