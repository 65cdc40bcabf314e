"""Sizes a reader is comfortable with: files up to 400 lines, functions up to 40.

budget.toml lists what is larger today; an entry may shrink or go, never grow or be added lightly.
"""

import ast
import tomllib
from pathlib import Path

from house.source import ROOT, python_files

FILE_LINES, FUNCTION_LINES = 400, 40
EXCEPTIONS = tomllib.loads((Path(__file__).parent / "budget.toml").read_text())


def test_files_fit() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()
    }
    too_long = {name: size for name, size in sizes.items() if size > FILE_LINES}
    _compare(too_long, EXCEPTIONS["files"])


def test_functions_fit() -> None:
    too_long = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1 - _docstring_lines(node)
            if lines > FUNCTION_LINES:
                too_long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    _compare(too_long, EXCEPTIONS["functions"])


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1


def _compare(found: dict[str, int], allowed: dict[str, int]) -> None:
    grown = {name: size for name, size in found.items() if size > allowed.get(name, 0)}
    assert grown == {}, "split these where the split names something real"
    gone = {name for name in allowed if name not in found}
    assert gone == set(), "these fit now: take them out of budget.toml"
