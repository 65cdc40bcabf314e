"""Runs the official JavaScript SDK's contract tests (js/contract.test.js) against the stack."""

import os
import subprocess
from pathlib import Path

from stack import Stack

FOLDER = Path(__file__).parent / "js"


def test_javascript_sdk(stack: Stack) -> None:
    finished = subprocess.run(
        ["node", "--test", "--test-reporter=spec", "contract.test.js"],
        cwd=FOLDER,
        env=os.environ | stack.environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "pass 9" in finished.stdout
