"""`alcove doctor`: what this machine can and cannot do, and how to mend it."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from alcove.cli.checks.finding import Finding, Level
from alcove.cli.checks.kvm_memory import KvmMemory
from alcove.cli.installation import Installation, Options, data_dir_option, load
from alcove.cli.output import EXIT_FAILED, console, format_option, print_json

_AT_ONCE = 6
_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@click.command("doctor")
@data_dir_option
@click.option("--fresh", is_flag=True, help="Boot the KVM probe guest again.")
@format_option
def doctor(data_dir: Path, fresh: bool, output_format: str) -> None:
    """Check this machine by trying what sandboxes need; exit code 1 if something fails."""
    if fresh:
        KvmMemory(data_dir).forget()
    findings = examine(load(data_dir) or Installation(data_dir, Options()))
    failed = any(finding.level is Level.FAIL for finding in findings)
    if output_format == "json":
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if failed:
        raise SystemExit(EXIT_FAILED)


def examine(installation: Installation) -> list[Finding]:
    """All findings, in a fixed order; every check has a time limit of its own."""
    from alcove.cli.checks import connection, isolation, machine

    checks = (*machine.CHECKS, *isolation.CHECKS, *connection.CHECKS)
    root = os.geteuid() == 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda check: check(installation, root=root), checks))


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        colour = _COLOURS[finding.level]
        table.add_row(f"[{colour}]{finding.level}[/]", finding.name, escape(finding.what_is))
        if finding.how_to_fix:
            table.add_row("", "", f"[bold]do:[/bold] {escape(finding.how_to_fix)}")
    console.print(table)
