"""`alcove node check`: does a driver keep its promises on this machine?"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from alcove.cli.installation import Installation, Options, data_dir_option, load
from alcove.cli.output import (
    EXIT_FAILED,
    CliError,
    console,
    format_option,
    print_json,
    progress_console,
)

_TIME_LIMIT_S = 900


@click.group("node")
def node_group() -> None:
    """About this machine as a node."""


@node_group.command("check")
@data_dir_option
@click.option("--driver", type=click.Choice(["gvisor", "fake"]), help="Default: the one in use.")
@click.option(
    "--slot-network",
    default="10.230.255.0/24",
    show_default=True,
    help="Private network for the check's own places.",
)
@format_option
def check_command(
    data_dir: Path, driver: str | None, slot_network: str, output_format: str
) -> None:
    """Try everything a driver must do, in sandboxes of its own; exit code 1 if it fails one.

    Takes half a minute. Sandboxes that run are not touched, and nothing is left.
    """
    installation = load(data_dir) or Installation(data_dir, Options())
    chosen = driver or installation.options.driver
    progress_console.print(f"checking the driver {chosen}")
    results = _run(installation, chosen, slot_network)
    kept = all(result["ok"] for result in results)
    if output_format == "json":
        print_json({"ok": kept, "driver": chosen, "results": results})
    else:
        _print(results)
    if not kept:
        raise SystemExit(EXIT_FAILED)


def _run(installation: Installation, driver: str, slot_network: str) -> list[dict[str, Any]]:
    wanted = {"ALCOVE_NODE_DRIVER": driver, "ALCOVE_NODE_SLOT_NETWORK": slot_network}
    finished = subprocess.run(
        [sys.executable, "-m", "alcove.node.main", "check"],
        env=os.environ | installation.environment() | wanted,
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_S,
        check=False,
    )
    if finished.returncode != 0:
        raise CliError(
            f"the check could not be run: {finished.stderr.strip()[-1000:]}",
            fix="see `alcove doctor`; the check needs root",
        )
    results: list[dict[str, Any]] = json.loads(finished.stdout)
    return results


def _print(results: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for result in results:
        word = "[green]kept[/]" if result["ok"] else "[red]broken[/]"
        promise = result["name"].replace("_", " ")
        table.add_row(word, promise, f"{result['took_ms']:.0f} ms")
        if result["detail"]:
            table.add_row("", escape(result["detail"]), "")
    console.print(table)
