"""Documents that must keep up with the code."""

import ast
import re
from pathlib import Path

import pytest

from house.source import ROOT, SOURCE, python_files, tracked

LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
PROMISE = re.compile(r"^\| *(P\d+) *\|.*\| *`?([^|`]+?)`? *\|$", re.MULTILINE)
NAMED_FILE = re.compile(r"`((?:src|tests|docs|tools|bin|spec|examples)/[\w./-]+\.\w+)")
METRIC = re.compile(r'"(alcove_[a-z0-9_]+)"')


def documents() -> list[Path]:
    return tracked("*.md", "docs/**/*.md", "changes/*.md")


@pytest.mark.parametrize("room", ["control", "node", "edge"])
def test_every_setting_is_documented(room: str) -> None:
    tree = ast.parse((SOURCE / room / "settings.py").read_text())
    settings = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Settings")
    fields = [
        n.target.id
        for n in settings.body
        if isinstance(n, ast.AnnAssign)
        and isinstance(n.target, ast.Name)
        and n.target.id != "model_config"
    ]
    assert fields
    page = (ROOT / "docs" / "reference" / "settings" / f"{room}.md").read_text()
    missing = [f for f in fields if f"`ALCOVE_{room.upper()}_{f.upper()}`" not in page]
    assert missing == []


def test_every_metric_is_documented() -> None:
    page = "".join(p.read_text() for p in (ROOT / "docs" / "reference").glob("metrics*.md"))
    declared = {
        name
        for path in python_files()
        if path.name == "metrics.py"
        for name in METRIC.findall(path.read_text())
    }
    assert declared
    assert {name for name in declared if name not in page} == set()


def test_links_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in documents()
        for target, _ in LINK.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_files_that_documents_name_exist() -> None:
    gone = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in documents()
        for name in NAMED_FILE.findall(page.read_text())
        if not (ROOT / name).exists()
    ]
    assert gone == []


@pytest.mark.parametrize(
    ("page", "example"),
    [("README.md", "first.py"), ("docs/reference/time-travel.md", "time_travel.py")],
)
def test_pages_show_the_examples_that_are_run(page: str, example: str) -> None:
    program = (ROOT / "examples" / example).read_text()
    assert f"```python\n{program}```" in (ROOT / page).read_text()


def test_every_promise_names_its_test() -> None:
    promises = PROMISE.findall((ROOT / "SPECIFICATION.md").read_text())
    assert len(promises) >= 20
    assert [n for n, _ in promises] == [f"P{i}" for i in range(1, len(promises) + 1)]
    missing = []
    for number, where in promises:
        file, _, name = where.partition("::")
        path = ROOT / file
        if not path.is_file() or (name and f"def {name}(" not in path.read_text()):
            missing.append(f"{number}: {where}")
    assert missing == []
