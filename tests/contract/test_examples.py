"""What the documents show, done as a reader would: examples/*.py and the shell of pages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stack import Stack

ROOT = Path(__file__).parents[2]
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.timeout(180)


def test_time_travel_example(stack: Stack) -> None:
    finished = subprocess.run(
        [sys.executable, ROOT / "examples" / "time_travel.py"],
        env=os.environ | stack.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    numbers = [int(line.rsplit(" ", 1)[1]) for line in finished.stdout.splitlines()]
    assert len(numbers) == 4
    assert numbers == sorted(numbers)
    assert numbers[0] >= 5


def test_time_travel_by_shell(stack: Stack) -> None:
    page = (ROOT / "docs" / "reference" / "time-travel.md").read_text()
    (script,) = SHELL.findall(page)
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=os.environ | stack.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
