"""Commands of `alcove sandbox` that copy a sandbox in time: fork, snapshot, checkpoints, tree."""

from typing import Any

import click
from rich.markup import escape

from alcove.cli.api import Api, segment, with_api
from alcove.cli.output import EXIT_FAILED, format_option, print_json, progress_console
from alcove.cli.sandboxes import timeout_option

filesystem_option = click.option(
    "--filesystem", is_flag=True, help="Save the disk only: what is made of it boots."
)


@click.command("fork")
@with_api
@click.argument("sandbox_id")
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True)
@timeout_option
@format_option
def fork_command(
    api: Api, sandbox_id: str, *, count: int, timeout_s: int, output_format: str
) -> None:
    """Make copies of a running sandbox as it is now, and print their ids; it goes on."""
    entries = api.ask(
        "POST",
        f"/sandboxes/{segment(sandbox_id)}/fork",
        {"count": count, "timeout": timeout_s},
    ).json()
    failed = [entry["error"] for entry in entries if entry.get("error") is not None]
    if output_format == "json":
        print_json(entries)
    else:
        for entry in entries:
            if entry.get("sandbox") is not None:
                click.echo(entry["sandbox"]["sandboxID"])
    for error in failed:
        progress_console.print(f"[red]error:[/red] {escape(error['message'])}")
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


@click.command("snapshot")
@with_api
@click.argument("sandbox_id")
@click.option("--name", help="[NAMESPACE/]NAME[:TAG]; a name used before gets a new version.")
@filesystem_option
@format_option
def snapshot_command(
    api: Api, sandbox_id: str, *, name: str | None, filesystem: bool, output_format: str
) -> None:
    """Save a running sandbox as a template and print its id; the sandbox goes on."""
    body: dict[str, Any] = {}
    if name is not None:
        body["name"] = name
    if filesystem:
        body["memory"] = False
    taken = api.ask("POST", f"/sandboxes/{segment(sandbox_id)}/snapshots", body).json()
    if output_format == "json":
        print_json(taken)
    else:
        click.echo(taken["snapshotID"])


COMMANDS = (fork_command, snapshot_command)
