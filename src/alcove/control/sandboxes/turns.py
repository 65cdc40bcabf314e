"""What this process is doing to which sandbox, and the news of it.

Both are known in this process only: who waits for news looks at the database again now and then,
because another replica may have made the change.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from alcove.concurrency import spawn
from alcove.control.errors import ControlError
from alcove.wire.ids import SandboxId

_T = TypeVar("_T")


class Turns(Generic[_T]):
    """One piece of work per sandbox at a time; who comes meanwhile joins it.

    The work goes on when those who await it have gone.
    """

    def __init__(self) -> None:
        self._under_way: dict[SandboxId, asyncio.Task[_T | ControlError]] = {}

    def busy(self, sandbox_id: SandboxId) -> bool:
        return sandbox_id in self._under_way

    async def free(self, sandbox_id: SandboxId) -> None:
        """Return once nothing is under way."""
        while (task := self._under_way.get(sandbox_id)) is not None:
            await asyncio.wait([task])

    def begin(
        self, sandbox_id: SandboxId, work: Callable[[], Coroutine[Any, Any, _T]], *, name: str
    ) -> asyncio.Task[_T | ControlError]:
        """Start the work unless some is under way; the task of what is under way now."""
        task = self._under_way.get(sandbox_id)
        if task is None:
            task = spawn(self._carry_out(sandbox_id, work()), name=name)
            self._under_way[sandbox_id] = task
        return task

    async def join_or_begin(
        self, sandbox_id: SandboxId, work: Callable[[], Coroutine[Any, Any, _T]], *, name: str
    ) -> _T:
        """What came of the work under way, or of this; raises what it raised."""
        result = await asyncio.shield(self.begin(sandbox_id, work, name=name))
        if isinstance(result, ControlError):
            raise result
        return result

    async def _carry_out(
        self, sandbox_id: SandboxId, work: Coroutine[Any, Any, _T]
    ) -> _T | ControlError:
        try:
            return await work
        except ControlError as error:
            # An expected answer for whoever awaits it, not a failed task for the log.
            return error
        finally:
            del self._under_way[sandbox_id]


class News:
    """Wakes those who wait for a sandbox to change."""

    def __init__(self) -> None:
        self._listeners: dict[SandboxId, set[asyncio.Event]] = {}

    def tell(self, sandbox_id: SandboxId) -> None:
        """Call it after the commit."""
        for event in self._listeners.get(sandbox_id, ()):
            event.set()

    @contextmanager
    def following(self, sandbox_id: SandboxId) -> Iterator[asyncio.Event]:
        """An event that is set at every change; clear it before looking at the database."""
        event = asyncio.Event()
        listeners = self._listeners.setdefault(sandbox_id, set())
        listeners.add(event)
        try:
            yield event
        finally:
            listeners.discard(event)
            if not listeners:
                self._listeners.pop(sandbox_id, None)
