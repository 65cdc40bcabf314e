"""`alcove key`: the API keys of the local team."""

from pathlib import Path
from typing import Any

import click
import httpx
from rich.table import Table

from alcove.cli.installation import data_dir_option, require
from alcove.cli.output import (
    EXIT_NOT_RUNNING,
    CliError,
    console,
    format_option,
    print_json,
)

TIMEOUT_S = 10.0


@click.group("key")
def key_group() -> None:
    """Make, list and revoke API keys."""


@key_group.command("create")
@data_dir_option
@format_option
@click.argument("name")
def create(data_dir: Path, output_format: str, name: str) -> None:
    """Make a key and show it, this once."""
    made = _ask(data_dir, "POST", "/api-keys", {"name": name}).json()
    if output_format == "json":
        print_json(made)
    else:
        click.echo(made["key"])


@key_group.command("list")
@data_dir_option
@format_option
def list_keys(data_dir: Path, output_format: str) -> None:
    """List the keys: what they are called and when they were last used, not the keys."""
    keys = _ask(data_dir, "GET", "/api-keys").json()
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
@data_dir_option
@click.argument("key_id")
def revoke(data_dir: Path, key_id: str) -> None:
    """End a key; what uses it is refused at once."""
    _ask(data_dir, "DELETE", f"/api-keys/{key_id}")


def _ask(
    data_dir: Path, method: str, path: str, body: dict[str, Any] | None = None
) -> httpx.Response:
    installation = require(data_dir)
    try:
        answer = httpx.request(
            method,
            f"{installation.api_url}{path}",
            json=body,
            headers={"X-API-Key": installation.api_key()},
            timeout=TIMEOUT_S,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise CliError(
            f"the API does not answer: {error}", fix="run `alcove up`", exit_code=EXIT_NOT_RUNNING
        ) from error
    if not answer.is_success:
        raise CliError(_message(answer), fix="see `alcove key list`")
    return answer


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError):
        return f"the API answered {answer.status_code}"
