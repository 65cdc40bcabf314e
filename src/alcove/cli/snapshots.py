"""`alcove snapshot`: what sandboxes were saved as, from which others can be made."""

import click
from rich.table import Table

from alcove.cli.api import Api, segment, with_api
from alcove.cli.output import console, format_option, print_json, progress_console
from alcove.cli.sandboxes import limit_option


@click.group("snapshot")
def snapshot_group() -> None:
    """List and delete snapshots; `alcove sandbox snapshot` takes one."""


@snapshot_group.command("list")
@with_api
@click.option("--sandbox", "sandbox_id", help="Only those of this sandbox.")
@click.option("--name", help="Only those of this name.")
@limit_option
@format_option
def list_command(
    api: Api, sandbox_id: str | None, name: str | None, limit: int | None, output_format: str
) -> None:
    """List the team's snapshots, the newest first."""
    params: dict[str, str | int] = {}
    if sandbox_id is not None:
        params["sandboxID"] = sandbox_id
    if name is not None:
        params["name"] = name
    found = list(api.pages("/snapshots", params, limit))
    if output_format == "json":
        print_json(found)
        return
    table = Table("id", "names", box=None, header_style="bold")
    for each in found:
        table.add_row(each["snapshotID"], ", ".join(each["names"]))
    console.print(table)


@snapshot_group.command("delete")
@with_api
@click.argument("snapshot_id")
def delete_command(api: Api, snapshot_id: str) -> None:
    """Delete a snapshot; refused while sandboxes made from it live."""
    api.ask("DELETE", f"/templates/{segment(snapshot_id)}")
    progress_console.print("deleted")
