"""`alcove template`: environments to make sandboxes from, their builds and what those printed."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alcove.cli.api import Api, segment, with_api
from alcove.cli.output import (
    EXIT_NOT_RUNNING,
    CliError,
    console,
    format_option,
    on_each,
    print_json,
    progress_console,
)
from alcove.cli.sandboxes import to_second

ENDED = {"ready", "error"}
_LOG_PAGE = 100
_LOG_PERIOD_S = 0.3
_AWAY_S = 60.0
_COLOURS = {"error": "red", "warn": "yellow", "debug": "dim"}


@click.group("template")
def template_group() -> None:
    """Build templates, list and delete them; move their tags, read their builds' logs."""


@template_group.command("list")
@with_api
@format_option
def list_command(api: Api, output_format: str) -> None:
    """List the templates that the team can use: its own and those that ship with Alcove."""
    found = list(api.pages("/v2/templates", {}, None))
    if output_format == "json":
        print_json(found)
        return
    table = Table(box=None, header_style="bold")
    for column in ("name", "id", "newest build", "for", "builds", "cpu", "MiB", "sandboxes made"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    for shown in found:
        table.add_row(
            escape(", ".join(shown["names"]) or "-"),
            shown["templateID"],
            _state(shown["buildStatus"]),
            _audience(shown),
            str(shown["buildCount"]),
            str(shown["cpuCount"]),
            str(shown["memoryMB"]),
            str(shown["spawnCount"]),
        )
    console.print(table)


@template_group.command("info")
@with_api
@click.argument("name")
@format_option
def info_command(api: Api, name: str, output_format: str) -> None:
    """Show a template: its names, its builds and which tags mean them."""
    template_id = find_id(api, name)
    shown = api.ask("GET", f"/templates/{template_id}").json()
    tags = api.ask("GET", f"/templates/{template_id}/tags").json()
    if output_format == "json":
        print_json(shown | {"tags": tags})
        return
    who = "every team" if shown["public"] else "its team"
    console.print(f"{escape(', '.join(shown['names']) or template_id)}  {template_id}, for {who}")
    table = Table(box=None, header_style="bold")
    for column in ("build", "state", "tags", "begun", "seconds", "cpu", "MiB", "disk MiB"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    for build in shown["builds"]:
        meant = [tag["tag"] for tag in tags if tag["buildID"] == build["buildID"]]
        table.add_row(
            build["buildID"],
            _state(build["status"]),
            escape(" ".join(sorted(meant))) or "-",
            to_second(build["createdAt"]),
            _seconds(build),
            str(build["cpuCount"]),
            str(build["memoryMB"]),
            str(build["diskSizeMB"]),
        )
    console.print(table)


@template_group.command("delete")
@with_api
@click.argument("names", nargs=-1, required=True)
def delete_command(api: Api, names: tuple[str, ...]) -> None:
    """Delete templates with all their builds; refused while sandboxes made of them live."""
    on_each(names, lambda name: api.ask("DELETE", f"/templates/{segment(name)}"), "deleted")


@template_group.command("publish")
@with_api
@click.argument("names", nargs=-1, required=True)
def publish_command(api: Api, names: tuple[str, ...]) -> None:
    """Let every team use templates."""
    on_each(names, lambda name: _set_public(api, name, public=True), "can be used by every team")


@template_group.command("unpublish")
@with_api
@click.argument("names", nargs=-1, required=True)
def unpublish_command(api: Api, names: tuple[str, ...]) -> None:
    """Keep templates for the team again."""
    on_each(names, lambda name: _set_public(api, name, public=False), "is the team's own")


@template_group.command("logs")
@with_api
@click.argument("name")
@click.option("--build", "build_id", help="A build's id; default: what the tag means, or newest.")
@click.option("--level", type=click.Choice(["debug", "info", "warn", "error"]), default="debug")
@click.option("-f", "--follow", is_flag=True, help="Until the build has ended.")
@format_option
def logs_command(
    api: Api, *, name: str, build_id: str | None, level: str, follow: bool, output_format: str
) -> None:
    """Print what a build of NAME[:TAG] printed; without a tag the newest one.

    The exit code is 1 if the build failed.
    """
    template_id = find_id(api, name)
    build = build_id or choose_build(api, template_id, name)
    entries: list[dict[str, Any]] = []
    say = entries.append if output_format == "json" else show_line
    ended = read_log(api, template_id, build, say, level=level, follow=follow)
    if output_format == "json":
        print_json(entries)
    if ended["status"] == "error":
        raise CliError(escape(why(ended)))


@template_group.command("cancel")
@with_api
@click.argument("name")
@click.option("--build", "build_id", help="A build's id; default: the newest.")
def cancel_command(api: Api, name: str, build_id: str | None) -> None:
    """End a build that is under way; the template's tags stay as they are."""
    template_id = find_id(api, name)
    build = build_id or choose_build(api, template_id, name)
    path = f"/templates/{template_id}/builds/{segment(build)}/status"
    if api.ask("GET", path, params={"limit": 0}).json()["status"] in ENDED:
        raise CliError(f"build {escape(build)} has ended already")
    cancel(api, template_id, build)
    progress_console.print("cancelled")


def find_id(api: Api, name: str) -> str:
    """The id of the template that a name means, with a tag or without."""
    found = api.ask("GET", f"/templates/aliases/{segment(name)}").json()
    return str(found["templateID"])


def choose_build(api: Api, template_id: str, name: str) -> str:
    """The build that the tag in a name means; without one the newest, whatever became of it."""
    tag = name.partition(":")[2].strip().lower()
    if tag:
        for each_tag in api.ask("GET", f"/templates/{template_id}/tags").json():
            if each_tag["tag"] == tag:
                return str(each_tag["buildID"])
        raise CliError(
            f"no build that is ready has the tag {escape(tag)}",
            fix=f"`alcove template info {escape(name.partition(':')[0])}` lists builds and tags",
        )
    builds = api.ask("GET", f"/templates/{template_id}", params={"limit": 1}).json()["builds"]
    if not builds:
        raise CliError(f"template {escape(name)} has no build")
    return str(builds[0]["buildID"])


def read_log(
    api: Api,
    template_id: str,
    build_id: str,
    say: Callable[[dict[str, Any]], None],
    *,
    level: str = "debug",
    follow: bool,
) -> dict[str, Any]:
    """Hand on the entries of a build's log; what its status was at last.

    A server that is away is waited for, because builds outlive it.
    """
    path = f"/templates/{template_id}/builds/{segment(build_id)}/status"
    seen, away_since = 0, None
    while True:
        params: dict[str, str | int] = {"logsOffset": seen, "limit": _LOG_PAGE, "level": level}
        try:
            status: dict[str, Any] = api.ask("GET", path, params=params).json()
        except CliError as error:
            away_since = away_since or time.monotonic()
            gone = time.monotonic() - away_since > _AWAY_S
            if error.exit_code != EXIT_NOT_RUNNING or not seen or gone:
                raise
            time.sleep(_LOG_PERIOD_S)
            continue
        away_since = None
        for entry in status["logEntries"]:
            say(entry)
        seen += len(status["logEntries"])
        if not status["logEntries"]:
            if not follow or status["status"] in ENDED:
                return status
            time.sleep(_LOG_PERIOD_S)


def show_line(entry: dict[str, Any], on: Console = console) -> None:
    """Print one entry in the colour of its level."""
    colour = _COLOURS.get(entry["level"])
    text = escape(entry["message"])
    time_of_day = entry["timestamp"][11:19]
    on.print(f"[dim]{time_of_day}[/dim] " + (f"[{colour}]{text}[/]" if colour else text))


def why(status: dict[str, Any]) -> str:
    """Why a build failed, and where."""
    reason = status.get("reason") or {}
    step = reason.get("step", "")
    at = f" at step {step}" if step.isdecimal() else f" ({step})" if step else ""
    return f"the build failed{at}: {reason.get('message') or 'no reason was given'}"


def cancel(api: Api, template_id: str, build_id: str) -> None:
    api.ask("POST", f"/v1/templates/{template_id}/builds/{segment(build_id)}/cancel")


def _set_public(api: Api, name: str, *, public: bool) -> None:
    api.ask("PATCH", f"/v2/templates/{segment(name)}", {"public": public})


def _state(state: str) -> str:
    colour = {"ready": "green", "error": "red"}.get(state, "yellow")
    return f"[{colour}]{state}[/]"


def _audience(shown: dict[str, Any]) -> str:
    if shown["isDefault"]:
        return "all, shipped"
    return "all" if shown["public"] else "team"


def _seconds(build: dict[str, Any]) -> str:
    if "finishedAt" not in build:
        return "-"
    began, ended = (datetime.fromisoformat(build[key]) for key in ("createdAt", "finishedAt"))
    return f"{(ended - began).total_seconds():.1f}"
