"""The drawing of the house: who may import whom, one door to each dangerous library, sizes, words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import firstboot

TOP = Path(__file__).resolve().parents[2]
SOURCES = sorted((TOP / "firstboot").rglob("*.py"))

GROUND = {"errors", "secret", "clock", "files", "trees", "keeping", "layout", "locks", "systemd", "log", "frozen", "shapes",
          "settings", "redaction", "accounts", "partial"}
CONVERSATION = {"wire", "bodies", "bundles", "multipart", "proxies", "trust", "deadline", "lean", "transport", "api"}
SECRETS = {"envelope", "sealkey", "hostfacts", "identity", "handover", "launch"}

# Folder -> the folders and groups that it may import from (design.md, section 1).
TABLE = {
    "ground": {"ground"},
    "conversation": {"ground", "conversation"},
    "secrets": {"ground", "secrets"},
    "erase": {"ground", "erase"},
    "provision": {"ground", "conversation", "secrets", "erase", "provision"},
    "agent": {"ground", "conversation", "agent", "handover"},
    "signatures": {"ground", "wire"},
    "activate": {"ground", "signatures", "wire", "activate"},
    "cli": {"ground", "conversation", "secrets", "erase", "provision", "agent", "activate", "cli"},
}

# Library or module -> the modules that may import it.
DOORS = {
    "requests": {"transport"},
    "urllib3": {"transport"},
    "cryptography": {"envelope", "sealkey", "signatures"},
    "yaml": {"settings", "provision.userdata"},
    "time": {"clock"},
    "random": {"clock"},
    "logging": {"transport"},
}

# Calls that change a file system: only `files` and `trees` make them.
WRITING = {"rename", "replace", "unlink", "remove", "rmdir", "mkdir", "makedirs", "chmod", "chown", "truncate", "link",
           "symlink", "write_text", "write_bytes", "touch", "symlink_to", "fchmod", "fchown", "pwrite"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(TOP / "firstboot").with_suffix("").parts)


def group_of(name: str) -> str:
    first = name.split(".")[0]
    if name.endswith("__main__"):  # an entry point, of whatever folder
        return "cli"
    if first in ("provision", "erase", "agent", "activate", "signatures"):
        return first
    for group, members in (("ground", GROUND), ("conversation", CONVERSATION), ("secrets", SECRETS)):
        if first in members:
            return group
    return "cli"


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_installed_package_is_tested_and_not_the_checkout() -> None:
    """A file missing from the wheel must be missing here too."""
    assert TOP / "firstboot" not in Path(firstboot.__file__).resolve().parents


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_follow_the_table(path: Path) -> None:
    """Imports point downward: the agent never reaches what root does, the ground knows no policy."""
    name = name_of(path)
    modules = {name_of(source) for source in SOURCES}
    allowed = TABLE[group_of(name)]
    for imported in imports_of(path):
        target = imported[len("firstboot."):] if imported.startswith("firstboot.") else ""
        if target in modules and target != "__init__":
            assert group_of(target) in allowed or target in allowed, f"{name} imports {target}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_each_dangerous_library_has_one_door(path: Path) -> None:
    """requests, cryptography, yaml, time and random are imported where the design says, and nowhere else."""
    for imported in imports_of(path):
        door = DOORS.get(imported.split(".")[0])
        assert door is None or name_of(path) in door, f"{name_of(path)} imports {imported}"


WRITERS = ("files", "trees", "partial", "keeping")


@pytest.mark.parametrize("path", [source for source in SOURCES if name_of(source) not in WRITERS], ids=name_of)
def test_only_files_writes(path: Path) -> None:
    """Durability and privacy are decided in one module; `keeping` only renames."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            writes = node.func.attr in WRITING and (owner in ("os", "shutil") or node.func.attr not in ("replace", "remove"))
            assert not writes or owner == "dataclasses", f"{name_of(path)}:{node.lineno} calls {owner}.{node.func.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "'r'"
            assert not set(mode) & set("wax+"), f"{name_of(path)}:{node.lineno} opens for writing"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_is_for_and_stays_readable(path: Path) -> None:
    """A first line of responsibility, modules of at most 300 lines, functions of at most 60, no vague names."""
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert text.count("\n") <= 300, text.count("\n")
    assert path.stem not in {"util", "utils", "common", "helpers", "manager", "handler"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or node.lineno) - node.lineno < 60, node.name


def test_the_resident_agent_loads_neither_yaml_nor_cryptography() -> None:
    """9 MiB and a wide attack surface have no business in the process that stays."""
    code = "import sys, firstboot.agent.supervisor; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "requests" in modules
    assert not {"yaml", "cryptography", "firstboot.identity", "firstboot.provision"} & set(modules)
    assert not {"chardet", "charset_normalizer"} & set(modules)


def test_a_guess_of_an_encoding_is_still_made_where_somebody_asks() -> None:
    """`lean` leaves requests whole: in a process that has our transport, others' code works as before."""
    code = "import firstboot.transport, requests; r = requests.Response(); r._content = b'a' * 9; print(r.apparent_encoding)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ascii"


def test_only_the_three_environment_names_of_the_contract_appear() -> None:
    """Older generic names must not come back through an example or a unit."""
    files = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True).stdout.split()
    allowed = {"BYTEOR_API_BASE_URL", "BYTEOR_AGENT_ID", "BYTEOR_AGENT_API_KEY"}
    generic = re.compile(r"(?<![A-Z_])(?:BYTEOR_[A-Z_]+|(?:[A-Z]+_)?(?:API_BASE_URL|AGENT_API_KEY|AGENT_ID))\b")
    for name in files:
        path = TOP / name
        if not path.is_file() or path.name in ("test_structure.py", "test_units.py"):
            continue
        for found in generic.findall(path.read_text(errors="replace")):
            assert found in allowed, f"{name}: {found}"
