"""The only place that may start a bare task: loops that must survive, work that must finish.

`every` runs a step again and again until cancelled and logs what it raises. `spawn` keeps a
reference to a task and logs its failure. `shielded` lets a step finish although its caller was
cancelled; `uninterrupted` also waits for it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_alive: set[asyncio.Task[Any]] = set()


async def every(
    period_s: float,
    step: Callable[[], Awaitable[object]],
    *,
    wake: asyncio.Event | None = None,
) -> None:
    """Run `step` now and then every `period_s` seconds, sooner when `wake` is set; for ever."""
    while True:
        if wake is not None:
            wake.clear()
        try:
            await step()
        except Exception:
            _log.exception("a step of %s failed and will be tried again", step)
        if wake is None:
            await asyncio.sleep(period_s)
            continue
        try:
            async with asyncio.timeout(period_s):
                await wake.wait()
        except TimeoutError:
            pass


def spawn(work: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
    """Start a task that outlives its caller; a failure nobody awaits is logged."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    _alive.add(task)
    task.add_done_callback(_done)
    return task


async def shielded(work: Coroutine[Any, Any, _T], *, name: str) -> _T:
    """Await `work`; if the caller is cancelled, `work` still runs to its end.

    What it raises is the caller's to handle, and is logged only when the caller is gone.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    _alive.add(task)
    task.add_done_callback(_alive.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_done)
        raise


async def uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` to its end; a cancellation that comes meanwhile is delivered after it."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()
    raise cancelled


def _done(task: asyncio.Task[Any]) -> None:
    _alive.discard(task)
    if not task.cancelled() and task.exception() is not None:
        _log.error("task %s failed", task.get_name(), exc_info=task.exception())
