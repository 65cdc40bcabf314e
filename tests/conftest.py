"""Fixtures of all tests."""

import os
from collections.abc import Iterator

import pytest

import stack as stacks


@pytest.fixture(scope="session")
def stack() -> Iterator[stacks.Stack]:
    """A running Alcove; the official clients in this process find it through the environment."""
    running = stacks.start()
    before = dict(os.environ)
    os.environ.update({k: v for k, v in running.environment.items() if k.startswith("E2B_")})
    yield running
    os.environ.clear()
    os.environ.update(before)
    stacks.alcove_down()
