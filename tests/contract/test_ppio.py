"""The unmodified PPIO clients, by domain: pause, clone, reset, commit, snapshots, events.

The two lines of the client cannot live in one environment, so each has its own, made once.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.client_machine import client_machine
from stack import DATA_DIR, OPTIONS, Stack

FOLDER = Path(__file__).parent / "ppio"
DOMAIN = "alcove.localhost"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def inside(stack: Stack) -> Iterator[list[str]]:
    with client_machine(f"{OPTIONS['instance']}-ppio", int(OPTIONS["tls-port"])) as words:
        yield words


def client(version: str) -> Path:
    """The interpreter of an environment with that release of the client."""
    environment = DATA_DIR / "clients" / f"ppio-{version}"
    python = environment / "bin" / "python"
    if not (environment / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        install = [python, "-m", "pip", "install", "--quiet", f"ppio-sandbox=={version}"]
        subprocess.run(install, check=True)
        (environment / "complete").touch()
    return python


@pytest.mark.parametrize(
    ("script", "version", "settings"),
    [
        ("modern.py", "2.1.0", {"PPIO_DOMAIN": DOMAIN}),
        ("legacy.py", "2.1.0", {"PPIO_API_URL": f"https://api.{DOMAIN}"}),
        ("version1.py", "1.1.3", {"PPIO_DOMAIN": DOMAIN}),
    ],
)
def test_ppio_client(
    stack: Stack, inside: list[str], script: str, version: str, settings: dict[str, str]
) -> None:
    others = {k: v for k, v in os.environ.items() if not k.startswith(("E2B_", "PPIO_"))}
    common = {"PPIO_API_KEY": stack.api_key, "SSL_CERT_FILE": stack.environment["SSL_CERT_FILE"]}
    finished = subprocess.run(
        [*inside, client(version), FOLDER / script],
        env=others | common | settings,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
