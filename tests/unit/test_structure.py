"""The drawing of the house: who may import whom, one door to each dangerous library, sizes,
words.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import firstboot
from firstboot.base import layout
from firstboot.base.layout import Layout, Row

TOP = Path(__file__).resolve().parents[2]
SOURCES = sorted((TOP / "firstboot").rglob("*.py"))

# Folder -> the folders that it may import from. `cli` and `commands` may import everything; only
# `cli` imports `commands`.
FOLDERS = {
    "base": {"base"},
    "api": {"base", "api"},
    "exchange": {"base", "exchange"},
    "identity": {"base", "exchange", "identity"},
    "activate": {"base", "exchange", "activate"},
    "agent": {"base", "api", "exchange", "agent"},
    "provision": {"base", "api", "exchange", "identity", "provision"},
    "commands": {
        "base",
        "api",
        "exchange",
        "identity",
        "activate",
        "agent",
        "provision",
        "commands",
    },
}

# Library -> the modules that may import it.
DOORS = {
    "requests": {"api.transport"},
    "urllib3": {"api.transport"},
    "cryptography": {"identity.seal", "identity.sealkey", "activate.signatures"},
    "yaml": {"provision.schema", "provision.userdata", "provision.writefiles"},
    "time": {"base.clock"},
    "random": {"base.clock"},
    "logging": {"api.transport"},
}

# Calls that change a file system: only `files` and `trees` make them.
WRITING = {
    "rename",
    "replace",
    "unlink",
    "remove",
    "rmdir",
    "mkdir",
    "makedirs",
    "chmod",
    "chown",
    "truncate",
    "link",
    "symlink",
    "write_text",
    "write_bytes",
    "touch",
    "symlink_to",
    "fchmod",
    "fchown",
    "pwrite",
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(TOP / "firstboot").with_suffix("").parts)


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


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_down(folder: str) -> None:
    """The agent never reaches what root does, `activate` never reaches the network, `base` knows no
    policy.
    """
    modules = {name_of(source) for source in SOURCES}
    for path in sorted((TOP / "firstboot" / folder).rglob("*.py")):
        if path.name == "__main__.py":
            continue
        for imported in imports_of(path):
            target = imported[len("firstboot.") :] if imported.startswith("firstboot.") else ""
            if target in modules:
                assert target.split(".")[0] in FOLDERS[folder], f"{name_of(path)} imports {target}"


def test_no_module_name_occurs_twice() -> None:
    """A name says which module is meant, without its folder."""
    stems = [path.stem for path in SOURCES if not path.stem.startswith("__")]
    assert sorted(stems) == sorted(set(stems))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_each_dangerous_library_has_one_door(path: Path) -> None:
    """requests, cryptography, yaml, time and random are imported where the design says, and nowhere
    else.
    """
    for imported in imports_of(path):
        door = DOORS.get(imported.split(".")[0])
        assert door is None or name_of(path) in door, f"{name_of(path)} imports {imported}"


WRITERS = ("base.files", "base.inplace", "base.private", "base.trees", "agent.download")


@pytest.mark.parametrize(
    "path", [source for source in SOURCES if name_of(source) not in WRITERS], ids=name_of
)
def test_only_files_writes(path: Path) -> None:
    """Durability and privacy are decided in `base`, by `files` and `trees`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            writes = node.func.attr in WRITING and (
                owner in ("os", "shutil") or node.func.attr not in ("replace", "remove")
            )
            assert not writes or owner == "dataclasses", (
                f"{name_of(path)}:{node.lineno} calls {owner}.{node.func.attr}"
            )
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open"
        ):
            mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "'r'"
            assert not set(mode) & set("wax+"), f"{name_of(path)}:{node.lineno} opens for writing"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_is_for_and_stays_readable(path: Path) -> None:
    """A first line of responsibility, modules of at most 400 lines, functions of at most 60, no
    vague names.
    """
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert text.count("\n") <= 400, text.count("\n")
    assert path.stem not in {"util", "utils", "common", "helpers", "manager", "handler"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or node.lineno) - node.lineno < 60, node.name


def test_the_resident_agent_loads_neither_yaml_nor_cryptography() -> None:
    """9 MiB and a wide attack surface have no business in the process that stays."""
    code = "import sys, firstboot.agent.supervisor; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "requests" in modules
    assert not {"yaml", "cryptography", "firstboot.identity.store", "firstboot.provision"} & set(
        modules
    )
    assert not {"chardet", "charset_normalizer", "tarfile"} & set(modules)


def test_a_guess_of_an_encoding_is_still_made_where_somebody_asks() -> None:
    """The transport leaves requests whole: in a process that has our transport, others' code works as
    before.
    """
    code = "import firstboot.api.transport, requests; r = requests.Response(); r._content = b'a' * 9; print(r.apparent_encoding)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "ascii"


def test_only_the_three_environment_names_of_the_contract_appear() -> None:
    """Older generic names must not come back through an example or a unit."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout.split()
    allowed = {"BYTEOR_API_BASE_URL", "BYTEOR_AGENT_ID", "BYTEOR_AGENT_API_KEY"}
    generic = re.compile(
        r"(?<![A-Z_])(?:BYTEOR_[A-Z_]+|(?:[A-Z]+_)?(?:API_BASE_URL|AGENT_API_KEY|AGENT_ID))\b"
    )
    for name in files:
        path = TOP / name
        if not path.is_file() or path.name in ("test_structure.py", "test_units.py"):
            continue
        for found in generic.findall(path.read_text(errors="replace")):
            assert found in allowed, f"{name}: {found}"


def docstrings(path: Path) -> list[tuple[str, str]]:
    """Name and docstring of the module and of everything public in it."""
    tree = ast.parse(path.read_text())
    found = [(name_of(path), ast.get_docstring(tree) or "")]
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            found.append((f"{name_of(path)}.{node.name}", ast.get_docstring(node) or ""))
    return found


# Rooms that are being rebuilt: their prose and their file names are judged when they are done.
REBUILDING: tuple[str, ...] = ()


def test_docstrings_are_imperative_and_short() -> None:
    """No public one begins with a question word; a module's first line has 12 words or fewer."""
    lengths = []
    for path in SOURCES:
        if name_of(path).startswith(REBUILDING):
            continue
        for name, text in docstrings(path):
            assert not re.match(r"(What|Whether|How|Where|Who|Whoever)\b", text), name
        lengths.append(len(docstrings(path)[0][1].split("\n")[0].split()))
    assert sorted(lengths)[len(lengths) // 2] <= 12


def test_the_path_of_the_data_names_modules_that_exist() -> None:
    """The page in ``firstboot/__init__.py`` stays true of the tree."""
    known = {name_of(source).removesuffix(".__init__") for source in SOURCES}
    known |= {name.rpartition(".")[2] for name in known}
    for name in re.findall(r"`([a-z_.]+)`", firstboot.__doc__ or ""):
        assert name in known, name


def test_every_path_and_file_name_of_ours_stands_in_the_layout_alone() -> None:
    """One that is written down twice is changed once."""
    rows = [row.absolute for row in vars(Layout).values() if isinstance(row, Row)]
    names = {row.rpartition("/")[2] for row in rows} | set(rows)
    names |= {value for key, value in vars(layout).items() if key.isupper() and "." in str(value)}
    names -= {name for name in names if "." not in name and "/" not in name}
    for path in SOURCES:
        if path.stem == "layout" or name_of(path).startswith(REBUILDING):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{name_of(path)}:{node.lineno} {node.value}"
