"""The fixture `in_world`: run a scenario against control on every database there is."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from control_world import DATABASES, World, world

Scenario = Callable[[World], Awaitable[None]]
InWorld = Callable[..., None]

_MARKS = {"postgresql": pytest.mark.postgres}


@pytest.fixture(params=[pytest.param(name, marks=_MARKS.get(name, ())) for name in DATABASES])
def in_world(request: pytest.FixtureRequest, tmp_path: Path) -> InWorld:
    def run(scenario: Scenario, **options: Any) -> None:
        async def go() -> None:
            async with world(tmp_path, request.param, **options) as here:
                await scenario(here)

        asyncio.run(go())

    return run


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """No log lines: of ten thousand sandboxes, or from a thread past pytest's capturing."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)
