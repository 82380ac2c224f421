"""Every JSON file of first boot, each member replaced by odd shapes, through the commands.

In process, so that thousands of runs fit: a traceback or "this is a bug" is what is looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstboot import cli
from tests.integration.host import Host

FILES = [
    "identity/marks.json",
    "identity/intent.json",
    "identity/erasure.json",
    "settings.json",
]
COMMANDS = (["status"], ["status", "--json"], ["erase"], ["verify"], ["unseal"], ["run"])
SHAPES: list[Any] = [
    None,
    True,
    -1,
    10**400,
    1.5,
    "",
    "\ud800",
    "a\r\nInjected: b\x1b[2J",
    "x" * 300,
    [],
    {"a": {"b": [1, "\ud800"]}},
]


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    """An enrolled host with all four files, an intent of another token among them."""
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    host.token(host.mint())
    host.plane.fault("enroll", "drop", when="after")
    assert host.run("--give-up-after", "0").code == 6
    intent = host.path("var/lib/byteor/identity/intent.json")
    kept = json.loads(intent.read_text())
    assert host.run().code == 0
    intent.write_text(json.dumps({**kept, "key": "0" * 36}))
    intent.chmod(0o600)
    return host


def members(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every member, the inner ones too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, one in list(inner):
        yield (*way, name)
        if isinstance(one, (dict, list)):
            yield from members(one, (*way, name))


def replaced(value: Any, way: tuple[Any, ...], shape: Any) -> Any:
    copy = json.loads(json.dumps(value))
    at = copy
    for name in way[:-1]:
        at = at[name]
    at[way[-1]] = shape
    return copy


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FILES)
def test_no_shape_of_a_member_is_a_bug(
    host: Host, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command says what is wrong, or does without; an enrolled host hands off."""
    path = host.path("var/lib/byteor") / name
    kept = {path: path.read_bytes() for path in host.path("var/lib/byteor").rglob("*.json")}
    value, count = json.loads(path.read_text()), 0
    for way in members(value):
        for shape in SHAPES:
            for file, data in kept.items():
                file.write_bytes(data)
            path.write_text(json.dumps(replaced(value, way, shape)))
            for command in COMMANDS:
                code = cli.firstboot_main([*command, "--root", str(host.root)])
                said = "".join(capsys.readouterr())
                where = f"{name} {way} = {shape!r}: {command}"
                assert code != 1 and "bug" not in said, where
                assert "\x1b" not in said and "Injected: b\n" not in said, where
                if command == ["run"]:
                    assert code == 0 and "handed off" in said, f"{where}: {said}"
                count += 1
    assert count > 100
