"""`alcove sandbox run`: code in a sandbox's code interpreter, and what it did."""

from typing import Any, TextIO

import click

from alcove.cli.api import Api, segment, with_api
from alcove.cli.output import format_option, print_json, read_pairs

_ANSWER_MARGIN_S = 90.0
"""Time for a paused sandbox to be woken, beside the code's own."""
_TEXTS = ("text", "markdown", "html", "latex", "json", "svg")


@click.command("run")
@with_api
@click.argument("sandbox_id")
@click.argument("file", type=click.File("r"))
@click.option("--language", help="python (default), javascript, typescript, bash, r, java.")
@click.option("--context", "context_id", help="A context, in place of a language's default one.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=60.0,
    show_default=True,
    help="Seconds; then the code is interrupted.",
)
@click.option("--env", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@format_option
def run_command(
    api: Api,
    *,
    sandbox_id: str,
    file: TextIO,
    language: str | None,
    context_id: str | None,
    timeout_s: float,
    env: tuple[str, ...],
    output_format: str,
) -> None:
    """Run the code in FILE (- for standard input) in a sandbox; its exit code becomes ours.

    0: it ran; 1: it failed; 124: its time was over. Variables stay for the next run.
    """
    body = {
        "code": file.read(),
        "timeout": timeout_s,
        "language": language,
        "context_id": context_id,
        "env": read_pairs(env, "--env") or None,
    }
    wanted = {name: value for name, value in body.items() if value is not None}
    path = f"/v1/sandboxes/{segment(sandbox_id)}/execute"
    answer = api.ask("POST", path, wanted, timeout_s=timeout_s + _ANSWER_MARGIN_S).json()
    if output_format == "json":
        print_json(answer)
    else:
        _show(answer)
    raise click.exceptions.Exit(answer["exit_code"])


def _show(answer: dict[str, Any]) -> None:
    click.echo(answer["stdout"], nl=False)
    click.echo(answer["stderr"], nl=False, err=True)
    for result in answer["results"]:
        click.echo(_text(result))
    if answer["error"] is not None:
        error = answer["error"]
        click.echo(error["traceback"] or f"{error['name']}: {error['value']}", err=True)
    if answer["truncated"]:
        left_out = ", ".join(f"{n} of {name}" for name, n in answer["dropped"].items() if n)
        click.echo(f"too large and left out: {left_out}", err=True)


def _text(result: dict[str, Any]) -> str:
    """A result in words: its plainest text, or which formats it has."""
    for name in _TEXTS:
        if result.get(name):
            return str(result[name])
    formats = sorted(name for name, value in result.items() if value and name != "is_main_result")
    return f"[{', '.join(formats) or 'nothing'}]"
