"""The recipes refuse what a pattern makes of their arguments, before anything is built."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "image-build/recipes"
DEBS = ["a_1_all.deb", "a_2_all.deb"]


@pytest.mark.parametrize(
    "recipe, words",
    [
        ("provision", [*DEBS]),
        ("provision", [*DEBS, "firstboot.yaml"]),
        ("provision", ["firstboot.yaml"]),
        ("mmdebstrap", [*DEBS, "firstboot.yaml"]),
        ("mmdebstrap", [*DEBS, "firstboot.yaml", "out"]),
        ("mmdebstrap", DEBS[:1]),
        ("virt-customize", ["disk.qcow2", *DEBS]),
        ("virt-customize", ["disk.qcow2", *DEBS, "firstboot.yaml"]),
        ("buildah", [*DEBS, "localhost/agent"]),
        ("buildah", DEBS[:1]),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    recipe: str, words: list[str], tmp_path: Path
) -> None:
    """No command is on this path: a recipe that goes on ends otherwise than with 2."""
    done = subprocess.run(
        ["/bin/sh", str(RECIPES / recipe), *words],
        env={"PATH": "/nowhere"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and f"usage: {recipe} " in done.stderr, done
    assert [*tmp_path.iterdir()] == []
