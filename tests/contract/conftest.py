"""Sandboxes for contract tests, made by the official Python SDK."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2b import Sandbox

from stack import Stack

pytestmark = [pytest.mark.sdk]


@pytest.fixture(scope="module")
def shared(stack: Stack) -> Iterator[Sandbox]:
    """One sandbox for all tests of a module that do not disturb each other."""
    sandbox = Sandbox.create(timeout=600)
    yield sandbox
    sandbox.kill()


@pytest.fixture
def make(stack: Stack) -> Iterator[Callable[..., Sandbox]]:
    """Make sandboxes that end with the test."""
    made: list[Sandbox] = []

    def create(**options: Any) -> Sandbox:
        sandbox = Sandbox.create(**options)
        made.append(sandbox)
        return sandbox

    yield create
    for sandbox in made:
        sandbox.kill()
