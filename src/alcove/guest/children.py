"""The one place that waits for processes: our own children, and orphans that fall to PID 1."""

import asyncio
import ctypes
import os
from collections.abc import Callable

_PR_SET_CHILD_SUBREAPER = 36


class Children:
    """Who wants to know when a child ends."""

    def __init__(self) -> None:
        self._watched: dict[int, Callable[[int], None]] = {}
        self._ended = asyncio.Event()

    def watch(self, pid: int, on_exit: Callable[[int], None]) -> None:
        """Call `on_exit(wait status)` once. Must follow the start without an await between."""
        self._watched[pid] = on_exit

    def reap(self) -> None:
        """On SIGCHLD, which may stand for many: collect all that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended.set()
            on_exit = self._watched.pop(pid, None)
            if on_exit is not None:
                on_exit(status)

    async def next_end(self, timeout_s: float) -> None:
        """Return once any child has ended, at the latest after the time given."""
        self._ended.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return

    def pids(self) -> list[int]:
        return list(self._watched)


def adopt_orphans() -> None:
    """Make orphaned descendants ours, as they are for PID 1."""
    if os.getpid() != 1:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
