"""Hold the published JSON Schemas against the command table, the code's words, and strictness."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from firstboot.cli import PROGRAMS
from firstboot.commands import agent_page, status, verify
from firstboot.exchange import verdicts
from firstboot.identity.store import State
from firstboot.provision.erase.receipt import RESULTS
from tests import schemas


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every part of a schema that describes an object."""
    if isinstance(schema, dict):
        if "object" in (schema.get("type"), *(schema.get("type") or ())):
            yield schema
        for part in schema.values():
            yield from objects(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects(part)


def test_every_command_with_json_has_a_schema_and_no_other() -> None:
    """By the command table: a new document comes with its schema."""
    wanted = {
        f"{program}-{command.word}"
        for program, (_, _, commands) in PROGRAMS.items()
        for command in commands
        if command.json
    }
    assert set(schemas.load()) == wanted


@pytest.mark.parametrize("name", sorted(schemas.load()))
def test_a_schema_is_valid_and_strict(name: str) -> None:
    """No member is unknown, and none may be absent but what only some documents have."""
    schema = schemas.load()[name]
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$schema"]
    assert schema["$id"] == f"{name}.json" and schema["title"].startswith(
        name.replace("t-", "t ", 1)
    )
    for part in objects(schema):
        if "oneOf" not in part:
            assert "additionalProperties" in part, part
            assert part["additionalProperties"] is not True
            assert set(part.get("required", ())) <= set(part.get("properties", ()))


def test_the_words_are_those_of_the_code() -> None:
    """Each list of words in a schema is the list that the code has."""
    first = schemas.load()["byteor-firstboot-status"]
    words = {word for word, _ in status.STATES.values()} | {"invalid", "environment", "unknown"}
    assert set(first["properties"]["state"]["enum"]) == words
    assert set(first["properties"]["identity"]["enum"]) == {one.value for one in State} | {None}
    assert tuple(first["$defs"]["erasure"]["properties"]["copies"]["properties"]) == RESULTS
    agent = schemas.load()["byteor-agent-status"]["properties"]
    assert set(agent["state"]["enum"]) == set(agent_page.STATES)
    rows = schemas.load()["byteor-agent-deployments"]["properties"]["deployments"]["items"]
    known = {verdicts.ACTIVE, verdicts.REFUSED, verdicts.FAILED, verdicts.ROLLED_BACK}
    assert set(rows["properties"]["verdict"]["enum"]) == known | {verdicts.WAITING}
    checks = schemas.load()["byteor-firstboot-verify"]["properties"]["checks"]["items"]
    assert tuple(checks["properties"]["check"]["enum"]) == verify.CHECKS
    assert set(checks["properties"]["result"]["enum"]) == set(verify.MARKS)


@pytest.mark.parametrize("change", [{"more": 1}, {"token": "yes"}, {"checks": [{}]}, {"v": 2}])
def test_a_document_of_another_shape_is_found(change: dict[str, Any]) -> None:
    """The judge of all other tests is none that accepts everything."""
    good: dict[str, Any] = {"v": 1, "token": True, "checks": []}
    schemas.judge("byteor-firstboot", "preflight", json.dumps(good))
    with pytest.raises(AssertionError):
        schemas.judge("byteor-firstboot", "preflight", json.dumps({**good, **change}))
