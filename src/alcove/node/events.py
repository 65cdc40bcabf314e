"""What happened on this node, for control to follow: a bounded ring with numbered entries.

A follower that asks for more than the ring still holds, or that reads too slowly, is told to look
at the whole node again: its stream starts with (or ends, to be opened anew with) a "hello" line.
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable

from alcove.wire.node import NodeEvent

_KEPT = 4096
_KEEPALIVE_S = 15.0


class Events:
    """The events since this process started, the newest few thousand of them."""

    def __init__(self, *, now: Callable[[], float] = time.time, kept: int = _KEPT) -> None:
        self.boot_id = str(uuid.uuid4())
        self._now = now
        self._ring: deque[NodeEvent] = deque(maxlen=kept)
        self._last = 0
        self._news = asyncio.Event()
        self._closed = False

    def emit(self, kind: str, subject: str = "", *, reason: str = "", detail: str = "") -> None:
        self._last += 1
        self._ring.append(NodeEvent(self._last, self._now(), kind, subject, reason, detail))
        self._wake()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End every stream: the process is about to end."""
        self._closed = True
        self._wake()

    async def follow(self, after: int) -> AsyncIterator[NodeEvent | None]:
        """A hello, then every event with a number above `after`; None now and then, to keep alive.

        Ends when the follower has missed something or the node stops.
        """
        position = min(after, self._last)
        if self._missed(position):
            position = self._last
        yield NodeEvent(self._last, self._now(), "hello", detail=self.boot_id)
        while not self._closed and not self._missed(position):
            news = self._news
            for event in self._since(position):
                position = event.sequence
                yield event
            if position < self._last:
                continue
            try:
                async with asyncio.timeout(_KEEPALIVE_S):
                    await news.wait()
            except TimeoutError:
                yield None

    def _since(self, position: int) -> list[NodeEvent]:
        count = self._last - position
        return list(self._ring)[-count:] if count else []

    def _missed(self, position: int) -> bool:
        return position < self._last - len(self._ring)

    def _wake(self) -> None:
        # A new Event per wake-up: a follower that was busy meanwhile holds the old one, set.
        self._news.set()
        self._news = asyncio.Event()
