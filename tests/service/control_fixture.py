"""The fixture `in_world`: run a scenario against control on every database there is."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
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
