"""Runs the official JavaScript SDK's contract tests (js/*.test.js) against the stack."""

import pytest

from contract.javascript import run_script
from stack import Stack


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
    run_script(stack, script, passes=count, limit_s=280)
