"""Runs the official JavaScript SDK's contract tests (js/*.test.js) against the stack."""

import os
import subprocess
from pathlib import Path

import pytest

from stack import Stack

FOLDER = Path(__file__).parent / "js"


@pytest.mark.timeout(300)  # builds of templates take their time
@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("contract.test.js", 9),
        ("travel.test.js", 6),
        ("template.test.js", 3),
        ("volume.test.js", 2),
    ],
)
def test_javascript_sdk(stack: Stack, script: str, count: int) -> None:
    finished = subprocess.run(
        ["node", "--test", "--test-reporter=spec", script],
        cwd=FOLDER,
        env=os.environ | stack.environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"pass {count}" in finished.stdout
