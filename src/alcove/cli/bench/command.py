"""The `alcove bench` command: what to measure, and how to print it."""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from alcove import __version__
from alcove.cli.bench import elsewhere
from alcove.cli.bench.deadline import TimeIsUpError, stops_after
from alcove.cli.bench.parts import PARTS, QUICK_RUNS, ratios
from alcove.cli.bench.parts import work as parts_work
from alcove.cli.bench.series import Series
from alcove.cli.bench.workbench import Workbench
from alcove.cli.environment import client_environment
from alcove.cli.installation import data_dir_option, require
from alcove.cli.output import EXIT_NOT_RUNNING, CliError, console, progress_console
from alcove.cli.supervise import running_supervisor

COMPARE_LIMIT_S = 1200.0
_format_option = click.option(
    "--format", "output_format", type=click.Choice(["table", "jsonl"]), default="table"
)


@click.command("bench")
@data_dir_option
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--runs", default=30, show_default=True, help="How often each thing is done.")
@click.option("--quick", is_flag=True, help="Few runs and small forks: about four minutes.")
@click.option(
    "--limit-minutes",
    default=20.0,
    show_default=True,
    help="Stop then, clean up, and print what there is.",
)
@_format_option
def bench_command(  # noqa: PLR0917 - click hands over one argument per option
    data_dir: Path,
    parts: tuple[str, ...],
    runs: int,
    quick: bool,
    limit_minutes: float,
    output_format: str,
) -> None:
    """Measure this installation through the official Python SDK, beside gVisor's own floors.

    Every timed answer is checked; a wrong one counts as a failure, not as a time. Needs root, as
    the floors make sandboxes by hand.
    """
    installation = require(data_dir)
    if running_supervisor(installation) is None:
        raise CliError("Alcove is not running", fix="run `alcove up`", exit_code=EXIT_NOT_RUNNING)
    if os.geteuid() != 0:
        raise CliError("`alcove bench` must be root for the floors", fix="run it with sudo")
    os.environ.update(client_environment(installation))
    with Workbench(installation) as bench:
        work = parts_work(bench, min(runs, QUICK_RUNS) if quick else runs, quick=quick)
        chosen = {part: work[part] for part in parts or PARTS}
        rows = _measure(chosen, output_format, limit_minutes * 60)
    if output_format == "table":
        for line in ratios(rows):
            console.print(line)


@click.command("compare")
@click.option("--runs", default=30, show_default=True, help="How often each thing is done.")
@click.option("--docker-image", help="Measure `docker run` of this local image as well.")
@_format_option
def compare_command(runs: int, docker_image: str | None, output_format: str) -> None:
    """Measure whatever E2B-compatible service this shell's E2B_* variables name, and Docker.

    The probe is that of `alcove bench`, so the figures can stand beside each other.
    """
    work = {"the service": lambda: elsewhere.service(runs)}
    if docker_image:
        work["docker"] = lambda: elsewhere.docker(runs, docker_image)
    _measure(work, output_format, COMPARE_LIMIT_S)


def _measure(
    work: dict[str, Callable[[], list[Series]]], output_format: str, limit_s: float
) -> list[dict[str, Any]]:
    """Do the work part by part and print what came of it, at the latest when the time is over."""
    rows: list[dict[str, Any]] = []
    try:
        with stops_after(limit_s):
            for part, measure in work.items():
                progress_console.print(f"measuring {part}")
                measured = [series.to_json() for series in _attempt(part, measure)]
                rows += measured
                if output_format == "jsonl":
                    for row in measured:
                        click.echo(json.dumps(row | _circumstances()))
    except TimeIsUpError as reason:
        progress_console.print(f"stopped before the end of {part}: {reason}")
    if output_format == "table":
        _print_table(rows)
    return rows


def _attempt(part: str, measure: Callable[[], list[Series]]) -> list[Series]:
    """The part's series, or one that says why there are none."""
    try:
        return measure()
    except Exception as error:
        return [Series(part, "-", failures=[f"{type(error).__name__}: {error}"[:300]])]


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("what", "unit", "n", "ok", "min", "p50", "p95", "p99", "max"):
        table.add_column(column, justify="left" if column in {"what", "unit"} else "right")
    for row in rows:
        numbers = [
            f"{row[key]:g}" if key in row else "-" for key in ("min", "p50", "p95", "p99", "max")
        ]
        table.add_row(row["name"], row["unit"], str(row["n"]), f"{row['success']:.0%}", *numbers)
    console.print(table)
    for row in rows:
        if "first_failure" in row:
            console.print(f"[red]{row['name']}[/red]: {row['first_failure']}")


def _circumstances() -> dict[str, Any]:
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "alcove": __version__,
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }
