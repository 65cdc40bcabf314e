"""What waits between a socket and the code that reads or writes it, bounded both ways."""

import asyncio
from collections import deque

CHUNK_BYTES = 256 * 1024
"""Most that is handed over at once."""

_INBOX_HIGH_BYTES = 1024 * 1024
_INBOX_LOW_BYTES = 256 * 1024
_WRITE_HIGH_BYTES = 512 * 1024


class Inbox:
    """Bytes that have arrived and are not used yet."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        # Kept, as asking for it is a system call each time (getpid).
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self.ended = False

    def attach(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def put(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size > _INBOX_HIGH_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def put_back(self, data: bytes) -> None:
        if data:
            self._chunks.appendleft(data)
            self._size += len(data)

    def end(self) -> None:
        self.ended = True
        self._wake()

    async def get(self, limit: int = CHUNK_BYTES) -> bytes:
        """The next bytes, at most `limit`; b"" at the end."""
        while not self._chunks:
            if self.ended:
                return b""
            self._waiter = self._loop.create_future()
            await self._waiter
        data = self._chunks.popleft()
        if len(data) > limit:
            self._chunks.appendleft(data[limit:])
            data = data[:limit]
        self._size -= len(data)
        if self._paused and self._size < _INBOX_LOW_BYTES and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Outbox:
    """Bytes on their way to the socket; small writes of one turn of the loop leave together."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        self._scheduled = False
        self._writable = asyncio.Event()
        self._writable.set()
        transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)

    def write(self, data: bytes) -> None:
        if len(data) >= CHUNK_BYTES:
            self.flush()
            self._transport.write(data)
            return
        self._pending += data
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self._scheduled = False
        if self._pending and not self._transport.is_closing():
            self._transport.write(bytes(self._pending))
        self._pending.clear()

    async def drain(self) -> None:
        if len(self._pending) >= CHUNK_BYTES:
            self.flush()
        if not self._writable.is_set():
            await self._writable.wait()

    def set_writable(self, writable: bool) -> None:
        if writable:
            self._writable.set()
        else:
            self._writable.clear()
