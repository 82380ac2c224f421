"""Which proxy a request goes through, for every form of NO_PROXY; metadata addresses never see
one.
"""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstboot.api.proxies import place, proxy_for, usable
from firstboot.base.secret import Secret

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
        ("api.example", "*:443", True),
        ("api.example", "*:80", False),
        ("api.example", "api.example.", True),
        ("api.example.", "api.example", True),
        ("api.example", ".", False),
        ("api.example", "*.", False),
        ("api.example", "api.example:²", False),
        ("api.example", "api.example:" + "9" * 5000, False),
        ("10.1.2.3", "10.1.2.3:443", True),
        ("10.1.2.3", "10.0.0.0/8:443", True),
        ("10.1.2.3", "10.0.0.0/8:80", False),
        ("10.1.2.3", "10.0.0.0/99", False),
        ("10.1.2.3", "2001:db8::/32", False),
        ("10.1.2.3", "1.2.3", False),
        ("::1", "::1", True),
        ("::1", "[::1]:443", True),
        ("::1", "[::1]:80", False),
        ("2001:db9::1", "2001:db8::/32", False),
        ("fe80::1%eth0", "", True),
        ("::ffff:169.254.169.254", "", True),
        ("0xa9fea9fe", "", True),
        ("2852039166", "", True),
    ],
)
def test_no_proxy_in_all_its_forms(host: str, no_proxy: str, direct: bool) -> None:
    """Names, suffixes, addresses, nets, ports; metadata addresses never see a proxy."""
    chosen = proxy_for(
        host, 443, proxy=None, no_proxy=(), environ={"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy}
    )
    assert (chosen is None) == direct
    settings = proxy_for(host, 443, proxy=Secret(PROXY), no_proxy=no_proxy.split(","), environ={})
    assert (settings is None) == direct


@given(st.text(), st.text(max_size=60), st.integers(1, 65535))
def test_no_entry_stops_a_request(host: str, entry: str, port: int) -> None:
    """An entry that means nothing excludes nothing; it never raises."""
    proxy_for(host, port, proxy=Secret(PROXY), no_proxy=(entry,), environ={})


@given(st.ip_addresses(), st.integers(0, 32), st.integers(1, 65535))
def test_a_net_excludes_exactly_its_addresses(
    address: ipaddress.IPv4Address, length: int, port: int
) -> None:
    """As the standard library reads nets, for both families, with and without the port."""
    net = ipaddress.ip_network((address, length), strict=False)
    shown = str(net) if address.version == 4 else f"[{net}]"

    def is_direct(*no_proxy: str) -> bool:
        return (
            proxy_for(str(address), port, proxy=Secret(PROXY), no_proxy=no_proxy, environ={})
            is None
        )

    assert is_direct(str(net)) and is_direct(f"{shown}:{port}")
    assert (
        is_direct(f"{shown}:{port % 65535 + 1}") == is_direct()
    )  # a metadata address is never proxied


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HTTPS_PROXY": PROXY}, PROXY),
        ({"HTTPS_PROXY": "proxy:3128"}, PROXY),
        ({"HTTPS_PROXY": f" {PROXY} "}, PROXY),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "  "}, None),
        ({"https_proxy": PROXY}, PROXY),
        ({"https_proxy": PROXY, "HTTPS_PROXY": "http://other:1"}, "http://other:1"),
        (dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), PROXY), None),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "*"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "other api.example"}, None),
    ],
    ids=str,
)
def test_only_two_variables_are_read(environ: dict[str, str], expected: str | None) -> None:
    """HTTPS_PROXY and NO_PROXY in upper or lower case; of no other scheme."""
    found = proxy_for("api.example", 443, proxy=None, no_proxy=(), environ=environ)
    assert (found.reveal() if found is not None else None) == expected


def test_settings_win_over_the_environment() -> None:
    """Each of the two on its own."""
    environ = {"HTTPS_PROXY": "http://other:1", "NO_PROXY": "*"}
    found = proxy_for(
        "api.example", 443, proxy=Secret(PROXY), no_proxy=("elsewhere",), environ=environ
    )
    assert found == Secret(PROXY)
    assert proxy_for("api.example", 443, proxy=Secret(PROXY), no_proxy=(), environ=environ) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy:3128", True),
        ("https://user:p%40ss@[2001:db8::1]:3128/", True),
        ("http://proxy", True),
        ("http://user:pass@", False),
        ("http://user:pass@[bad", False),
        ("http://user:pass@proxy:99999", False),
        ("http://user:pass@proxy:port", False),
        ("http://proxy:0", False),
        ("socks5://user:pass@proxy:1080", False),
        ("proxy:3128", False),
        ("", False),
        ("http://user:päss@proxy:1", False),
        ("http://user:pa\nss@proxy:1", False),
        ("http://user:pa ss@proxy:1", False),
    ],
)
def test_what_is_no_url_of_a_proxy_is_known_before_a_library_quotes_it(
    url: str, expected: bool
) -> None:
    """Scheme, host, port and characters."""
    assert usable(Secret(url)) is expected


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ("http://user:p%40ss@proxy.example:3128", "proxy.example:3128"),
        ("http://user:p@ss@proxy.example:3128/path", "proxy.example:3128"),
        ("http://proxy.example", "proxy.example:80"),
        ("https://u@proxy.example", "proxy.example:443"),
    ],
)
def test_a_proxy_is_shown_without_user_and_password(proxy: str, shown: str) -> None:
    """Host and port, with the scheme's own port where none is given."""
    assert usable(Secret(proxy)) and place(Secret(proxy)) == shown
