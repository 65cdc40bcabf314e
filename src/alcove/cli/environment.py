"""`alcove env`: what a client needs to use the sandboxes of this machine."""

import shlex
from pathlib import Path

import click

from alcove.cli.installation import Installation, data_dir_option, require
from alcove.cli.output import EXIT_NOT_RUNNING, CliError, print_json
from alcove.cli.supervise import running_supervisor


def client_environment(installation: Installation) -> dict[str, str]:
    """The variables every E2B client reads."""
    return {
        "E2B_API_URL": installation.api_url,
        "E2B_SANDBOX_URL": installation.sandbox_url,
        "E2B_VOLUME_API_URL": installation.api_url,
        "E2B_API_KEY": installation.api_key(),
    }


def trust_environment(installation: Installation) -> dict[str, str]:
    """What a client must trust to reach sandbox ports by https://{port}-{id}.{domain}."""
    tls = installation.data_dir / "tls"
    return {
        "E2B_DOMAIN": installation.options.domain,
        "SSL_CERT_FILE": str(tls / "bundle.pem"),
        "NODE_EXTRA_CA_CERTS": str(tls / "bundle.pem"),
    }


def exports(values: dict[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())


@click.command("env")
@data_dir_option
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["shell", "dotenv", "json"]),
    default="shell",
    show_default=True,
)
def env_command(data_dir: Path, output_format: str) -> None:
    r"""Print the variables that connect any E2B client to this machine.

    \b
    eval "$(alcove env)"
    """
    installation = require(data_dir)
    if running_supervisor(installation) is None:
        raise CliError("Alcove is not running", fix="run `alcove up`", exit_code=EXIT_NOT_RUNNING)
    values = client_environment(installation) | trust_environment(installation)
    match output_format:
        case "json":
            print_json(values)
        case "dotenv":
            click.echo("\n".join(f"{name}={value}" for name, value in values.items()))
        case _:
            click.echo(exports(values))
