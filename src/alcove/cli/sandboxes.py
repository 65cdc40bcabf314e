"""`alcove sandbox`: what runs and what is paused, and ending, pausing and resuming it."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlencode

import click
from rich.markup import escape
from rich.table import Table

from alcove.cli.api import Api, segment, with_api
from alcove.cli.output import (
    console,
    format_option,
    on_each,
    print_json,
    progress_console,
    read_pairs,
)

DEFAULT_TIMEOUT_S = 300

timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(min=0),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    help="Seconds until it ends, or is paused again if it was made so.",
)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="At most so many, the newest first; default: all."
)


@click.group("sandbox")
def sandbox_group() -> None:
    """List sandboxes; pause, resume, fork, roll back and kill them."""


@sandbox_group.command("list")
@with_api
@click.option("--state", type=click.Choice(["running", "paused"]), help="Default: both.")
@click.option("--template", help="Only sandboxes of this template.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="May be repeated: all match.")
@limit_option
@format_option
def list_command(
    api: Api,
    *,
    state: str | None,
    template: str | None,
    metadata: tuple[str, ...],
    limit: int | None,
    output_format: str,
) -> None:
    """List the team's sandboxes, running and paused, the newest first."""
    params: dict[str, str | int] = {}
    if state is not None:
        params["state"] = state
    if template is not None:
        params["template"] = template
    if metadata:
        params["metadata"] = _metadata(metadata)
    found = list(api.pages("/v2/sandboxes", params, limit))
    if output_format == "json":
        print_json(found)
        return
    table = Table(box=None, header_style="bold")
    for column in ("id", "template", "state", "started", "ends", "cpu", "MiB", "metadata"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    for each in found:
        pairs = " ".join(f"{key}={value}" for key, value in (each.get("metadata") or {}).items())
        table.add_row(
            each["sandboxID"],
            each.get("alias") or each["templateID"],
            each["state"],
            to_second(each["startedAt"]),
            to_second(each["endAt"]) if each["state"] == "running" else "-",
            str(each["cpuCount"]),
            str(each["memoryMB"]),
            escape(pairs),
        )
    console.print(table)


@sandbox_group.command("info")
@with_api
@click.argument("sandbox_id")
@format_option
def info_command(api: Api, sandbox_id: str, output_format: str) -> None:
    """Show all that is known of a sandbox: policy, idle tier, lineage, what was made its own."""
    shown = api.ask("GET", f"/v1/sandboxes/{segment(sandbox_id)}").json()
    if output_format == "json":
        print_json(shown)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in _flat(shown):
        table.add_row(name, escape(text))
    console.print(table)


@sandbox_group.command("pause")
@with_api
@click.argument("sandbox_ids", nargs=-1, required=True)
@click.option(
    "--filesystem", is_flag=True, help="Keep the disk only: what runs inside is ended first."
)
def pause_command(api: Api, sandbox_ids: tuple[str, ...], *, filesystem: bool) -> None:
    """Pause sandboxes: they cost their storage only until they are resumed."""

    def pause(sandbox_id: str) -> None:
        body = {"memory": False} if filesystem else None
        api.ask("POST", f"/sandboxes/{segment(sandbox_id)}/pause", body)

    on_each(sandbox_ids, pause, "paused")


@sandbox_group.command("resume")
@with_api
@click.argument("sandbox_id")
@timeout_option
@click.option("--reboot", is_flag=True, help="From its disk alone, although its memory was kept.")
@format_option
def resume_command(
    api: Api, sandbox_id: str, *, timeout_s: int, reboot: bool, output_format: str
) -> None:
    """Resume a paused sandbox; one that runs gets at least this much longer to live."""
    body: dict[str, Any] = {"timeout": timeout_s}
    if reboot:
        body["memory"] = False
    answer = api.ask("POST", f"/v2/sandboxes/{segment(sandbox_id)}/connect", body)
    if output_format == "json":
        print_json(answer.json())
    else:
        progress_console.print("resumed" if answer.status_code == 201 else "was running")


@sandbox_group.command("kill")
@with_api
@click.argument("sandbox_ids", nargs=-1, required=True)
def kill_command(api: Api, sandbox_ids: tuple[str, ...]) -> None:
    """End sandboxes, running or paused, for good."""
    on_each(
        sandbox_ids,
        lambda sandbox_id: api.ask("DELETE", f"/sandboxes/{segment(sandbox_id)}"),
        "killed",
    )


def to_second(time: str) -> str:
    """A time of the API without its fraction."""
    return time[:19] + "Z"


def _metadata(pairs: Iterable[str]) -> str:
    """The filter as clients of E2B write it, encoded once more than usual (contract e2b 2.6)."""
    found = read_pairs(pairs, "--metadata")
    return urlencode({quote(key): quote(value) for key, value in found.items()})


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Names and texts of nested values; a list by its length; what is empty is left out."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            yield prefix + name, "yes" if value else "no"
        elif isinstance(value, list):
            yield prefix + name, str(len(value))
        elif value not in (None, ""):
            yield prefix + name, str(value)
