"""How soon an agent begins: apart from all others at boot, within one period after it was killed,
later after crashes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent import startup
from firstboot.agent.heartbeat import Sequence
from firstboot.agent.signals import Signals
from firstboot.agent.supervisor import RESTART_S, Supervisor
from firstboot.api import tls
from firstboot.base import files
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.handover import SEALED, Handover
from firstboot.exchange.settings import Settings

HANDED = Handover(
    api_base_url="https://api.example", agent_id="agt_1", api_key=Secret("key-of-an-agent"), proxy=None, org_id="org_1",
    project_id="prj_1", environment_id="env_1", name="edge", enrolled_at="2026-06-01T12:00:00Z", expires_at=None, scopes=(),
    source=SEALED,
)  # fmt: skip
PERIOD_S = 30.0


@pytest.mark.parametrize(
    ("before", "least", "most"),
    [
        (None, 0.0, PERIOD_S),
        ({"running": False, "crashes": 0}, 0.0, PERIOD_S),
        ({"running": True, "crashes": 0}, 0.0, PERIOD_S - RESTART_S),
        ({"running": False, "crashes": 2}, 30.0, 30.0 + PERIOD_S),
        ({"running": "x", "crashes": "x"}, 0.0, PERIOD_S),
    ],
)
def test_the_first_beat_after(
    tmp_path: Path, before: dict[str, Any] | None, least: float, most: float
) -> None:
    """A boot or an orderly stop, a kill, two crashes, a damaged page: the splay has its own bounds,
    and uses them.
    """
    layout = Layout(tmp_path)
    layout.agent_run.mkdir(parents=True)
    layout.agent.mkdir(parents=True)
    if before is not None:
        layout.agent_status.write_text(json.dumps({"v": 1, **before}))
    seen = [
        Supervisor(layout, HANDED, Settings(heartbeat_interval_s=PERIOD_S), Signals())._splay_s
        for _ in range(20)
    ]
    assert least <= min(seen) and max(seen) <= most
    assert max(seen) - min(seen) > (most - least) / 3


def test_numbers_grow_where_none_can_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full silences no beat: by the clock, far above what was used, and reserved
    again once there is room.
    """
    layout = Layout(tmp_path)
    layout.agent.mkdir(parents=True)
    used = Sequence(layout).next()
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_json", _full)
        numbers = Sequence(layout)
        seen = [numbers.next() for _ in range(3)]
    assert (
        used < seen[0] < seen[1] < seen[2]
        and not files.read_json(layout.agent_state)["sequence_reserved"] > seen[0]
    )  # type: ignore[index]
    assert seen[2] < numbers.next() < Sequence(layout).next()


def _full(*arguments: object, **keywords: object) -> None:
    raise LocalFault("cannot write: no space left on device")


def test_the_systems_store_is_read_again_when_it_is_to_be() -> None:
    """SIGHUP: an authority that was added or removed counts from the next connection on."""
    before = tls.tls_context(None)
    assert tls.tls_context(None) is before
    tls.forget()
    assert tls.tls_context(None) is not before


def test_a_signal_after_new_settings_were_read_ends_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the reading, which may hang, is cut off; putting them to use is not."""
    layout, signals = Layout(tmp_path), Signals()
    for path in (layout.agent_run, layout.agent):
        path.mkdir(parents=True)
    supervisor = Supervisor(layout, HANDED, Settings(heartbeat_interval_s=PERIOD_S), signals)
    signals.at_once, seen = False, []

    def read(*arguments: object, **keywords: object) -> Settings:
        seen.append(signals.at_once)
        return Settings(heartbeat_interval_s=PERIOD_S)

    monkeypatch.setattr(startup, "settings_again", read)
    for worker in supervisor._workers:
        monkeypatch.setattr(worker, "wake", lambda: seen.append(signals.at_once))
    supervisor._read_settings_again()
    assert seen == [True, False, False] and not signals.at_once
