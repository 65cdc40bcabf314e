"""`alcove key`: the API keys of a team."""

import click
from rich.table import Table

from alcove.cli.api import Api, segment, with_api
from alcove.cli.output import console, format_option, print_json


@click.group("key")
def key_group() -> None:
    """Make, list and revoke API keys."""


@key_group.command("create")
@with_api
@format_option
@click.argument("name")
def create(api: Api, output_format: str, name: str) -> None:
    """Make a key and show it, this once."""
    made = api.ask("POST", "/api-keys", {"name": name}).json()
    if output_format == "json":
        print_json(made)
    else:
        click.echo(made["key"])


@key_group.command("list")
@with_api
@format_option
def list_keys(api: Api, output_format: str) -> None:
    """List the keys: what they are called and when they were last used, not the keys."""
    keys = api.ask("GET", "/api-keys").json()
    if output_format == "json":
        print_json(keys)
        return
    table = Table(box=None, header_style="bold")
    for column in ("id", "name", "key", "created", "last used"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    for key in keys:
        mask = key["mask"]
        shown = f"{mask['prefix']}{mask['maskedValuePrefix']}…{mask['maskedValueSuffix']}"
        table.add_row(key["id"], key["name"], shown, key["createdAt"], key.get("lastUsed") or "-")
    console.print(table)


@key_group.command("revoke")
@with_api
@click.argument("key_id")
def revoke(api: Api, key_id: str) -> None:
    """End a key; what uses it is refused at once."""
    api.ask("DELETE", f"/api-keys/{segment(key_id)}")
