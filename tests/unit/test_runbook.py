"""Keep the runbook in step with the code: codes, states and phrases of messages."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from firstboot.commands.status import STATES
from tests.controlplane import spoil
from tests.unit.test_pages import SOURCES, TOP, json_section, problem_codes, sections

RUNBOOK = TOP / ".github/RUNBOOK.md"
ELSEWHERE = (
    "certificate has expired",
    "unable to get local issuer certificate",
    "connection refused",
)


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


def page() -> str:
    return RUNBOOK.read_text()


def literals() -> Iterator[str]:
    """Yield every text of the code."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            yield from spoken(node) if isinstance(node, (ast.Constant, ast.JoinedStr)) else ()


def test_every_problem_code_has_a_chapter() -> None:
    """Each code that status can show stands in the chapters, as the JSON page lists them."""
    listed = set(re.findall(r"`([a-z_]+)`", page()))
    for pattern in set(problem_codes()):
        assert any(re.fullmatch(pattern, code) for code in listed), pattern
    for code in re.findall(r"^\| `([a-z_]+)`", json_section("byteor-agent status"), re.MULTILINE):
        assert code in listed or not re.search("_(?:failing|refused|failed|ed)$", code), code


def test_every_state_that_needs_somebody_has_a_chapter() -> None:
    """All but those of a host that is well."""
    for state, _ in STATES.values():
        assert f"`{state}`" in page() or state == "enrolled", state


def reasons() -> Iterator[str]:
    """Yield every code with which a deployment or a key set is refused or fails."""
    for scope in SCOPES:
        for call in scope.calls:
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name in ("Untrusted", "Refusal", "Gate") and call.args:
                yield from scope.said(call.args[0])


def test_every_reason_code_has_a_row() -> None:
    """Of deployments and of key sets; approvals together."""
    codes = {code for code in [*reasons(), *spoil.CODES] if re.fullmatch("[a-z_]+", code)}
    assert len(codes) > 15
    for code in codes:
        assert f"`{code}`" in page() or code.startswith("approval_"), code


def test_every_phrase_is_one_of_the_code() -> None:
    """What stands in quotation marks is a part of a message, so that a search finds it."""
    text = "\n".join(literals())
    phrases = re.findall("“([^”]+)”", re.sub(r"\s+", " ", page()))
    assert len(phrases) > 20
    for phrase in phrases:
        assert phrase in text or phrase in ELSEWHERE or phrase == "quotation marks", phrase


def test_the_chapters_are_where_links_expect_them() -> None:
    """The four parts of the page."""
    assert {
        "First boot does not enroll",
        "The agent has problems",
        "A deployment is not active",
        "Operations",
    } <= set(sections(page()))
