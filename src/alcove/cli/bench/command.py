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
from alcove.cli.bench import client, elsewhere, floor, machine
from alcove.cli.bench.series import Series
from alcove.cli.environment import client_environment
from alcove.cli.installation import data_dir_option, require
from alcove.cli.output import EXIT_NOT_RUNNING, CliError, console, progress_console
from alcove.cli.supervise import running_supervisor

_format_option = click.option(
    "--format", "output_format", type=click.Choice(["table", "jsonl"]), default="table"
)
PARTS = ("tti", "floors", "exec", "hops", "files", "burst", "cost", "rest")


@click.command("bench")
@data_dir_option
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--runs", default=30, show_default=True, help="How often each thing is done.")
@_format_option
def bench_command(data_dir: Path, parts: tuple[str, ...], runs: int, output_format: str) -> None:
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
    work: dict[str, Callable[[], list[Series]]] = {
        "tti": lambda: client.first_command(runs),
        "floors": lambda: floor.floors(installation, max(5, runs // 2)),
        "exec": lambda: client.commands(runs * 3),
        "hops": lambda: machine.hops(installation, runs * 10),
        "files": lambda: client.transfers(max(3, runs // 6)),
        "burst": client.bursts,
        "cost": lambda: machine.create_cost(runs),
        "rest": lambda: machine.at_rest(installation, 8),
    }
    rows = _measure({part: work[part] for part in parts or PARTS}, output_format)
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
    _measure(work, output_format)


def _measure(
    work: dict[str, Callable[[], list[Series]]], output_format: str
) -> list[dict[str, Any]]:
    """Do the work part by part and print what came of it."""
    rows: list[dict[str, Any]] = []
    for part, measure in work.items():
        progress_console.print(f"measuring {part}")
        measured = [series.to_json() for series in measure()]
        rows += measured
        if output_format == "jsonl":
            for row in measured:
                click.echo(json.dumps(row | _circumstances()))
    if output_format == "table":
        _print_table(rows)
    return rows


def ratios(rows: list[dict[str, Any]]) -> list[str]:
    """What the medians say beside the floors of the same run."""
    median = {row["name"]: row["p50"] for row in rows if "p50" in row}
    lines = []
    for name, floor_name in (
        ("tti", "floor: runsc restore"),
        ("tti", "floor: runsc run + exec"),
    ):
        if name in median and floor_name in median:
            lines.append(f"{name} = {median[name] / median[floor_name]:.2f} x {floor_name}")
    for name, floor_name in (
        ("exec", "floor: spawn inside"),
        ("GET /health through edge", "floor: GET /health direct"),
    ):
        if name in median and floor_name in median:
            lines.append(f"{name} = {floor_name} + {median[name] - median[floor_name]:.2f} ms")
    return lines


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
