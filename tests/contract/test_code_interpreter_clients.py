"""The other unmodified clients of the code interpreter: JavaScript's and PPIO's."""

import os
import subprocess
from pathlib import Path

import pytest

from contract.client_machine import client_machine
from contract.javascript import run_script
from contract.test_ppio import DOMAIN, client
from stack import OPTIONS, Stack

HERE = Path(__file__).parent

pytestmark = pytest.mark.timeout(600)


def test_javascript_client(stack: Stack, interpreter: str) -> None:
    told = {"ALCOVE_TEST_TEMPLATE": interpreter}
    run_script(stack, "interpreter.test.js", passes=7, limit_s=580, told=told)


def test_ppio_client(stack: Stack, interpreter: str) -> None:
    others = {k: v for k, v in os.environ.items() if not k.startswith(("E2B_", "PPIO_"))}
    settings = {
        "PPIO_API_KEY": stack.api_key,
        "PPIO_DOMAIN": DOMAIN,
        "SSL_CERT_FILE": stack.environment["SSL_CERT_FILE"],
    }
    with client_machine(f"{OPTIONS['instance']}-code", int(OPTIONS["tls-port"])) as inside:
        finished = subprocess.run(
            [*inside, client("2.1.0"), HERE / "ppio" / "interpreter.py", interpreter],
            env=others | settings,
            capture_output=True,
            text=True,
            timeout=580,
        )
    assert finished.returncode == 0, finished.stdout + finished.stderr
