"""The texts that the code can say, read from its source: messages, hints and codes."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
SOURCES = sorted((TOP / "firstboot").rglob("*.py"))


def spoken(node: ast.AST | None) -> Iterator[str]:
    """Yield the texts that an expression can be, with … for what only the program knows."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        pieces = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        yield re.sub("…(?: ?…)+", "…", "".join(map(str, pieces)))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in spoken(node.left):
            yield from (left + right for right in [*spoken(node.right)] or ["…"])
    elif isinstance(node, ast.IfExp):
        yield from spoken(node.body)
        yield from spoken(node.orelse)
    elif isinstance(node, (ast.Dict, ast.BoolOp)):
        for value in node.values:
            yield from spoken(value)


class Scope:
    """A module or a function: its calls, and what is assigned to which name in it."""

    def __init__(self, tree: ast.AST, outer: Scope | None = None) -> None:
        self.outer, self.inner = outer, []
        self.calls: list[ast.Call] = []
        self._names: defaultdict[str, list[ast.expr]] = defaultdict(list)
        todo = list(ast.iter_child_nodes(tree))
        for node in todo:
            if isinstance(node, ast.FunctionDef):
                self.inner.append(Scope(node, self))
                continue
            todo += ast.iter_child_nodes(node)
            if isinstance(node, ast.Call):
                self.calls.append(node)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    self._assigned(target, node.value)

    def _assigned(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._names[target.id].append(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for name, item in zip(target.elts, value.elts):
                self._assigned(name, item)

    def every(self) -> Iterator[Scope]:
        """Yield this scope and all within it."""
        yield self
        for scope in self.inner:
            yield from scope.every()

    def said(self, node: ast.expr | None) -> list[str]:
        """Return the texts that an expression can be, also by way of a name."""
        found = [*spoken(node)]
        if isinstance(node, ast.Name):
            found += self._named(node.id)
        elif isinstance(node, ast.IfExp):
            found += [text for part in (node.body, node.orelse) for text in self.said(part)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found += self.said(node.func.value)  # TABLE.get(…)
            found += [text for argument in node.args[1:] for text in self.said(argument)]
        elif isinstance(node, ast.Subscript):
            found += self.said(node.value)
        return list(dict.fromkeys(found))

    def _named(self, name: str) -> list[str]:
        if name in self._names:
            values = self._names[name]
            return [text for value in values for text in [*spoken(value)] or self._called(value)]
        if self.outer is not None:
            return self.outer._named(name)
        return CONSTANTS.get(name, [])

    def _called(self, value: ast.expr) -> list[str]:
        return self.said(value) if isinstance(value, (ast.Call, ast.Subscript)) else []


MODULES = [Scope(ast.parse(path.read_text())) for path in SOURCES]
SCOPES = [scope for module in MODULES for scope in module.every()]
CONSTANTS: dict[str, list[str]] = {
    name: texts
    for module in MODULES
    for name, values in module._names.items()
    if name.isupper() and (texts := [text for value in values for text in spoken(value)])
}


def hints() -> dict[str, list[str]]:
    """Return every hint that the code can give, with the messages that it goes with."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for scope in SCOPES:
        for call in scope.calls:
            given = [word.value for word in call.keywords if word.arg == "hint"]
            message: ast.expr | None = call.args[0] if call.args else None
            if isinstance(call.func, ast.Name) and call.func.id == "Problem":
                given, message = call.args[2:3], call.args[1] if call.args[1:] else None
            for node in given:
                texts = scope.said(message)
                for hint in scope.said(node):
                    # A name that stands for several texts may mean another one here.
                    found[hint] += texts if len(texts) == 1 else spoken(message)
    return {hint: sorted(set(messages)) for hint, messages in sorted(found.items())}


def codes(*names: str) -> Iterator[str]:
    """Yield the first argument of every call of `names`: codes, with … for what differs."""
    for scope in SCOPES:
        for call in scope.calls:
            if isinstance(call.func, ast.Name) and call.func.id in names and call.args:
                yield from scope.said(call.args[0])


def literals() -> Iterator[str]:
    """Yield every text of the code."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            yield from spoken(node) if isinstance(node, (ast.Constant, ast.JoinedStr)) else ()
