"""The nine requests as `openapi.yaml` describes them: which request is which, and what is wrong
with one.

The plane's strictness has this one source. `Operation.findings` judges a request; an empty list
means conforming.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import jsonschema  # type: ignore[import-untyped,unused-ignore]
import yaml

DOCUMENT = Path(__file__).with_name("openapi.yaml")
# Headers that may stand once at the most: a second one would be read differently by different
# servers.
SINGLE = (
    "authorization",
    "content-type",
    "content-length",
    "idempotency-key",
    "user-agent",
    "host",
)

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Finding:
    """One breach of the contract: the status that refuses it, and a sentence without any secret."""

    status: int
    rule: str
    detail: str


def _pattern(
    validator: Any, pattern: str, instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    # `$` of Python's re also matches before a final newline; the contract's does not.
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield jsonschema.ValidationError(f"does not match {pattern}")


_Strict = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})


def complaint(schema: Mapping[str, Any], value: Any) -> str | None:
    """Return where and how `value` breaks `schema`, never quoting the value itself; None when it
    conforms.
    """
    error = jsonschema.exceptions.best_match(_Strict(schema).iter_errors(value))
    if error is None:
        return None
    where = "/".join(str(step) for step in error.absolute_path) or "the value"
    if error.validator == "additionalProperties":
        unknown = sorted(set(error.instance) - set(error.schema.get("properties", {})))
        return f"{where}: unknown member {', '.join(name[:40] for name in unknown)}"
    if error.validator == "required":
        return f"{where}: {error.message}"
    return f"{where}: breaks {error.validator} {json.dumps(error.validator_value)[:120]}"


class NotJson(ValueError):
    """Bytes that are not one strict JSON value."""


def parse_json(body: bytes) -> Any:
    """Parse strictly: UTF-8, no duplicate members, no NaN or Infinity."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise NotJson("a member stands twice")
        return dict(pairs)

    def no_constant(name: str) -> Any:
        raise NotJson(f"{name} is not JSON")

    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise NotJson("the body is not strict JSON in UTF-8") from error


@dataclass(frozen=True)
class Operation:
    """One of the nine requests; schemas are resolved, so they can be handed to jsonschema as they
    are.
    """

    name: str
    method: str
    template: str
    path_pattern: re.Pattern[str]
    parameters: tuple[Mapping[str, Any], ...]
    media_type: str | None
    body_schema: Mapping[str, Any] | None
    credential: str | None
    scope: str | None
    group: str

    def findings(
        self, path: str, query: str, headers: Headers, body: bytes | None
    ) -> list[Finding]:
        """Judge one request; `body` None means that the body is judged elsewhere (multipart)."""
        found = [*self._parameter_findings(path, query, headers)]
        found += self._body_findings(headers, body)
        return found

    def _parameter_findings(self, path: str, query: str, headers: Headers) -> Iterator[Finding]:
        lower = [(name.lower(), value) for name, value in headers]
        for name in SINGLE:
            if sum(1 for other, _ in lower if other == name) > 1:
                yield Finding(400, "header_twice", f"header {name} stands twice")
        match = self.path_pattern.fullmatch(path)
        pairs = parse_qsl(query, keep_blank_values=True)
        given = {
            "path": match.groupdict() if match else {},
            "query": dict(pairs),
            "header": dict(lower),
        }
        if len(given["query"]) != len(pairs):
            yield Finding(400, "query_twice", "a query parameter stands twice")
        known = {parameter["name"] for parameter in self.parameters if parameter["in"] == "query"}
        if set(given["query"]) - known:
            yield Finding(400, "unknown_query", "unknown query parameter")
        for parameter in self.parameters:
            name, place = parameter["name"], parameter["in"]
            value: Any = given[place].get(name.lower() if place == "header" else name)
            if value is None:
                if parameter.get("required"):
                    yield Finding(400, "missing_parameter", f"{place} parameter {name} is missing")
                continue
            if place == "path":
                value = unquote(value)
            if parameter["schema"].get("type") == "integer" and re.fullmatch(
                r"-?[0-9]{1,30}", value
            ):
                value = int(value)
            wrong = complaint(parameter["schema"], value)
            if wrong is not None:
                yield Finding(400, "malformed_parameter", f"{place} parameter {name}: {wrong}")

    def _body_findings(self, headers: Headers, body: bytes | None) -> list[Finding]:
        content_type = next(
            (value for name, value in headers if name.lower() == "content-type"), None
        )
        if self.media_type is None:
            return [Finding(400, "unexpected_body", "this request has no body")] if body else []
        bare = (content_type or "").split(";")[0].strip().lower()
        if bare != self.media_type:
            return [Finding(415, "content_type", f"the content type must be {self.media_type}")]
        if self.media_type != "application/json" or body is None or self.body_schema is None:
            return []
        try:
            wrong = complaint(self.body_schema, parse_json(body))
        except NotJson as error:
            return [Finding(400, "not_json", str(error))]
        return [Finding(422, "body", wrong)] if wrong is not None else []


def _resolve(node: Any, document: Mapping[str, Any]) -> Any:
    """Put every local reference in its place; the document has no recursive one."""
    if isinstance(node, list):
        return [_resolve(item, document) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target: Any = document
        for step in node["$ref"].lstrip("#/").split("/"):
            target = target[step]
        return _resolve(target, document)
    return {key: _resolve(value, document) for key, value in node.items()}


@functools.cache
def document() -> dict[str, Any]:
    """Return openapi.yaml with its references resolved."""
    raw = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))
    return dict(_resolve(raw, raw))


@functools.cache
def operations() -> dict[str, Operation]:
    """Return the nine operations by name."""
    found = {}
    for template, item in document()["paths"].items():
        for method in ("get", "post"):
            if method not in item:
                continue
            raw = item[method]
            content = raw.get("requestBody", {}).get("content", {})
            media_type = next(iter(content), None)
            found[raw["operationId"]] = Operation(
                name=raw["operationId"],
                method=method.upper(),
                template=template,
                path_pattern=re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]*)", template)),
                parameters=(*item.get("parameters", ()), *raw.get("parameters", ())),
                media_type=media_type,
                body_schema=content[media_type]["schema"] if media_type else None,
                credential=raw.get("x-credential"),
                scope=raw.get("x-scope"),
                group=raw["x-group"],
            )
    return found


def schema(name: str) -> dict[str, Any]:
    """Return the component schema `name`."""
    return dict(document()["components"]["schemas"][name])


def which(method: str, path: str) -> Operation | None:
    """Return the operation that a request is, by method and raw path."""
    for operation in operations().values():
        if operation.method == method and operation.path_pattern.fullmatch(path):
            return operation
    return None
