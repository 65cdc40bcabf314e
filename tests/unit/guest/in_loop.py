"""Runs asynchronous tests, each in an event loop of its own."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Let pytest call an asynchronous test."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(_limited(test(*args, **kwargs)))

    return run


async def _limited(test: Awaitable[None]) -> None:
    async with asyncio.timeout(60):
        await test
