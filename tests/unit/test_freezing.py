"""What an enrollment freezes beyond its sources, and the clock that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

import firstboot
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import LocalFault
from firstboot.base.secret import Secret
from firstboot.exchange.settings import Settings
from firstboot.provision.freezing import with_proxy_of
from firstboot.provision.preflight import check_clock

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


class At(Clock):
    """A clock that stands at one moment."""

    def __init__(self, moment: float) -> None:
        self._moment = moment

    def wall(self) -> float:
        return self._moment


BUILT = Path(firstboot.__file__).stat().st_mtime
DAY_S = 86400.0


@pytest.mark.parametrize("moment", [0.0, 1.0, BUILT - DAY_S, BUILT - 1])
def test_a_clock_before_the_package_stops_before_the_token_is_presented(moment: float) -> None:
    """No certificate would be valid; the sentence names both times."""
    with pytest.raises(LocalFault, match="before this package was built") as caught:
        check_clock(At(moment))
    assert rfc3339(moment) in str(caught.value) and "NTP" in str(caught.value.hint)


@pytest.mark.parametrize("moment", [BUILT, BUILT + DAY_S, 2.0**31, 2.0**32 + 1, 4102444800.0])
def test_a_clock_after_it_is_believed(moment: float) -> None:
    """2038 and 2106 are dates like any other."""
    check_clock(At(moment))
    assert rfc3339(moment) > "2024"
