"""openapi.yaml is true: schemathesis finds nothing against the running control plane."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.controlplane import contract

SEARCH = Path(__file__).with_name("schemathesis_search.py")


@pytest.mark.parametrize("examples", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.timeout(1200)
def test_schemathesis_finds_nothing(examples: int, tmp_path: Path) -> None:
    """In a pytest of its own: only there does schemathesis cost each worker its eight seconds."""
    try:
        version = metadata.version("schemathesis")
    except metadata.PackageNotFoundError:
        version = "0"
    # Older ones, all that Python 3.9 gets, want 406 for a missing User-Agent.
    if tuple(map(int, version.split(".")[:2])) < (4, 30):
        pytest.skip("needs schemathesis 4.30, hence Python 3.10")
    words = ["-q", "-p", "schemathesis.pytest.plugin", f"--basetemp={tmp_path}/search", SEARCH]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        env={**os.environ, "EXAMPLES": str(examples)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(contract.operations())} passed" in done.stdout, done.stdout
