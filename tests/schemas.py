"""Judge a JSON document that a command printed by its published schema."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = Path(__file__).resolve().parents[1] / ".github/reference/schemas"


@cache
def load() -> dict[str, Any]:
    """Return ``<program>-<command>`` -> its schema."""
    return {path.stem: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}


@cache
def _validator(name: str) -> Draft202012Validator:
    resources = [(f"{stem}.json", Resource.from_contents(one)) for stem, one in load().items()]
    registry: Registry[Any] = Registry().with_resources(resources)
    return Draft202012Validator(load()[name], registry=registry)


def judge(program: str, command: str, text: str) -> None:
    """Raise AssertionError where a document is not what the schema of its command says."""
    validator = _validator(f"{program}-{command}")
    found = [f"{one.json_path}: {one.message}" for one in validator.iter_errors(json.loads(text))]
    assert not found, "\n".join(found)


def judge_call(words: tuple[str, ...], out: str) -> None:
    """Judge what one of our programs printed, if its words ask for JSON and it came to print it."""
    program = Path(words[0]).name
    if program.startswith("byteor-") and "--json" in words and out:
        judge(program, words[1], out)
