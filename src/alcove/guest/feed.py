"""Events on their way to one attached client, bounded."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

from alcove.wire.connect import ConnectError

Message = dict[str, Any]

_FULL_BYTES = 1024 * 1024


class Feed:
    """A queue between a source of events and the stream of one client.

    The source looks at `full` and stops producing; `on_space` tells it to go on.
    """

    def __init__(self, on_space: Callable[[], None]) -> None:
        self._on_space = on_space
        self._queue: deque[tuple[Message, int]] = deque()
        self._size = 0
        # Kept, as asking for it is a system call each time (getpid).
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._error: ConnectError | None = None

    @property
    def full(self) -> bool:
        return self._size >= _FULL_BYTES

    def put(self, message: Message, size: int) -> None:
        """Add an event of about `size` bytes; accepted even when full."""
        if self._closed:
            return
        self._queue.append((message, size))
        self._size += size
        self._wake()

    def close(self, error: ConnectError | None = None) -> None:
        """No more events; the client gets those queued, then the error or the end."""
        self._closed = True
        self._error = error
        self._wake()

    async def messages(
        self, keepalive_s: float, keepalive: Message
    ) -> AsyncGenerator[Message, None]:
        """The events, and `keepalive` whenever there was none for `keepalive_s` seconds."""
        while True:
            while self._queue:
                message, size = self._queue.popleft()
                was_full = self.full
                self._size -= size
                if was_full and not self.full:
                    self._on_space()
                yield message
            if self._closed:
                if self._error is not None:
                    raise self._error
                return
            self._waiter = self._loop.create_future()
            silence = self._loop.call_later(keepalive_s, self._wake)
            try:
                await self._waiter
            finally:
                silence.cancel()
            if not self._queue and not self._closed:
                yield keepalive

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
