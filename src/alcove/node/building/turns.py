"""Who builds next: so many at once, and owners in rotation, whoever asked more often."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def take(self, owner: str) -> AsyncIterator[None]:
        """Wait for a turn of this owner, and hold it while the block runs."""
        await self._wait(owner)
        try:
            yield
        finally:
            self._free += 1
            self._give()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def _wait(self, owner: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free += 1  # it was given in the same moment
            self._give()
            raise

    def _give(self) -> None:
        while self._free and self._waiting:
            owner, queue = self._waiting.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind all others
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
