"""`alcove logs`: what control, node and edge wrote."""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from alcove.cli.installation import data_dir_option, require
from alcove.cli.output import CliError
from alcove.cli.supervise import START_ORDER

FOLLOW_PERIOD_S = 0.3


@click.command("logs")
@data_dir_option
@click.argument("process", type=click.Choice([*START_ORDER, "supervise", "all"]), default="all")
@click.option("-f", "--follow", is_flag=True, help="Keep printing what is added.")
@click.option("-n", "--lines", default=100, show_default=True, help="How many last lines of each.")
def logs_command(data_dir: Path, process: str, follow: bool, lines: int) -> None:
    """Print the logs of Alcove's own processes (sandboxes' logs come through the API)."""
    installation = require(data_dir)
    names = [*START_ORDER, "supervise"] if process == "all" else [process]
    paths = [path for name in names if (path := installation.logs / f"{name}.log").exists()]
    if not paths:
        raise CliError(f"there are no logs in {installation.logs}", fix="run `alcove up`")
    prefix = len(paths) > 1
    files = {path.stem: path.open("rb") for path in paths}
    for name, file in files.items():
        for line in deque(file, maxlen=lines):
            _print(name if prefix else "", line)
    while follow:
        printed = False
        for name, file in files.items():
            for line in _added(file):
                _print(name if prefix else "", line)
                printed = True
        if not printed:
            time.sleep(FOLLOW_PERIOD_S)


def _added(file: BinaryIO) -> Iterator[bytes]:
    here = file.tell()
    if file.seek(0, 2) < here:  # the supervisor emptied it
        here = 0
    file.seek(here)
    yield from file


def _print(name: str, line: bytes) -> None:
    text = line.decode(errors="replace").rstrip("\n")
    click.echo(f"{name:9} {text}" if name else text)
