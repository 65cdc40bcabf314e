"""Walls between rooms: the import contracts of pyproject.toml, and what guest and wire may load."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from house.source import ROOT, SOURCE


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "0 broken" in finished.stdout


def test_feature_contract_names_every_feature() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = config["tool"]["importlinter"]["contracts"]
    named = next(c["containers"] for c in contracts if c["name"].startswith("Feature:"))
    features = {
        f"alcove.control.{path.parent.name}"
        for path in (SOURCE / "control").glob("*/__init__.py")
        if path.parent.name != "migrations"
    }
    assert set(named) == features


@pytest.mark.parametrize(("room", "allowed"), [("guest", {"h11", "alcove"}), ("wire", {"alcove"})])
def test_room_needs_only_the_standard_library(room: str, allowed: set[str]) -> None:
    may_load = sys.stdlib_module_names | allowed
    loaded = {
        (path.name, name) for path in (SOURCE / room).glob("**/*.py") for name in _imported(path)
    }
    assert loaded, "no imports found: is the folder empty?"
    assert {entry for entry in loaded if entry[1] not in may_load} == set()


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names
