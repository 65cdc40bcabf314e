"""Commands of `alcove sandbox` about other times of it: forks, snapshots, rollback, its tree."""

from typing import Any

import click
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from alcove.cli.api import Api, segment, with_api
from alcove.cli.output import EXIT_FAILED, console, format_option, print_json, progress_console
from alcove.cli.sandboxes import timeout_option, to_second

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
    taken = _save(api, f"/sandboxes/{segment(sandbox_id)}/snapshots", name, filesystem=filesystem)
    _print_id(taken, "snapshotID", output_format)


@click.command("checkpoint")
@with_api
@click.argument("sandbox_id")
@click.option("--name", help="Also a name for the snapshot: [NAMESPACE/]NAME[:TAG].")
@filesystem_option
@format_option
def checkpoint_command(
    api: Api, sandbox_id: str, *, name: str | None, filesystem: bool, output_format: str
) -> None:
    """Save a running sandbox to roll back to, and print the checkpoint's id; it goes on."""
    taken = _save(
        api, f"/v1/sandboxes/{segment(sandbox_id)}/checkpoints", name, filesystem=filesystem
    )
    _print_id(taken, "checkpointID", output_format)


@click.command("checkpoints")
@with_api
@click.argument("sandbox_id")
@format_option
def checkpoints_command(api: Api, sandbox_id: str, output_format: str) -> None:
    """List the checkpoints of a sandbox, the oldest first."""
    found = api.ask("GET", f"/v1/sandboxes/{segment(sandbox_id)}/checkpoints").json()
    if output_format == "json":
        print_json(found)
        return
    table = Table(box=None, header_style="bold")
    for column in ("id", "taken", "MiB", "keeps", "names", ""):
        table.add_column(column, no_wrap=True, overflow="ignore")
    for each in found:
        table.add_row(
            each["checkpointID"],
            to_second(each["createdAt"]),
            _mebibytes(each["sizeBytes"]),
            "memory, disk" if each["memory"] else "disk",
            ", ".join(each["names"]),
            "continued now" if each["current"] else "",
        )
    console.print(table)


@click.command("rollback")
@with_api
@click.argument("sandbox_id")
@click.argument("checkpoint_id")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(min=1),
    help="Seconds until it ends or is paused; default: one that runs keeps its end.",
)
@format_option
def rollback_command(
    api: Api, sandbox_id: str, checkpoint_id: str, *, timeout_s: int | None, output_format: str
) -> None:
    """Make a sandbox, running or paused, what a checkpoint of it shows; what came after is lost."""
    body: dict[str, Any] = {"checkpoint": checkpoint_id}
    if timeout_s is not None:
        body["timeout"] = timeout_s
    answer = api.ask("POST", f"/v1/sandboxes/{segment(sandbox_id)}/rollback", body)
    if output_format == "json":
        print_json(answer.json())
    else:
        progress_console.print("rolled back")


@click.command("tree")
@with_api
@click.argument("sandbox_id")
@format_option
def tree_command(api: Api, sandbox_id: str, output_format: str) -> None:
    """Show which sandboxes were made from each other's snapshots, and their checkpoints."""
    shown = api.ask("GET", f"/v1/sandboxes/{segment(sandbox_id)}/tree").json()
    if output_format == "json":
        print_json(shown)
        return
    for tree in _trees(shown, marked=sandbox_id):
        console.print(tree)
    if not shown["complete"]:
        progress_console.print("[yellow]the tree is larger than what is shown[/]")


def _save(api: Api, path: str, name: str | None, *, filesystem: bool) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if name is not None:
        body["name"] = name
    if filesystem:
        body["memory"] = False
    taken: dict[str, Any] = api.ask("POST", path, body).json()
    return taken


def _print_id(taken: dict[str, Any], name: str, output_format: str) -> None:
    if output_format == "json":
        print_json(taken)
    else:
        click.echo(taken[name])


def _trees(shown: dict[str, Any], marked: str) -> list[Tree]:
    """One tree, or several branches where what joined them is forgotten."""
    branches: dict[str, Tree] = {}
    for member in shown["sandboxes"]:
        sandbox_id = member["sandboxID"]
        name = f"[bold]{sandbox_id}[/]" if sandbox_id == marked else sandbox_id
        ended = f" ({member['stopReason']})" if member["stopReason"] else ""
        branches[sandbox_id] = Tree(
            f"{name} {member['state']}{ended}, started {to_second(member['startedAt'])}"
        )
    for each in shown["checkpoints"]:
        if each["sandboxID"] in branches:
            names = escape(", ".join(each["names"])) or each["checkpointID"]
            now = ", continued now" if each["current"] else ""
            taken = to_second(each["createdAt"])
            branches[each["sandboxID"]].add(
                f"checkpoint {names}, {taken}, {_mebibytes(each['sizeBytes'])} MiB{now}"
            )
    tops = []
    for member in shown["sandboxes"]:
        branch = branches[member["sandboxID"]]
        above = branches.get(member["parentID"])
        if above is None:
            tops.append(branch)
        else:
            above.children.append(branch)
    return tops


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f}"


COMMANDS = (
    fork_command,
    snapshot_command,
    checkpoint_command,
    checkpoints_command,
    rollback_command,
    tree_command,
)
