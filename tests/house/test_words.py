"""Names and words that have no place in this repository."""

import re

from house.source import ROOT, python_files, tracked

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "core", "base"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b(?! *\(#\d+\))")
# Hosts of package registries and paths of one machine say nothing to anybody else.
FOREIGN = re.compile(
    r"https?://[^/ \"'`]*(debian|ubuntu|pypi|pythonhosted|npmjs)[^/ \"'`]*"
    r"|(^|[^A-Za-z.])/work/"
    r"|/tmp/bash_jobs"
)


def test_modules_have_telling_names() -> None:
    nameless = [p.relative_to(ROOT) for p in python_files() if p.stem in EMPTY_NAMES]
    assert nameless == []


def test_nothing_unfinished_without_an_issue() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in tracked("src", "bin", "tools", "docs", "*.md")
        for line in path.read_text(errors="replace").splitlines()
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_no_registry_addresses_or_machine_paths() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:120]}"
        for path in tracked()
        if path.name != "test_words.py"
        for line in path.read_text(errors="replace").splitlines()
        if FOREIGN.search(line)
    ]
    assert found == []
