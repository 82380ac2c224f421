"""The agent for minutes, with something wrong at every second request: afterwards it is as it was,
and nothing leaked.

Its times are a sixtieth of the real ones (a beat each half second), so that twenty minutes hold
what takes a host most of a day. TEST_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.host import Host

SCALE = 60.0
# The resident process as installed, but for its clockwork.
_SCALED = f"""
import sys
from firstboot.agent import deployments, download, keysets, reports, schedule, submit, supervisor
supervisor.DEFAULT_PERIOD_S /= {SCALE}
deployments.PERIOD_S /= {SCALE}
keysets.RETRY_S /= {SCALE}
keysets.URGENT_S /= {SCALE}
reports.PERIOD_S /= {SCALE}
download.PERIOD_S /= {SCALE}
submit.AGAIN_S /= {SCALE}
schedule.BACKOFF_BASE_S /= {SCALE}
schedule.REFUSED_CAP_S /= {SCALE}
schedule.ASKED_EVERY_S /= {SCALE}
schedule.APART_S /= {SCALE}
from firstboot.cli import agent_main
sys.exit(agent_main())
"""
WARM_UP_S = 6.0
GROWTH = 1.05
BUNDLE_BYTES = 1 << 20
NEWS_EVERY_S = 4.0
BAD_TLS = ("expired", "not_yet_valid", "wrong_name", "unknown_ca", "handshake_failure")


def unleash(plane: Any, chance: random.Random) -> None:
    """About every second request meets a fault; every way in which an answer can be bad, before and
    after the commit.
    """

    def fault(kind: str, probability: float, *, operation: str = "*", **options: Any) -> None:
        plane.fault(
            operation, kind, probability=probability, seed=chance.randrange(1 << 32), **options
        )

    for status in (500, 502, 503, 504, 408):
        fault(
            "problem",
            0.03,
            status=status,
            code="unavailable",
            when=chance.choice(("before", "after")),
        )
    fault("problem", 0.05, status=429, code="rate_limited", headers={"Retry-After": "1"})
    fault("problem", 0.02, status=429, code="rate_limited", headers={"Retry-After": "-1"})
    fault("problem", 0.02, status=401, code="key_expired")
    fault("problem", 0.02, status=403, code="scope_missing")
    fault("drop", 0.04, when="before", reset=True)
    fault("drop", 0.04, when="after")
    fault("cut", 0.04, at=chance.randrange(1, 300))
    fault("delay", 0.05, seconds=0.4)
    fault("drip", 0.02, count=4, every_s=0.05)
    fault("html", 0.03, status=chance.choice((200, 403, 502)))
    fault("garbage", 0.03)
    fault("wrong_length", 0.03)
    fault("redirect", 0.02)
    fault("date", 0.03, offset_s=chance.choice((-86400.0, 7200.0)))
    for mode in BAD_TLS:
        fault("tls", 0.05, mode=mode)


def held(pid: int) -> dict[str, float]:
    """What a process could leak."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Rss:\s+(\d+) kB", rollup, re.M)
    assert found
    return {
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "rss_kib": int(found.group(1)),
    }


@contextlib.contextmanager
def agent(host: Host, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _SCALED, "run", "--root", str(host.root)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd="/",
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def healthy(host: Host) -> bool:
    shown = json.loads(host.path("run/byteor-agent/status.json").read_text())
    return all(loop["outcome"] == "done" for loop in shown["loops"].values())


def active(host: Host) -> Any:
    shown = json.loads(host.path("run/byteor-agent/status.json").read_text())
    return (shown["deployment"] or {}).get("deployment_id")


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "seconds",
    [14, pytest.param(120, marks=pytest.mark.minutes), pytest.param(1200, marks=pytest.mark.slow)],
)
def test_random_faults_leave_nothing_behind(
    tmp_path: Path, control_plane: Any, seconds: int
) -> None:
    """After a soak in faults the agent is healthy, holds what it held, never repeated a number, and
    kept its identity.
    """
    seed = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"TEST_SEED={seed}")
    host, log = Host(tmp_path / "root", control_plane), tmp_path / "log"
    host.defaults(activation={"window_s": 0})
    host.token(host.mint())
    assert host.run().code == 0
    sealed = host.sealed()
    chance = random.Random(seed)
    control_plane.deploy({"spec.kv": b"n = 0\n", "data.bin": chance.randbytes(BUNDLE_BYTES)})
    with agent(host, log) as process:
        control_plane.wait_for(lambda: control_plane.reports())  # what is used once is loaded
        unleash(control_plane, chance)
        time.sleep(WARM_UP_S)
        before = held(process.pid)
        until, made = time.monotonic() + seconds - WARM_UP_S, {}
        while time.monotonic() < until:
            control_plane.rotate(retire=chance.choice([[], ["old"]]))
            made = control_plane.deploy(
                {"spec.kv": b"n = 1\n", "data.bin": chance.randbytes(BUNDLE_BYTES)}
            )
            time.sleep(NEWS_EVERY_S)
        assert process.poll() is None, log.read_text()[-2000:]
        row = control_plane.agents()[0]
        hits = sum(fault["hits"] for fault in control_plane.faults())
        assert hits > seconds / 4 and row["heartbeats"] > seconds / 8, (hits, row["heartbeats"])
        control_plane.clear_faults()
        control_plane.wait_for(lambda: active(host) == made["deployment_id"], limit_s=90)
        control_plane.wait_for(
            lambda: control_plane.reports()[-1]["deployment_id"] == made["deployment_id"],
            limit_s=90,
        )
        # A loop that was refused last pauses for up to an hour, here a minute.
        control_plane.wait_for(lambda: healthy(host), limit_s=90)
        control_plane.wait_for(
            lambda: control_plane.agents()[0]["heartbeats"] > row["heartbeats"] + 2
        )
        after = held(process.pid)
        print(f"{hits} faults, {row['heartbeats']} beats, before {before}, after {after}")
        assert after["threads"] <= before["threads"]
        # One kept-alive connection for each loop may come or go.
        assert after["descriptors"] <= before["descriptors"] + after["threads"] - 1
        assert after["rss_kib"] <= before["rss_kib"] * GROWTH
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-2000:]
    # That no number came twice or late, the plane itself records as a violation, which fails the
    # test.
    sequences = [
        json.loads(request["body"])["sequence"] for request in control_plane.requests("heartbeat")
    ]
    assert sequences == sorted(set(sequences))
    assert host.sealed() == sealed
    assert "Traceback" not in log.read_text()
    assert len(control_plane.agents()) == 1
