"""Which proxy a request goes through, for every form of NO_PROXY; metadata addresses never see one."""

from __future__ import annotations

import pytest

from firstboot.proxies import proxy_for
from firstboot.secret import Secret

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("api.example", "", False),
        ("api.example", "*", True),
        ("api.example", "example", True),
        ("api.example", ".example", True),
        ("api.example", "*.example", True),
        ("example", ".example", True),
        ("badexample", "example", False),
        ("API.Example", "api.EXAMPLE", True),
        ("api.example", "other,api.example:443", True),
        ("api.example", "api.example:8443", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("2001:db8::1", "2001:db8::/32", True),
        ("2001:db8::1", "[2001:db8::1]", True),
        ("169.254.169.254", "", True),
        ("fe80::1", "", True),
        ("fd00:ec2::254", "", True),
        ("127.0.0.1", "", False),
        ("api.example", ",, ,", False),
    ],
)
def test_no_proxy_in_all_its_forms(host: str, no_proxy: str, direct: bool) -> None:
    """Names, suffixes, addresses, nets, ports; metadata addresses never see a proxy."""
    chosen = proxy_for(host, 443, proxy=None, no_proxy=(), environ={"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy})
    assert (chosen is None) == direct
    settings = proxy_for(host, 443, proxy=Secret(PROXY), no_proxy=no_proxy.split(","), environ={})
    assert (settings is None) == direct
