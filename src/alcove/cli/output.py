"""How the command line speaks: one console, JSON when asked, errors that say what to do.

Exit codes: 0 done · 1 failed · 2 wrong usage · 3 Alcove is not running here.
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

EXIT_FAILED = 1
EXIT_NOT_RUNNING = 3

PIPE_WIDTH = 160
"""Columns of a table that no terminal limits."""

console = Console(
    highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH
)
"""For people: results of commands."""

progress_console = Console(stderr=True, highlight=False, soft_wrap=True)
"""For progress and errors, so that standard output can be piped."""


class CliError(click.ClickException):
    """A command failed: what happened, and what the user can do about it."""

    def __init__(
        self, message: str, fix: str = "", exit_code: int = EXIT_FAILED, status: int = 0
    ) -> None:
        """`status`: what the API answered, if that is what went wrong."""
        super().__init__(message)
        self.fix = fix
        self.status = status
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance too

    def show(self, file: Any = None) -> None:
        del file
        progress_console.print(f"[red]error:[/red] {self.message}", markup=True)
        if self.fix:
            progress_console.print(f"  [bold]do:[/bold] {self.fix}", markup=True)


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def on_each(names: Iterable[str], act: Callable[[str], object], done: str) -> None:
    """Act on all; one that fails does not spare the others, but the exit code is 1."""
    failed = False
    for name in names:
        try:
            act(name)
        except CliError as error:
            if error.exit_code != EXIT_FAILED:
                raise
            error.show()
            failed = True
        else:
            progress_console.print(f"{escape(name)} {done}")
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def read_pairs(pairs: Iterable[str], option: str) -> dict[str, str]:
    """What a repeatable option of KEY=VALUE was given."""
    split = [pair.partition("=") for pair in pairs]
    if not all(name and equals for name, equals, _ in split):
        raise click.BadParameter("must be KEY=VALUE", param_hint=option)
    return {name: value for name, _, value in split}


format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print the result.",
)
