"""Without root: each command says so in one line, and nothing of it looks like a bug."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from firstboot import cli
from tests.integration.spawn import BIN

NOBODY = 65534
ROOMS = ("identity", "agent", "activation")

# What each command needs behind its word; the rest take nothing.
NEEDED = {
    "check-userdata": ["/nonexistent"],
    "exec": ["--", "true"],
    "retry": ["00000001-0000000000000000"],
    "trust": ["--reset"],
    "upload": ["/etc/hostname", "--kind", "diagnostic"],
}
COMMANDS = [
    (program, command.word)
    for program in cli.PROGRAMS
    for command in cli.PROGRAMS[program].commands
]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize(("program", "word"), COMMANDS)
def test_a_closed_directory_is_no_bug(program: str, word: str, tmp_path: Path) -> None:
    """Every command of both tables, as nobody, on a host whose state root alone may enter."""
    rooms = " ".join(f"/var/lib/byteor/{room}" for room in ROOMS)
    nobody = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
    script = f"""
        {nobody} {BIN}/python -c "" || exit 99
        mkdir -p /var/lib/byteor && mount -t tmpfs tmpfs /var/lib/byteor || exit 99
        mkdir -m 0700 {rooms}
        echo x > /var/lib/byteor/identity/credentials.sealed
        cd /
        exec {nobody} "$@"
    """
    command = [str(BIN / program), word, *NEEDED.get(word, [])]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no mount namespaces here, or an interpreter for root alone: {done.stderr}")
    assert "unexpected" not in done.stderr and "Traceback" not in done.stderr, done
    assert done.returncode != 1, done
    assert "give user id" not in done.stdout + done.stderr
    if "permission denied" in done.stderr or "only root" in done.stderr:
        assert "run as root" in done.stderr, done
