"""Docstrings begin with a verb and its object, or a noun and what it is: each is understood by itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import maskrcnn

SOURCE = Path(maskrcnn.__file__).parent
FORBIDDEN = ("As ", "How ", "Of ", "The same", "What ", "Where ", "Whether ", "Which ")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring of a module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Documented) and (docstring := ast.get_docstring(node)) is not None:
            yield node.body[0].lineno, docstring


def leaning(text: str, name: str) -> list[str]:
    """List, as `name:line: first line`, the docstrings of a module that begin with one of FORBIDDEN."""
    found = [(line, d) for line, d in docstrings(text) if d.startswith(FORBIDDEN)]
    return [f"{name}:{line}: {docstring.splitlines()[0]}" for line, docstring in sorted(found)]


def test_no_docstring_leans_on_what_stands_before_it() -> None:
    found = [
        line
        for path in sorted(SOURCE.rglob("*.py"))
        for line in leaning(path.read_text(encoding="utf-8"), str(path.relative_to(SOURCE)))
    ]
    assert not found, "begin with a verb and its object, or a noun and what it is:\n" + "\n".join(found)


def test_leaning_docstrings_are_told_with_their_lines() -> None:
    text = '"""Asked for."""\nclass A:\n    """What is."""\n    def f(self):\n        """The same,\n        so."""\n'
    assert leaning(text, "a.py") == ["a.py:3: What is.", "a.py:5: The same,"]
