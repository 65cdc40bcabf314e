"""`alcove up`, `down` and `status`: the services of this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import httpx
from rich.table import Table

from alcove.cli.environment import client_environment, exports
from alcove.cli.installation import Installation, choose, data_dir_option, require
from alcove.cli.output import (
    EXIT_NOT_RUNNING,
    CliError,
    console,
    format_option,
    print_json,
    progress_console,
)
from alcove.cli.processes import end
from alcove.cli.readiness import (
    Say,
    problems,
    progress,
    status,
    template_name,
    wait_for_services,
    wait_for_templates,
)
from alcove.cli.supervise import (
    end_leftovers,
    read_state,
    running_supervisor,
    state_file,
)

DOWN_TIMEOUT_S = 60.0
PURGE_TIMEOUT_S = 120.0


@click.command("up")
@data_dir_option
@click.option("--instance", help="Prefix of namespaces, cgroups and devices (a-z0-9, at most 8).")
@click.option("--driver", type=click.Choice(["gvisor", "fake"]), help="How sandboxes are isolated.")
@click.option("--domain", help="Sandbox ports are {port}-{id}.DOMAIN.")
@click.option("--host", help="Address that API and edge listen on.")
@click.option("--api-port", type=click.IntRange(1, 65535))
@click.option("--edge-port", type=click.IntRange(1, 65535))
@click.option("--tls-port", type=click.IntRange(1, 65535))
@click.option("--node-port", type=click.IntRange(1, 65535))
@click.option("--ingress-port", type=click.IntRange(1, 65535))
@click.option("--edge-metrics-port", type=click.IntRange(1, 65535))
@click.option("--slot-network", help="IPv4 network that this machine's sandboxes are numbered in.")
@click.option("--places-ready", type=click.IntRange(0, 64), help="Prepared places per template.")
@click.option("--database-url", help="postgresql+asyncpg://… in place of the embedded SQLite.")
@click.option(
    "--max-sandbox-hours", type=click.IntRange(0), help="Longest life of a sandbox; 0: ten years."
)
@click.option("--concurrent-sandboxes", type=click.IntRange(1), help="Sandboxes a team may have.")
@click.option("--no-wait", is_flag=True, help="Return before any template is built.")
@click.option("--wait-templates", is_flag=True, help="Return once all templates are built.")
def up_command(data_dir: Path, no_wait: bool, wait_templates: bool, **chosen: Any) -> None:
    """Start Alcove on this machine, or say that it runs; repeating it changes nothing."""
    installation, changed = choose(data_dir, chosen)
    if os.geteuid() != 0 and installation.options.driver != "fake":
        raise CliError("`alcove up` must be root to make sandboxes", fix="run it with sudo")
    running = running_supervisor(installation)
    if running and changed:
        raise CliError(
            f"Alcove runs with other options ({', '.join(changed)})",
            fix="run `alcove down` first; sandboxes end with it unless --keep-sandboxes is given",
        )
    if running is None:
        installation.save()
        end_leftovers(installation)
        _start(installation)
    with progress() as say:
        wait_for_services(installation, say)
        later = [] if no_wait else _wait(installation, say, every=wait_templates)
    already = "already " if running else ""
    progress_console.print(
        f"Alcove is {already}running: API {installation.api_url}, "
        f"sandboxes {installation.sandbox_url}"
    )
    for template in later:
        progress_console.print(
            f"Template {template_name(template)} is being built in the background; "
            "`alcove status` shows how far it is"
        )
    click.echo(exports(client_environment(installation)))


@click.command("down")
@data_dir_option
@click.option("--keep-sandboxes", is_flag=True, help="Stop the services only.")
def down_command(data_dir: Path, keep_sandboxes: bool) -> None:
    """Stop Alcove's services and, unless told otherwise, its sandboxes. Data stays."""
    installation = require(data_dir)
    supervisor = running_supervisor(installation)
    if supervisor is not None:
        end(supervisor, DOWN_TIMEOUT_S)
    end_leftovers(installation)
    state_file(installation).unlink(missing_ok=True)
    purged = ""
    if not keep_sandboxes:
        purged = _purge(installation)
    stopped = "stopped" if supervisor else "was not running"
    progress_console.print(f"Alcove {stopped}. {purged}".strip())


@click.command("status")
@data_dir_option
@format_option
def status_command(data_dir: Path, output_format: str) -> None:
    """Say what runs, which templates are ready and how many sandboxes there are."""
    installation = require(data_dir)
    running = running_supervisor(installation) is not None
    report: dict[str, Any] = {
        "running": running,
        "api_url": installation.api_url,
        "sandbox_url": installation.sandbox_url,
        "processes": read_state(installation).get("children", {}) if running else {},
        "problems": problems(installation) if running else ["Alcove is not running"],
    }
    try:
        report |= status(installation) if running else {}
    except httpx.HTTPError as error:
        report["problems"].append(f"control: {error}")
    if output_format == "json":
        print_json(report)
    else:
        _print_status(report)
    if not running:
        raise click.exceptions.Exit(EXIT_NOT_RUNNING)


def _wait(installation: Installation, say: Say, *, every: bool) -> list[dict[str, Any]]:
    """Wait for what every client may want at once; returns the templates that will come later."""
    return wait_for_templates(installation, say, None if every else {"base"})


def _start(installation: Installation) -> None:
    log = installation.logs / "supervise.log"
    with log.open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "alcove.cli.supervise", str(installation.data_dir)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    with progress() as say:
        say("starting the services")
        _wait_for_supervisor(installation)


def _wait_for_supervisor(installation: Installation) -> None:
    deadline = time.monotonic() + 10
    while running_supervisor(installation) is None:
        if time.monotonic() > deadline:
            raise CliError(
                "the supervisor did not start",
                fix=f"see {installation.logs / 'supervise.log'}",
            )
        time.sleep(0.02)


def _purge(installation: Installation) -> str:
    """Remove every kernel object of this instance; what the node's own clean-up says."""
    finished = subprocess.run(
        [sys.executable, "-m", "alcove.node.main", "purge"],
        env=os.environ | installation.environment(),
        capture_output=True,
        text=True,
        timeout=PURGE_TIMEOUT_S,
        check=False,
    )
    if finished.returncode != 0:
        raise CliError(
            f"sandboxes could not be removed: {finished.stderr.strip()[-500:]}",
            fix="run `alcove down` again, or see `alcove logs node`",
        )
    return finished.stdout.strip()


def _print_status(report: dict[str, Any]) -> None:
    console.print(f"API        {report['api_url']}")
    console.print(f"sandboxes  {report['sandbox_url']}")
    for problem in report["problems"]:
        console.print(f"[yellow]problem[/yellow]    {problem}")
    if report["processes"]:
        processes = Table("process", "pid", "restarts", box=None, header_style="bold")
        for name, child in report["processes"].items():
            processes.add_row(name, str(child.get("pid", "-")), str(child["restarts"]))
        console.print(processes)
    if "templates" in report:
        templates = Table("template", "state", "", box=None, header_style="bold")
        for template in report["templates"]:
            templates.add_row(
                ", ".join(template["aliases"]), template["state"], template["progress"]
            )
        console.print(templates)
        console.print(f"running sandboxes: {report['sandboxes']['running']}")
