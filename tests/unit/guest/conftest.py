"""Fixtures of the guest's tests."""

from collections.abc import Iterator

import pytest
from guest_agent import Agent, running_agent


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for all tests of a module; it has no access token."""
    with running_agent(tmp_path_factory.mktemp("root")) as running:
        yield running


@pytest.fixture
def own_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent for one test that changes it."""
    with running_agent(tmp_path_factory.mktemp("root")) as running:
        yield running
