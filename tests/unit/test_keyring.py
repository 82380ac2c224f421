"""The key ring on disk: kept, replaced only when it changes, set aside when it does not count."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from firstboot.activate import chain as trust
from firstboot.activate import keyring
from firstboot.base import files
from firstboot.base.clock import from_rfc3339
from firstboot.base.errors import Invalid, LocalFault
from firstboot.base.layout import Layout
from firstboot.commands import trust as trust_command
from firstboot.exchange import settings as frozen
from firstboot.exchange.settings import Settings
from tests.unit.test_trust import FORGED_TWO, ONE, STRANGE_TWO, THREE, TWO, key_set, pinned, refusal

HERE = pinned()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path)
    files.make_directory(found.activation, 0o755)
    return found


def reply(*envelopes: Any) -> bytes:
    return json.dumps({"key_sets": list(envelopes)}).encode()


def on_disk(layout: Layout) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((layout.activation / "keyring.json").read_text())
    return found


def names(layout: Layout) -> list[str]:
    return sorted(os.listdir(layout.activation))


def test_a_ring_is_kept_and_comes_back(layout: Layout) -> None:
    """What was accepted is in force in the next process; everybody may read it, and the heartbeat
    finds its version.
    """
    after = keyring.offer(layout, HERE, reply(ONE, TWO, THREE, STRANGE_TWO))
    assert (after.version, refusal(after)) == (3, "rolled_back")
    assert keyring.current(layout, HERE) == after == keyring.look(layout, HERE)[0]
    assert stat.S_IMODE((layout.activation / "keyring.json").stat().st_mode) == 0o644
    stored = on_disk(layout)
    assert (stored["version"], stored["source"], stored["refused"]["code"]) == (
        3,
        "tls",
        "rolled_back",
    )
    assert stored["envelope"] == THREE
    assert names(layout) == ["keyring.json"]


def test_it_is_written_only_when_it_changed(layout: Layout) -> None:
    """A daily answer with nothing new costs no write, nor does the same refusal once more."""
    keyring.offer(layout, HERE, reply(ONE))
    keyring.offer(layout, HERE, reply(STRANGE_TWO))
    before = (layout.activation / "keyring.json").stat()
    for again in (reply(STRANGE_TWO), reply(ONE, STRANGE_TWO)):
        keyring.offer(layout, HERE, again)
        keyring.current(layout, HERE)
    assert (layout.activation / "keyring.json").stat().st_ino == before.st_ino
    assert refusal(keyring.offer(layout, HERE, reply(ONE))) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"key_sets": {}}',
        b'{"key_sets": []',
        b'{"key_sets":[],"key_sets":[]}',
        b"\xff",
        b'{"key_sets": [' + b"0," * 1024 + b"0]}",
    ],
)
def test_an_answer_that_is_none_changes_no_key(layout: Layout, raw: bytes) -> None:
    """The agent's bytes are remembered as malformed and nothing else."""
    keyring.offer(layout, HERE, reply(ONE))
    after = keyring.offer(layout, HERE, raw)
    assert (after.version, refusal(after)) == (1, "malformed")


def test_a_damaged_ring_is_set_aside_and_the_anchor_counts(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never silently: the bytes stay, one line says it, and the enrollment reply's sets are where
    it starts over.
    """
    path = layout.activation / "keyring.json"
    enrolled = pinned(sets=[ONE])
    good = keyring.offer(layout, enrolled, reply(TWO))
    text = path.read_text()
    damaged = [b"", b"{}", text.replace('"keys"', '"kyes"').encode(), text.replace('"v": 1', '"v": "1"').encode(),
               text.replace('"active"', '"alive"').encode(), text.replace('"version": 2', '"version": true').encode(),
               text.replace('"source": "enrollment"', '"source": "heaven"').encode(),
               text.replace('"org_1"', "1").encode(), text.replace('"refused": null', '"refused": {}').encode()]  # fmt: skip
    for number, content in enumerate(damaged, 1):
        path.write_bytes(content)
        assert keyring.look(layout, enrolled)[1] == "corrupt"
        assert path.read_bytes() == content
        ring = keyring.current(layout, enrolled)
        assert (ring.version, ring.source) == (1, trust.ENROLLMENT)
        assert (layout.activation / f"keyring.json.corrupt-{number}").read_bytes() == content
        assert "damaged" in capsys.readouterr().err
    assert keyring.offer(layout, enrolled, reply(TWO)) == good


@pytest.mark.parametrize(
    "lost", ["damaged", "gone", "gone with the sequence", "gone and set aside"]
)
def test_a_lost_ring_that_only_tls_could_start_again_is_closed(
    layout: Layout, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever is the agent's user here chooses no keys for its second start: nothing counts until
    the operator's reset.
    """
    enrolled(layout, HERE)
    keyring.offer(layout, HERE, reply(ONE))
    path = layout.activation / "keyring.json"
    if lost == "damaged":
        path.write_bytes(b"{")
    elif lost != "gone and set aside":
        path.unlink()
        (
            layout.activation / ("sequence.json" if lost == "gone" else "sequence.json.corrupt-1")
        ).write_bytes(b"{}")
    else:
        path.rename(layout.activation / "keyring.json.corrupt-1")
    trust_command.show(layout, frozen.load(layout), as_json=False)
    shown = capsys.readouterr().out
    assert "no signature is trusted" in shown and "damaged" in shown and "trust --reset" in shown
    before = names(layout)
    ring = keyring.current(layout, HERE)
    said = capsys.readouterr().err
    assert "no signature is trusted" in said and "trust --reset" in said
    assert (ring.source, ring.keys, refusal(ring)) == (trust.CLOSED, (), "damaged")
    assert sorted(
        {*before, "keyring.json", *(["keyring.json.corrupt-1"] if lost == "damaged" else [])}
    ) == names(layout)
    for raw in (reply(ONE, TWO), reply(STRANGE_TWO), b"nonsense"):
        assert keyring.offer(layout, HERE, raw, now=0.0) == ring == keyring.current(layout, HERE)
    assert on_disk(layout)["refused"]["code"] == "damaged"
    capsys.readouterr()
    trust_command.reset(layout, frozen.load(layout), as_json=True)
    assert json.loads(capsys.readouterr().out)["source"] == "tls"
    assert keyring.offer(layout, HERE, reply(ONE, TWO)).version == 2


def test_a_closed_ring_opens_to_what_root_has_now(layout: Layout) -> None:
    """Pins, the reply of a new enrollment, or another environment: none of them is the agent's to
    bring.
    """
    path = layout.activation / "keyring.json"
    path.write_bytes(b"{")
    assert keyring.current(layout, HERE).source == trust.CLOSED
    closed = path.read_bytes()
    elsewhere = Settings(org_id="org_1", project_id="prj_1", environment_id="env_2")
    for settings, source, label in ((pinned(1), trust.PINNED, "repinned"), (pinned(sets=[ONE]), trust.ENROLLMENT, "replaced"),
                                    (elsewhere, trust.TLS, "foreign")):  # fmt: skip
        path.write_bytes(closed)
        assert keyring.current(layout, settings).source == source
        assert (layout.activation / f"keyring.json.{label}-1").read_bytes() == closed


def test_another_environments_ring_does_not_count(layout: Layout) -> None:
    """A host that was enrolled elsewhere before trusts the keys of its new environment alone."""
    keyring.offer(layout, HERE, reply(ONE, TWO))
    elsewhere = Settings(org_id="org_1", project_id="prj_1", environment_id="env_2")
    assert keyring.current(layout, elsewhere) == trust.unanchored(
        elsewhere, keyring.place_of(elsewhere)
    )
    assert names(layout) == ["keyring.json", "keyring.json.foreign-1"]


def test_pins_that_come_later_count(layout: Layout) -> None:
    """What an operator pins must not stay without effect because TLS was trusted before; the same
    pins keep the ring.
    """
    keyring.offer(layout, HERE, reply(ONE, TWO, STRANGE_TWO))
    assert keyring.current(layout, pinned(2)).version == 0
    assert names(layout) == ["keyring.json", "keyring.json.repinned-1"]
    after = keyring.offer(layout, pinned(2), reply(ONE, TWO, THREE))
    assert (after.version, after.source) == (3, trust.PINNED)
    assert keyring.current(layout, pinned(2)) == after
    assert keyring.current(layout, HERE) == after


def test_the_same_pins_in_another_order_keep_the_ring(layout: Layout) -> None:
    """Nothing is set aside, nothing is written."""
    after = keyring.offer(layout, pinned(1, 9), reply(ONE, TWO))
    before = (layout.activation / "keyring.json").stat()
    assert keyring.current(layout, pinned(9, 1)) == after
    assert (layout.activation / "keyring.json").stat().st_ino == before.st_ino
    assert names(layout) == ["keyring.json"]


def test_pins_that_change_bring_no_older_set_back(layout: Layout) -> None:
    """Added ones are kept with the ring; with one that goes the version is kept, over restarts,
    until a newer set follows.
    """
    keyring.offer(layout, pinned(1), reply(ONE, TWO, THREE))
    assert keyring.current(layout, pinned(1, 9)).version == 3
    assert [one["kid"] for one in on_disk(layout)["pins"]] == ["kid-1", "kid-9"]
    assert names(layout) == ["keyring.json"]
    ring = keyring.current(layout, pinned(9))
    assert (ring.version, ring.floor) == (0, 3)
    assert names(layout) == ["keyring.json", "keyring.json.repinned-1"]
    older, newer = key_set(3, 9, k9="active"), key_set(4, 9, k9="active")
    refused = keyring.offer(layout, pinned(9), reply(ONE, older))
    assert (refused.version, refusal(refused)) == (0, "rolled_back")
    assert keyring.offer(layout, pinned(9), reply(older, newer)).version == 4


def test_a_ring_that_an_earlier_release_wrote_counts(layout: Layout) -> None:
    """It has no `floor`."""
    after = keyring.offer(layout, HERE, reply(ONE, TWO))
    stored = on_disk(layout)
    del stored["floor"]
    (layout.activation / "keyring.json").write_text(json.dumps(stored))
    assert keyring.current(layout, HERE) == after


def test_a_key_past_its_end_brings_no_set_whatever_the_clock(layout: Layout) -> None:
    """With a trusted time it is refused; without one it waits, and nothing is written."""
    end = "2026-06-01T12:00:00Z"
    ring = keyring.offer(layout, HERE, reply(key_set(1, 1, k1="active", ends={1: end})))
    assert keyring.offer(layout, HERE, reply(TWO), now=None) == ring
    assert refusal(keyring.offer(layout, HERE, reply(TWO), now=from_rfc3339(end))) == "broken_chain"
    assert keyring.offer(layout, HERE, reply(TWO), now=from_rfc3339(end) - 1).version == 2


def test_without_a_place_nothing_counts(layout: Layout) -> None:
    """Settings that name no environment are somebody's to complete."""
    with pytest.raises(Invalid):
        keyring.current(layout, Settings())


def test_the_runtimes_document_is_a_key_set(layout: Layout) -> None:
    """The vendor's runtime finds version and keys, the retired ones for its approvals."""
    ring = keyring.offer(layout, HERE, reply(ONE, TWO, THREE))
    document = keyring.public(ring)
    assert set(document) == {"version", "keys"} and document["version"] == 3
    assert {one["kid"]: one["status"] for one in document["keys"]} == {
        "kid-1": "retired",
        "kid-2": "active",
    }


# -- the operator's command


def enrolled(layout: Layout, settings: Settings) -> None:
    files.write_json(layout.settings, frozen.freeze(settings), mode=0o644)


def test_a_broken_chain_is_shown_and_left_by_a_reset(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by way of the enrollment reply, which would lead into it again; the old ring is kept."""
    settings = pinned(sets=[ONE])
    enrolled(layout, settings)
    keyring.offer(layout, settings, reply(STRANGE_TWO))
    assert trust_command.show(layout, frozen.load(layout), as_json=False) == 0
    shown = capsys.readouterr().out
    for part in (
        "version 1",
        "the enrollment reply",
        "kid-1 active",
        "broken_chain",
        "trust --reset",
    ):
        assert part in shown
    old = (layout.activation / "keyring.json").read_bytes()
    files.make_directory(layout.inbox, 0o700)
    (layout.inbox / "keysets.json").write_bytes(reply(FORGED_TWO))
    assert trust_command.reset(layout, frozen.load(layout), as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["version"], document["source"], document["keys"], document["refused"]) == (
        0,
        "tls",
        [],
        None,
    )
    assert document["set_aside"] == "/var/lib/byteor/activation/keyring.json.reset-1"
    assert (layout.activation / "keyring.json.reset-1").read_bytes() == old
    # What the agent had brought before does not become the first answer after it.
    ring = keyring.offer(layout, settings, (layout.inbox / "keysets.json").read_bytes())
    assert (ring.version, ring.refused) == (0, None)
    assert (
        keyring.offer(layout, settings, reply(ONE, STRANGE_TWO)).for_deployments(None)[0].kid
        == "kid-9"
    )


def test_a_reset_goes_back_to_the_pins(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """TLS does not come in where the operator pinned a key."""
    enrolled(layout, pinned(1))
    keyring.offer(layout, pinned(1), reply(ONE, TWO))
    trust_command.reset(layout, frozen.load(layout), as_json=False)
    assert "pinned key" in capsys.readouterr().out
    assert keyring.offer(layout, pinned(1), reply(STRANGE_TWO)).version == 0
    assert keyring.offer(layout, pinned(1), reply(ONE, TWO)).version == 2


def test_a_planted_inbox_does_not_stop_a_reset(layout: Layout, tmp_path: Path) -> None:
    """The agent cannot make root write somewhere else, nor keep the operator from starting over."""
    enrolled(layout, HERE)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keysets.json").write_bytes(b"kept")
    files.make_directory(layout.agent, 0o700)
    layout.inbox.symlink_to(outside)
    assert trust_command.reset(layout, frozen.load(layout), as_json=True) == 0
    assert (outside / "keysets.json").read_bytes() == b"kept"


def test_showing_changes_nothing(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither before there is a ring nor where it is damaged; without an enrollment it says so."""
    with pytest.raises(LocalFault, match="not enrolled"):
        trust_command.show(layout, frozen.load(layout), as_json=False)
    enrolled(layout, pinned(sets=[ONE, TWO]))
    trust_command.show(layout, frozen.load(layout), as_json=False)
    assert "version 2" in capsys.readouterr().out
    assert names(layout) == []
    (layout.activation / "keyring.json").write_bytes(b"{")
    trust_command.show(layout, frozen.load(layout), as_json=False)
    shown = capsys.readouterr()
    assert "starts over" in shown.out and "damaged" in shown.err
    assert names(layout) == ["keyring.json"]


def test_a_keys_end_is_shown(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """Before and after it; the JSON has what a program needs."""
    enrolled(layout, HERE)
    ends = {1: "2020-01-01T00:00:00Z", 2: "2100-01-01T00:00:00Z"}
    keyring.offer(layout, HERE, reply(key_set(1, 2, ends=ends, k1="active", k2="active")))
    trust_command.show(layout, frozen.load(layout), as_json=False)
    shown = capsys.readouterr().out
    assert (
        "kid-1 active, ended 2020-01-01T00:00:00Z" in shown
        and "kid-2 active until 2100-01-01T00:00:00Z" in shown
    )
    trust_command.show(layout, frozen.load(layout), as_json=True)
    assert json.loads(capsys.readouterr().out)["keys"][0]["not_after"] == "2020-01-01T00:00:00Z"
