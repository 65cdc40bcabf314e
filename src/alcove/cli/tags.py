"""Commands of `alcove template` about tags: what they mean, moving them, and moving them back."""

from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from alcove.cli.api import Api, segment, with_api
from alcove.cli.output import CliError, console, format_option, print_json, progress_console
from alcove.cli.sandboxes import to_second
from alcove.cli.templates import find_id

_DEFAULT = "default"


@click.group("tags")
def tags_group() -> None:
    """List the tags of a template, give tags to builds, take them away."""


@tags_group.command("list")
@with_api
@click.argument("name")
@format_option
def list_command(api: Api, name: str, output_format: str) -> None:
    """List the tags of a template and the builds they mean."""
    found = api.ask("GET", f"/templates/{find_id(api, name)}/tags").json()
    if output_format == "json":
        print_json(found)
        return
    table = Table("tag", "build", "since", box=None, header_style="bold")
    for tag in found:
        table.add_row(escape(tag["tag"]), tag["buildID"], to_second(tag["createdAt"]))
    console.print(table)


@tags_group.command("assign")
@with_api
@click.argument("target")
@click.argument("tags", nargs=-1, required=True)
@format_option
def assign_command(api: Api, target: str, tags: tuple[str, ...], output_format: str) -> None:
    """Give the build that TARGET means more tags: NAME, NAME:TAG or NAME:BUILD."""
    _report(_assign(api, target, list(tags)), target, output_format)


@tags_group.command("remove")
@with_api
@click.argument("name")
@click.argument("tags", nargs=-1, required=True)
def remove_command(api: Api, name: str, tags: tuple[str, ...]) -> None:
    """Take tags from a template; its builds stay."""
    api.ask("DELETE", "/templates/tags", {"name": name, "tags": list(tags)})
    progress_console.print("removed")


@click.command("rollback")
@with_api
@click.argument("name")
@click.option("--to", metavar="BUILD|TAG", help="Default: the build before, of those it meant.")
@format_option
def rollback_command(api: Api, name: str, to: str | None, output_format: str) -> None:
    """Have a tag of NAME[:TAG] mean an older build again; new sandboxes are made from that.

    Sandboxes that run are not touched. Nothing is built, and the newer build stays.
    """
    bare, _, tag = name.partition(":")
    tag = tag.strip().lower() or _DEFAULT
    target = to or _before(api, bare, tag)
    made = _assign(api, f"{bare}:{target}", [tag])
    _report(made, f"{bare}:{target}", output_format)


def _before(api: Api, name: str, tag: str) -> str:
    """The newest of the tag's builds that is older than the one it means."""
    path = f"/templates/{find_id(api, name)}/tags/{segment(tag)}/assignments"
    found: list[dict[str, Any]] = []
    params: dict[str, str | int] = {"limit": 100}
    while True:
        page = api.ask("GET", path, params=params).json()
        found += page["data"]
        if page["nextCursor"] is None:
            break
        params["cursor"] = page["nextCursor"]
    if not found:
        raise CliError(
            f"template {escape(name)} has no tag {escape(tag)}",
            fix=f"`alcove template tags list {escape(name)}` shows which there are",
        )
    now = found[0]["buildCreatedAt"]
    older = [each for each in found if each["buildCreatedAt"] < now]
    if not older:
        raise CliError(
            f"{escape(name)}:{escape(tag)} never meant an older build",
            fix="name a build: `--to`, with an id of `alcove template info`",
        )
    chosen = max(older, key=lambda each: str(each["buildCreatedAt"]))
    return str(chosen["buildId"])


def _assign(api: Api, target: str, tags: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = api.ask(
        "POST", "/templates/tags", {"target": target, "tags": tags}
    ).json()
    return made


def _report(made: dict[str, Any], target: str, output_format: str) -> None:
    if output_format == "json":
        print_json(made)
        return
    name = target.partition(":")[0]
    for tag in made["tags"]:
        progress_console.print(f"{escape(name)}:{escape(tag)} means build {made['buildID']}")
