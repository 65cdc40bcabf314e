"""Bytes on their way into a process."""

import asyncio
import os


class InputClosedError(Exception):
    """Nobody reads this input any more."""


class Input:
    """The writing end of a pipe or terminal: ordered, and slow when its reader is slow."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._order = asyncio.Lock()
        self._writable: asyncio.Future[None] | None = None

    @property
    def closed(self) -> bool:
        return self._fd < 0

    async def write(self, data: bytes) -> None:
        """Write all of `data`. Raises InputClosedError."""
        view = memoryview(data)
        async with self._order:
            while view:
                if self.closed:
                    raise InputClosedError
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    await self._wait()
                except OSError as error:
                    raise InputClosedError from error

    async def close(self) -> None:
        """Close after everything written before has been delivered."""
        async with self._order:
            self.abandon()

    def abandon(self) -> None:
        """Close at once; writers that wait get InputClosedError."""
        if self.closed:
            return
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        fd, self._fd = self._fd, -1
        asyncio.get_running_loop().remove_writer(fd)
        os.close(fd)

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        fd, writable = self._fd, loop.create_future()
        self._writable = writable
        loop.add_writer(fd, _resolve, writable)
        try:
            await writable
        finally:
            if self._fd == fd:
                loop.remove_writer(fd)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
