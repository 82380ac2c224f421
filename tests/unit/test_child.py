"""The activator as a child: one at a time, reaped, ended with the agent; and how long its silence
is none.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from firstboot.agent import submit
from firstboot.agent.submit import (
    SILENT_IN_ACTIVATION_S,
    SILENT_S,
    Activator,
    Child,
    Inbox,
    choose,
)
from firstboot.base.errors import LocalFault
from firstboot.base.layout import Layout
from tests.integration.loops import Decides
from tests.unit.test_deployments_loop import Moment


def child(tmp_path: Path, code: str) -> Child:
    made = Child(Layout(tmp_path), config=None)
    made._command = [sys.executable, "-c", code]
    return made


def ended(one: Child) -> None:
    """Wait until it was reaped."""
    pause = threading.Event()
    for _ in range(1500):
        if one.reap():
            return
        pause.wait(0.02)
    raise AssertionError("it does not end")


def test_nobody_waits_for_it_and_its_end_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its failure is one line of ours; what it prints is nobody's."""
    one = child(tmp_path, "print('noise'); import sys; sys.stdin.read(); raise SystemExit(7)")
    assert not one.reap()
    one.start(anew=True)
    ended(one)
    assert not one.reap()
    out, err = capfd.readouterr()
    assert "noise" not in out + err and "exit_code=7" in err


def test_what_is_asked_while_it_runs_starts_it_once_more(tmp_path: Path) -> None:
    """Never two at once, and once for all that was asked; looking after it starts nothing."""
    lock, log = tmp_path / "lock", tmp_path / "log"
    code = (
        f"import os, time; fd = os.open({str(lock)!r}, os.O_CREAT | os.O_EXCL); time.sleep(0.3);"
        f"os.unlink({str(lock)!r}); open({str(log)!r}, 'a').write('x')"
    )
    one = child(tmp_path, code)
    for _ in range(3):
        one.start(anew=True)
    ended(one)
    one.start(anew=False)
    ended(one)
    assert log.read_text() == "xx" and one._process is None


def test_it_ends_with_the_agent_and_is_not_started_after(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM at once, wherever it is: its journal says where to go on."""
    one = child(tmp_path, "import time; time.sleep(60)")
    one.start(anew=True)
    one.start(anew=True)
    one.end()
    ended(one)
    one.start(anew=True)
    assert one._process is None
    assert "failed" not in capfd.readouterr().err


def test_a_child_that_cannot_be_started_is_this_hosts_fault(tmp_path: Path) -> None:
    """Said, and retried by the task."""
    one = child(tmp_path, "")
    one._command[0] = str(tmp_path / "no-such-python")
    with pytest.raises(LocalFault, match="cannot run the activator"):
        one.start(anew=True)


@pytest.mark.parametrize(
    ("root", "booted", "kind"),
    [("/", True, Activator), ("/", False, Child), ("/tree", True, Child)],
)
def test_a_host_with_systemd_has_its_path_unit(
    monkeypatch: pytest.MonkeyPatch, root: str, booted: bool, kind: type
) -> None:
    """Everything else a child, which is told where its settings are when nobody froze any."""
    monkeypatch.setattr(submit.systemd, "booted", lambda: booted)
    found = choose(Layout(Path(root)), config=Path("/c.yaml"))
    assert type(found) is kind
    if isinstance(found, Child):
        assert found._command[1:] == [
            "-I",
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
    inbox = Inbox(layout, there, clock)
    inbox.request()
    clock.now += SILENT_S
    assert [problem.code for problem in inbox.problems()] == ["activator_silent"]
    layout.activation.mkdir(parents=True)
    (layout.activation / "journal.json").write_text("{}")
    assert inbox.problems() == []
    clock.now += SILENT_IN_ACTIVATION_S
    assert [problem.code for problem in inbox.problems()] == ["activator_silent"]


def test_a_child_that_could_not_note_its_fault_is_a_problem(tmp_path: Path) -> None:
    """Until one ends well; not while another activator is at work, nor beside its own fault."""
    codes = tmp_path / "code"
    one = child(tmp_path, f"raise SystemExit(int(open({str(codes)!r}).read()))")
    inbox = Inbox(Layout(tmp_path), one, Moment())
    for code, said in ((7, ["activation_failing"]), (6, []), (1, ["activation_failing"]), (0, [])):
        codes.write_text(str(code))
        one.start(anew=True)
        ended(one)
        assert [problem.code for problem in inbox.problems()] == said, code
    one.exit_code = 7
    inbox.layout.activation.mkdir(parents=True)
    inbox.layout.fault.write_text("{}")
    assert inbox.problems() == []
