"""The activator as a child: waited for, one at a time, ended with the agent; and how long its
silence is none.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from firstboot.agent import submit
from firstboot.agent.inbox import SILENT_IN_ACTIVATION_S, SILENT_S, Inbox
from firstboot.agent.submit import Child, PathUnit, choose
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from tests.integration.loops import Decides
from tests.unit.test_deployments_loop import Moment


def child(tmp_path: Path, code: str, finished: Any = lambda: None) -> Child:
    made = Child(Layout(tmp_path), config=None, finished=finished)
    made._command = [sys.executable, "-c", code]
    return made


def test_it_is_waited_for_and_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The watchdog is told to be patient before; what it prints is nobody's; its failure is a line
    of ours.
    """
    told: list[str] = []
    one = child(
        tmp_path,
        "print('noise'); open('done', 'w'); raise SystemExit(7)",
        lambda: told.append("finished"),
    )
    one._command[2] = one._command[2].replace("'done'", repr(str(tmp_path / "done")))
    one.start(lambda for_s: told.append(f"alive for {for_s / 3600:.0f} h"))
    assert told == ["alive for 6 h", "finished"] and (tmp_path / "done").exists()
    out, err = capfd.readouterr()
    assert "noise" not in out + err and "exit_code=7" in err


def test_two_loops_that_ask_start_one_after_the_other(tmp_path: Path) -> None:
    """Never two at once."""
    lock = tmp_path / "lock"
    code = f"import os, time; fd = os.open({str(lock)!r}, os.O_CREAT | os.O_EXCL); time.sleep(0.3); os.unlink({str(lock)!r})"
    done: list[int] = []
    one = child(tmp_path, code, lambda: done.append(1))
    threads = [threading.Thread(target=one.start, args=(lambda for_s: None,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 3 and one._process is not None and one._process.returncode == 0


def test_it_ends_with_the_agent_and_is_not_started_after(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM at once, wherever it is: its journal says where to go on."""
    one = child(tmp_path, f"import time; open({str(tmp_path / 'began')!r}, 'w'); time.sleep(60)")
    thread = threading.Thread(target=one.start, args=(lambda for_s: None,))
    thread.start()
    pause = threading.Event()
    while not (tmp_path / "began").exists():
        assert not pause.wait(0.02) and thread.is_alive()
    one.end()
    thread.join(5)
    assert not thread.is_alive()
    (tmp_path / "began").unlink()
    one.start(lambda for_s: None)
    assert not (tmp_path / "began").exists()
    assert "did not do its part" not in capfd.readouterr().err


def test_a_child_that_cannot_be_started_is_this_hosts_fault(tmp_path: Path) -> None:
    """Said, and tried again by the loop."""
    one = child(tmp_path, "")
    one._command[0] = str(tmp_path / "no-such-python")
    with pytest.raises(LocalFault, match="cannot run the activator"):
        one.start(lambda for_s: None)


@pytest.mark.parametrize(
    ("root", "booted", "kind"), [("/", True, PathUnit), ("/", False, Child), ("/tree", True, Child)]
)
def test_a_host_with_systemd_has_its_path_unit(
    monkeypatch: pytest.MonkeyPatch, root: str, booted: bool, kind: type
) -> None:
    """Everything else a child, which is told where its settings are when nobody froze any."""
    monkeypatch.setattr(submit.systemd, "booted", lambda: booted)
    found = choose(Layout(Path(root)), config=Path("/c.yaml"), finished=lambda: None)
    assert type(found) is kind
    if isinstance(found, Child):
        assert found._command[1:] == [
            "-m",
            "firstboot",
            "agent",
            "activate",
            "--root",
            root,
            "--config",
            "/c.yaml",
        ]


def test_an_activation_in_progress_may_take_its_time(tmp_path: Path) -> None:
    """A health gate of an hour is no silence; an activator that is gone is one after some
    minutes.
    """
    layout, clock = Layout(tmp_path), Moment()
    there = Decides(layout)
    there.silent = True
    inbox = Inbox(layout, there, clock=clock)
    inbox.request(lambda for_s: None)
    clock.now += SILENT_S
    assert [problem.code for problem in inbox.problems()] == ["activator_silent"]
    layout.activation.mkdir(parents=True)
    (layout.activation / "journal.json").write_text("{}")
    assert inbox.problems() == []
    clock.now += SILENT_IN_ACTIVATION_S
    assert [problem.code for problem in inbox.problems()] == ["activator_silent"]
