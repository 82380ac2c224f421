"""The table says what was missed, and becomes JSON and a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.picture import draw
from tests.bench.rows import Table
from tests.bench.transfers import _DOWNLOAD, _UPLOAD


def test_what_is_missed_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the median as it is shown; a least value is missed below it."""
    table = Table({"Debian": "Python 3"})
    table.add("agent idle, deployed: RSS", "Debian", [27.0, 28.0, 26.0], "MiB", 1, most=26.0)
    table.add("agent idle, deployed: wake-ups a minute", "Debian", [9.0], "", 0, most=10.0)
    table.add("peer idle: RSS", "WALinuxAgent", [40.0], "MiB", 1)
    table.add("redaction", "Debian", [19.0], "MB", 0, least=20.0)
    table.add("upload: wall beside curl", "Debian", [0.854], "x", most=0.85)
    table.note("no peers")
    missed = [line for line in capsys.readouterr().out.splitlines() if "MISSED" in line]
    assert [line.split()[0] for line in missed] == ["agent", "redaction"]
    table.save(tmp_path / "rows.json")
    saved = json.loads((tmp_path / "rows.json").read_text())
    assert saved["rows"][0]["median"] == 27.0 and saved["notes"] == ["no peers"]
    draw(table.rows, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("code", [_DOWNLOAD, _UPLOAD], ids=["download", "upload"])
def test_what_a_transfer_imports_is_there(code: str) -> None:
    """The measured programs are texts: what they name must still exist."""
    imports = "\n".join(line for line in code.splitlines() if line.startswith(("import", "from")))
    done = subprocess.run([sys.executable, "-c", imports], env=os.environ, capture_output=True)
    assert done.returncode == 0, done.stderr
