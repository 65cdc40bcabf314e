"""All watchers of a sandbox, on the event loop: opened, waited for, removed."""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from alcove.guest import blocking
from alcove.guest.watch import Watcher

_log = logging.getLogger(__name__)

MAX_WATCHERS = 64


class TooManyWatchersError(Exception):
    """All watchers of the sandbox are taken."""

    def __init__(self) -> None:
        super().__init__(f"the sandbox has {MAX_WATCHERS} watchers already; remove one first")


class Watchers:
    """All watchers of the sandbox. Lives on the event loop."""

    def __init__(self) -> None:
        self._watchers: dict[str, tuple[Watcher, asyncio.Event]] = {}
        self._opening = 0

    async def open(self, path: str, *, recursive: bool, include_entry: bool) -> str:
        """Begin to watch a directory; the watcher's id.

        Raises OSError, TooManyWatchersError or TooManyDirectoriesError.
        """
        if len(self._watchers) + self._opening >= MAX_WATCHERS:
            raise TooManyWatchersError
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        made: list[Watcher] = []

        def make() -> None:
            notify = functools.partial(_from_thread, loop, changed.set)
            made.append(
                Watcher(path, recursive=recursive, include_entry=include_entry, notify=notify)
            )

        self._opening += 1
        try:
            await blocking.in_thread(make)
        except asyncio.CancelledError:
            for unwanted in made:
                unwanted.close()
            raise
        finally:
            self._opening -= 1
        watcher = made[0]
        self._watchers[watcher.id] = (watcher, changed)
        loop.add_reader(watcher.fd, self._readable, watcher)
        return watcher.id

    async def take(self, watcher_id: str) -> list[dict[str, Any]]:
        """Every event until now that was not taken before. Raises KeyError, EventsLostError."""
        watcher, _ = self._watchers[watcher_id]
        await blocking.in_thread(watcher.drain)
        return watcher.take()

    async def wait(self, watcher_id: str, timeout_s: float) -> list[dict[str, Any]]:
        """The next events; none when nothing happens in time. Raises KeyError, EventsLostError."""
        watcher, changed = self._watchers[watcher_id]
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    changed.clear()
                    if changes := watcher.take():
                        return changes
                    await changed.wait()
        except TimeoutError:
            return []

    async def remove(self, watcher_id: str) -> None:
        """Raises KeyError."""
        watcher, _ = self._watchers.pop(watcher_id)
        asyncio.get_running_loop().remove_reader(watcher.fd)
        await blocking.in_thread(watcher.close)

    async def close(self) -> None:
        """Remove every watcher."""
        for watcher_id in list(self._watchers):
            await self.remove(watcher_id)

    def settle(self) -> None:
        """Let recursive watchers see new directories before what follows. From a thread."""
        for watcher, _ in list(self._watchers.values()):
            watcher.drain()

    def _readable(self, watcher: Watcher) -> None:
        """The kernel has news: read them in a thread, and listen again afterwards."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(watcher.fd)
        drained = loop.run_in_executor(blocking.executor, watcher.drain)
        drained.add_done_callback(functools.partial(self._listen, watcher))

    def _listen(self, watcher: Watcher, drained: asyncio.Future[None]) -> None:
        if not drained.cancelled() and (error := drained.exception()) is not None:
            _log.error("reading the events of a watcher failed", exc_info=error)
        if watcher.id in self._watchers:
            asyncio.get_running_loop().add_reader(watcher.fd, self._readable, watcher)


def _from_thread(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
