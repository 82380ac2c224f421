"""The Pythons to measure: this one, and Debian's with Debian's libraries, for which the memory
figure is meant.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEBIAN = "/usr/bin/python3"
TOP = Path(__file__).resolve().parents[2]
_VERSIONS = (
    "import sys, requests, urllib3, yaml, cryptography;"
    "print('Python %d.%d.%d' % sys.version_info[:3], 'requests', requests.__version__, 'urllib3', urllib3.__version__,"
    " 'cryptography', cryptography.__version__, 'PyYAML', yaml.__version__)"
)


@dataclass(frozen=True)
class Interpreter:
    """`name` as the table has it; `said`: versions, for the head of the output."""

    name: str
    python: str
    path: tuple[str, ...]
    said: str

    def env(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {**clean, "PYTHONPATH": os.pathsep.join(self.path)} if self.path else clean

    def command(self, name: str, *arguments: str, before: str = "") -> list[str]:
        """One of the two commands, as its entry point calls it; `before`: statements that run
        first.
        """
        main = {"byteor-agent": "agent_main", "byteor-firstboot": "firstboot_main"}[name]
        code = f"import sys\nfrom firstboot.cli import {main}\n{before}\nsys.argv[0] = {name!r}\nsys.exit({main}())"
        return [self.python, "-c", code, *arguments]


def _versions(python: str, path: tuple[str, ...]) -> str | None:
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        "PYTHONPATH": os.pathsep.join(path),
    }
    done = subprocess.run(
        [python, "-c", _VERSIONS], env=env, cwd="/", capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _libraries() -> list[tuple[str, ...]]:
    """Where Debian's libraries may be: installed, or in a cached root of the boot tests."""
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "byteor-firstboot"
        / "roots"
    )
    return [(), *((str(found),) for found in sorted(cache.glob("*/usr/lib/python3/dist-packages")))]


def _environment(directory: Path, path: tuple[str, ...]) -> str:
    """Make an environment whose Python finds what stands in `path`; return that Python.

    Not PYTHONPATH, which the agent's children ignore: they import nothing from their caller.
    """
    options = ["--without-pip", "--system-site-packages"]
    subprocess.run([DEBIAN, "-m", "venv", *options, str(directory)], check=True)
    (packages,) = directory.glob("lib/python3*/site-packages")
    (packages / "measured.pth").write_text("\n".join(path) + "\n")
    return str(directory / "bin" / "python")


def found(scratch: Path) -> tuple[list[Interpreter], list[str]]:
    """Those there are, and sentences on those there are not. `scratch` gets a compiled copy of the
    package for Debian's.
    """
    interpreters = [Interpreter("venv", sys.executable, (), _versions(sys.executable, ()) or "")]
    if not Path(DEBIAN).exists():
        return interpreters, [f"no {DEBIAN}: no column for Debian's Python"]
    copy = scratch / "debian"
    shutil.copytree(
        TOP / "firstboot", copy / "firstboot", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run([DEBIAN, "-m", "compileall", "-q", str(copy)], check=True)
    for libraries in _libraries():
        versions = _versions(DEBIAN, libraries)
        if versions:
            where = f" (libraries: {libraries[0]})" if libraries else ""
            python = _environment(scratch / "python", (str(copy), *libraries))
            return [*interpreters, Interpreter("Debian", python, (), versions + where)], []
    lacks = (
        f"{DEBIAN} lacks python3-requests, python3-yaml or python3-cryptography: no column for it"
    )
    return interpreters, [f"{lacks}, and 30 MiB is its figure"]
