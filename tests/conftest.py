"""Fixtures of all tests."""

import os
from collections.abc import Iterator

import pytest

import stack as stacks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the code interpreter come last: it is built while the others run."""
    if any(map(_needs_interpreter, items)):
        stacks.TEMPLATES.add("code_interpreter")
        items.sort(key=_needs_interpreter)
        # It may have to wait for the whole of the build.
        first = next(filter(_needs_interpreter, items))
        first.add_marker(pytest.mark.timeout(stacks.UP_TIMEOUT_S), append=False)


def _needs_interpreter(item: pytest.Item) -> bool:
    return "interpreter" in getattr(item, "fixturenames", ())


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


@pytest.fixture(scope="session")
def interpreter(stack: stacks.Stack) -> str:
    """Name of the code interpreter's template, once sandboxes can be made of it."""
    stack.wait_for_templates()
    return "code-interpreter-v1"
