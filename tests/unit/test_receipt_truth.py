"""With any step of erasing disabled, the receipt or exit 9 says what stays: never gone where it is."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstboot.base import inplace, systemd
from firstboot.base.errors import ByteorError, LocalFault
from firstboot.base.layout import Layout
from firstboot.provision import cleanup, userdata
from firstboot.provision.erase import grants, places, systemjournal
from firstboot.provision.erase.copies import erase
from firstboot.provision.erase.receipt import Copy, Receipt, save
from firstboot.provision.erase.scrub import Scrubber
from firstboot.provision.erase.search import SANDBOX
from tests.boot.scan import canary, scan_tree
from tests.unit import generated

SEEDS = 60


def nothing(self: Scrubber, data: bytes, chain: tuple[str, ...]) -> Iterator[Any]:
    return iter(())


def tree(root: Path, dice: random.Random, token: str) -> Layout | None:
    """Make a host on which cloud-init has stored one generated user data; None if it says nothing."""
    mapping = {"api_base_url": "https://api.example", "enrollment_token": token}
    config = generated.cloud_config(mapping, dice)
    raw = generated.packed(config.text, dice)
    try:
        if userdata.read(raw, where="it") is None:
            return None
    except ByteorError:
        return None
    instance = root / "var/lib/cloud/instances/i"
    instance.mkdir(parents=True)
    (instance.parents[1] / "instance").symlink_to("/var/lib/cloud/instances/i")
    for name, data in generated.stored(raw, config):
        (instance / name).write_bytes(data)
    (root / "var/lib/byteor/identity").mkdir(parents=True)
    return Layout(root)


@pytest.mark.parametrize(
    "disabled",
    [(), ("_packed",), ("_whole", "_raw"), ("_escaped",), ("_base64",), ("redact",)],
    ids=["nothing", "gzip", "raw", "escapes", "base64", "all"],
)
def test_the_receipt_never_says_gone_where_a_scan_finds_a_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disabled: tuple[str, ...]
) -> None:
    """The scanner is the one of the boot tests, which knows nothing of ours."""
    for name in disabled:
        monkeypatch.setattr(Scrubber, name, nothing)
    if disabled == ("redact",):
        monkeypatch.undo()
        monkeypatch.setattr(inplace, "overwrite", lambda held, data: held)
    looked = left = 0
    for seed in range(SEEDS):
        token = "bet_" + canary()
        layout = tree(tmp_path / str(seed), random.Random(seed), token)
        if layout is None:
            continue
        receipt = erase(layout, [token.encode()], now=1.7e9)
        gone = {row.path for row in receipt.copies if row.result in ("overwritten", "unlinked")}
        hits = set(scan_tree(layout.root, token).places)
        for name in ("user-data.txt", "user-data.txt.i"):
            path = layout.root / "var/lib/cloud/instances/i" / name
            found = userdata.read(path.read_bytes(), where="it")
            if found is not None and found.raw.get("enrollment_token") == token:
                hits.add(layout.shown(path))
        assert not hits & gone, (seed, hits & gone)
        if not disabled:
            assert not hits, (seed, hits)
        looked, left = looked + 1, left + bool(hits)
    assert looked > SEEDS // 3 and bool(left) == bool(disabled)


# -- what only a running system has


def test_the_journal_is_searched_across_pieces_and_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stub in journalctl's place: the token lies across two pieces, and once more."""
    token = b"bet_9fK2mQ7xT4vB8nL1pR6sD3wH5jC0"
    stub = tmp_path / "journalctl"
    stub.write_text(
        f"#!/bin/sh\nhead -c {systemjournal.PIECE - 7} /dev/zero\necho MESSAGE={token.decode()}\n"
        f"echo again {token.decode()}\n"
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    row = systemjournal.search(Layout(), [token])
    assert row is not None and row.encodings == {"raw": 2} and row.result == "kept"
    assert systemjournal.search(Layout(), []) is None
    assert systemjournal.search(Layout(tmp_path), [token]) is None
    stub.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(LocalFault):
        systemjournal.search(Layout(), [token])


def test_units_may_write_the_named_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drop-in for each unit, quoted for systemd; gone when the setting is; one reload a change."""
    monkeypatch.setattr(places, "find", lambda layout: places.Found())
    reloads: list[int] = []
    monkeypatch.setattr(systemd, "booted", lambda: True)
    monkeypatch.setattr(systemd, "reload", lambda: reloads.append(1))
    paths = ["/srv/a b", '/srv/"q"%x']
    for _ in range(2):
        grants.grant(Layout(), paths, runtime=tmp_path)
    for unit in grants.UNITS:
        drop_in = tmp_path / f"{unit}.d/erase-paths.conf"
        assert stat.S_IMODE(drop_in.stat().st_mode) == 0o644
        lines = drop_in.read_text().splitlines()
        assert lines[-2:] == ['ReadWritePaths="-/srv/a b"', 'ReadWritePaths="-/srv/\\"q\\"%%x"']
    assert len(reloads) == 1
    elsewhere = places.Found(elsewhere=[Path("/seed/user-data"), Path("/srv/a b")])
    monkeypatch.setattr(places, "find", lambda layout: elsewhere)
    grants.grant(Layout(), paths, runtime=tmp_path)
    assert len(drop_in.read_text().splitlines()) == len(lines) + 1
    monkeypatch.setattr(places, "find", lambda layout: places.Found())
    grants.grant(Layout(), [], runtime=tmp_path)
    assert not list(tmp_path.rglob("*.conf")) and len(reloads) == 3


def test_what_a_late_run_may_not_write_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sandbox is older than the drop-in: byteor-erase has it, and the rest is exit 9."""
    rows = [
        Copy("/srv/a", {"raw": 1}, "remains", f"cannot overwrite /srv/a: {SANDBOX}"),
        Copy("/srv/b", {"raw": 1}, "remains", "immutable"),
    ]
    receipt = Receipt(1.7e9, "b", 1, tuple(rows))
    assert cleanup.left(receipt) == ["/srv/a", "/srv/b"]
    monkeypatch.setattr(systemd, "inside", lambda unit: unit == cleanup.FIRST_BOOT)
    assert cleanup.left(receipt) == ["/srv/b"]


def test_the_units_may_write_every_place_that_is_searched() -> None:
    """Both units that erase name each tree and file, or a directory above it."""
    units = Path(__file__).resolve().parents[2] / "units"
    for name in ("byteor-erase.service", "byteor-firstboot.service"):
        words = [
            word.lstrip("-")
            for line in (units / name).read_text().splitlines()
            if line.startswith("ReadWritePaths=")
            for word in line.split("=", 1)[1].split()
        ]
        for place in (*places.TREES, *places.FILES, places.LOGS, places.STATUS):
            assert any(f"{place}/".startswith(f"{word}/") for word in words), (name, place)


def test_a_damaged_receipt_is_set_aside_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As every record of ours: nothing is overwritten that somebody may want to read."""
    layout = Layout(tmp_path)
    layout.identity.mkdir(parents=True)
    layout.erasure.write_text("{")
    save(layout, Receipt(1.7e9, "b", 1, ()))
    assert layout.erasure.with_name("erasure.json.corrupt-1").read_text() == "{"
    said = capsys.readouterr().err
    assert "erasure.json is damaged" in said and "corrupt-1" in said
