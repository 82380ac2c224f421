"""Count the lines of firstboot/ by folder: ``python -m tests.size [DIRECTORY]``.

A code line is neither blank nor comment nor docstring. Size is a measure of clarity here: what a
release removed is said in CHANGELOG with these figures.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "firstboot"


def count(text: str) -> Counter[str]:
    """Return the lines of a module's source by kind: code, prose (comments and docstrings), blank."""
    lines = text.splitlines()
    prose = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            expression = node.body[0]
            prose |= set(range(expression.lineno, (expression.end_lineno or 0) + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            prose.add(token.start[0])
    found = Counter(
        "prose" if number in prose else "code" if line.strip() else "blank"
        for number, line in enumerate(lines, 1)
    )
    found["all"] = len(lines)
    return found


def main(package: Path) -> None:
    """Print one row a folder, and the sum."""
    folders: dict[str, Counter[str]] = {}
    for path in sorted(package.rglob("*.py")):
        folder = str(path.parent.relative_to(package))
        folders.setdefault(folder, Counter()).update(count(path.read_text()))
    folders["in all"] = sum(folders.values(), Counter())
    print(f"{'folder':24}{'code':>8}{'prose':>8}{'all':>8}{'prose/code':>12}")
    for folder, found in folders.items():
        ratio = found["prose"] / max(1, found["code"])
        print(f"{folder:24}{found['code']:8}{found['prose']:8}{found['all']:8}{ratio:12.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
