"""The same probe against other ways to run code: any E2B-compatible service, and plain Docker."""

import os
import secrets
import subprocess

from alcove.cli.bench import client
from alcove.cli.bench.series import Series, expect, milliseconds
from alcove.cli.output import CliError

ENDPOINT_VARIABLES = ("E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DOMAIN")
COMMAND_TIMEOUT_S = 120


def service(runs: int) -> list[Series]:
    """Create to first output, create, kill, and a command, at the service the environment names."""
    if not os.environ.get("E2B_API_KEY"):
        raise CliError(
            "E2B_API_KEY is not set",
            fix=f"export what the service's clients need: {', '.join(ENDPOINT_VARIABLES)}",
        )
    return [*client.first_command(runs), *client.commands(runs)]


def docker(runs: int, image: str) -> list[Series]:
    """`docker run --rm IMAGE echo`: process start to output, container removed."""
    series = Series("docker run", "ms", note=f"docker run --rm {image} echo …")
    for _ in range(runs):
        nonce = secrets.token_hex(8)
        with milliseconds(series):
            finished = subprocess.run(
                ["docker", "run", "--rm", image, "echo", nonce],
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
            expect("docker run", (finished.returncode, finished.stdout), (0, f"{nonce}\n"))
    return [series]
