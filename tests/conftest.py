"""Fixtures of all tests."""

import os
from collections.abc import Iterator

import pytest

import stack as stacks

OF_THE_MACHINE = ("driver", "contract", "system", "security")
"""Tests that meet whatever else the machine does: kernel, disk, and a template being built."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the code interpreter come last: it is built while the others run.

    In CI a test of the machine that fails is run once more; the report names it (RERUN), and it
    is to be mended like one that failed.
    """
    if os.environ.get("CI"):
        for item in items:
            if item.path.relative_to(config.rootpath / "tests").parts[0] in OF_THE_MACHINE:
                item.add_marker(pytest.mark.flaky(reruns=1))
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
