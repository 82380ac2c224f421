"""Read what was erased again with the reader of its own source: no token is missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstboot.provision import cleanup
from firstboot.provision.erase.copies import erase
from firstboot.provision.erase.scrub import Redacted, Scrubber
from firstboot.provision.erase.search import Search
from firstboot.provision.facts import look
from firstboot.provision.sources import Inputs
from tests.unit.test_erase import TOKEN, host


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("blind", [False, True])
def test_the_drop_place_is_checked_by_its_own_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, blind: bool
) -> None:
    """YAML continues a quoted scalar after five line ends; a blind scrubber changes nothing."""
    layout = host(tmp_path)
    layout.drop_place.parent.mkdir(parents=True)
    text = f'enrollment_token: "{TOKEN[:9].decode()}\\{end}  {TOKEN[9:].decode()}"\n'.encode()
    layout.drop_place.write_bytes(text)
    if blind:
        monkeypatch.setattr(Scrubber, "redact", lambda self, data: Redacted(data))
    said = {copy.path: copy.result for copy in erase(layout, [TOKEN], now=1.7e9).copies}
    assert said["/run/byteor-firstboot/settings.yaml"] == "unlinked"
    assert not layout.drop_place.exists()


def test_a_source_that_still_gives_the_token_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the search missed: the sources are read once more before the receipt is written."""
    layout = host(tmp_path)
    (layout.cloud / "instances/iid-1/user-data.txt").chmod(0o600)
    view = look(layout, Inputs(), tolerant=True)
    token = view.chosen
    monkeypatch.setattr(Search, "look", lambda *args: iter(()))
    receipt = cleanup.erase(layout, view, Inputs(), [token], now=1.7e9, late=True)
    assert receipt.remaining == ["/var/lib/cloud/instances/iid-1/user-data.txt"]
