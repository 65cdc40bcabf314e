"""File-system calls, off the event loop: any of them may hang on a slow or hostile file system."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Its own pool: calls that hang must not take the loop's default executor with them.
_MAX_THREADS = 8
executor = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="files")


async def in_thread(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a blocking call in a thread.

    A cancelled caller still waits for the call to end: it may own descriptors the call is using.
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(executor, functools.partial(call, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await _settled(future)
        raise


async def _settled(future: asyncio.Future[_T]) -> None:
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # the caller is gone; nobody else would fetch it
