"""Builds of templates: with a cache and without, as files, and sandboxes right after a build."""

import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from alcove.cli import parcels
from alcove.cli.api import Api
from alcove.cli.bench.series import Series, expect, milliseconds, verified
from alcove.cli.bench.workbench import LIFE_S, MARK, Workbench
from alcove.cli.templates import find_id, read_log

_TOOK = re.compile(r"Build finished, took ([\d.]+) s")
_IMPORTS = 2


def templates(bench: Workbench, rounds: int) -> list[Series]:
    """All templates of it are deleted at the end; their layers go with the node's cache."""
    name = f"bench-{secrets.token_hex(6)}"
    api = Api(bench.installation.api_url, bench.installation.api_key())
    try:
        return [_from_nothing(api), *_rebuilds(name, rounds), *_files(api, name)]
    finally:
        for each in (name, f"{name}-file", *(f"{name}-{turn}" for turn in range(_IMPORTS))):
            bench.delete_template(each)


def _from_nothing(api: Api) -> Series:
    """How long the base template took when this installation made it, as its log says."""
    series = Series("base template from nothing", "s", note="as the log of its newest build says")
    shown = api.ask("GET", f"/templates/{find_id(api, 'base')}", params={"limit": 1}).json()
    lines = list[str]()
    read_log(
        api,
        shown["templateID"],
        shown["builds"][0]["buildID"],
        lambda entry: lines.append(entry["message"]),
        follow=False,
    )
    was_there = any("is already there" in line for line in lines)
    took = [float(match[1]) for line in lines if (match := _TOOK.match(line))]
    if took and not was_there:
        series.values.append(took[-1])
    else:
        series.failures.append("its root file system was there before the newest build")
    return series


def _rebuilds(name: str, rounds: int) -> Iterator[Series]:
    one = Series("build, base and one RUN", "ms", note="to its end, the RUN never seen before")
    changed = Series("rebuild, last of 4 steps changed", "ms", note="three steps of the cache")
    same = Series("rebuild, nothing changed", "ms", note="all steps of the cache")
    create = Series("create after a build", "ms", note="the first, to its first command")
    for _ in range(rounds):
        nonce = secrets.token_hex(8)
        with milliseconds(one):
            _build(name, [f"echo {nonce} >said"])
        _first(create, name, nonce)
        steps = [f"echo {nonce}{number} >step{number}" for number in range(3)]
        _build(name, [*steps, f"echo before >said; echo {nonce}"])
        with milliseconds(changed):
            _build(name, [*steps, f"echo {nonce}changed >said"])
        _first(create, name, f"{nonce}changed")
        with milliseconds(same):
            _build(name, [*steps, f"echo {nonce}changed >said"])
    yield from (one, changed, same, create)


def _build(name: str, commands: list[str]) -> None:
    from e2b import Template

    template: Any = Template().from_template("base")
    for command in commands:
        template = template.run_cmd(command)
    Template.build(template, name, cpu_count=1, memory_mb=512)


def _first(series: Series, name: str, wanted: str) -> None:
    from e2b import Sandbox

    sandbox = None
    try:
        with milliseconds(series):
            sandbox = Sandbox.create(name, metadata=MARK, timeout=LIFE_S)
            said = sandbox.commands.run("cat said").stdout
        with verified(series):
            expect("the file of the build", said, f"{wanted}\n")
    finally:
        if sandbox is not None:
            sandbox.kill()


def _files(api: Api, name: str) -> Iterator[Series]:
    """The base template and a new file, out of one template and into others."""
    export = Series("export", "MB/s", note="unpacked MB, compressed and fetched")
    unpack = Series(
        "import of an image", "MB/s", note="unpacked MB, from the log: fetch and unpack"
    )
    whole = Series("import, to a ready template", "s", note="with sending and the snapshot")
    for turn in range(_IMPORTS):
        nonce = secrets.token_hex(8)
        _build(f"{name}-file", [f"echo {nonce} >said"])
        with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as directory:
            file = Path(directory) / "template.tar"
            started = time.perf_counter()
            parcels.fetch(api, f"{name}-file", file)
            export_s = time.perf_counter() - started
            parcel = parcels.read_parcel(file)
            started = time.perf_counter()
            with _log(api, file, parcel, f"{name}-{turn}") as entries:
                whole.values.append(time.perf_counter() - started)
        megabytes = _unpacked_bytes(entries) / 1e6
        export.values.append(megabytes / export_s)
        unpack.values.append(megabytes / _seconds(entries))
        _first(Series("", "ms"), f"{name}-{turn}", nonce)
    yield from (export, unpack, whole)


@contextmanager
def _log(api: Api, file: Path, parcel: parcels.Parcel, name: str) -> Iterator[list[dict[str, Any]]]:
    """Import a file; what its build said."""
    entries: list[dict[str, Any]] = []
    template_id, build_id = parcels.begin_import(api, file, parcel, name)
    ended = read_log(api, template_id, build_id, entries.append, follow=True)
    expect("the build", ended["status"], "ready")
    yield entries


_FETCHING, _UNPACKED = "Fetching ", re.compile(r"Unpacked (\d+) bytes")


def _unpacked_bytes(entries: list[dict[str, Any]]) -> int:
    found = [match for entry in entries if (match := _UNPACKED.match(entry["message"]))]
    return int(found[0][1])


def _seconds(entries: list[dict[str, Any]]) -> float:
    """From the beginning of the fetching to the end of the unpacking."""
    began = next(e for e in entries if e["message"].startswith(_FETCHING))
    ended = next(e for e in entries if _UNPACKED.match(e["message"]))
    return (_at(ended) - _at(began)).total_seconds()


def _at(entry: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(entry["timestamp"])
