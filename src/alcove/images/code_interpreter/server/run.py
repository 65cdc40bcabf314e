"""One execution's output, on its way from the kernel to the client.

The kernel's side puts lines, the client's side takes them. What waits in between is bounded:
above HIGH_BYTES the kernel is held, and it goes on when the client has taken all but LOW_BYTES.
Nothing is thrown away unless the client is gone.
"""

import asyncio
from typing import Protocol

from .messages import Line, encode

HIGH_BYTES = 4 * 1024 * 1024
LOW_BYTES = 1024 * 1024
_BATCH_BYTES = 256 * 1024
_PICTURES = {"png", "jpeg", "svg", "pdf"}
_LINGER_S = 0.003
"""So long a line waits for others: what a quick cell says comes to the client in one piece."""


class Valve(Protocol):
    """What a full buffer turns off."""

    def hold(self) -> None: ...
    def let_go(self) -> None: ...


class Run:
    """`silent` ones belong to the server: they do not count and nobody reads them."""

    def __init__(
        self, msg_id: str, valve: Valve, *, silent: bool, shows_values: bool = False
    ) -> None:
        self.msg_id = msg_id
        self.silent = silent
        self.failed: Line | None = None
        """The error line, once there was one."""
        self.answered = asyncio.Event()
        """The kernel has said on its shell channel how it went; or it never will."""
        self.idle = False
        """Whether the kernel has said that no more output follows."""
        self.done = asyncio.Event()
        self.count = 0
        """How many lines came."""
        self.waiting = False
        """Whether a line waits for the client."""
        self._valve = valve
        self._lines: list[bytes] = []
        self._bytes = 0
        self._news = asyncio.Event()
        self._ripe = asyncio.Event()
        """Waiting for more would be for nothing."""
        self._room = asyncio.Event()
        self._dropped = silent
        self._shows_values = shows_values
        self._shown: Line | None = None
        """A displayed value that is the cell's own if nothing is shown after it."""

    @property
    def read(self) -> bool:
        """Whether somebody reads its output."""
        return not self._dropped

    def drop(self) -> None:
        """Nobody will read any more of it: what comes is thrown away, and never waits."""
        self._dropped = True
        self._lines.clear()
        self._bytes = 0
        self._room.set()

    async def put(self, line: Line) -> None:
        """Hand a line on; waits, with the kernel held, while there is too much already."""
        if line["type"] == "error":
            if self.failed is not None:
                return
            self.failed = line
        self.count += 1
        if line["type"] == "result" and self._shows_values:
            self._show(line)
        else:
            self._append(line)
        if self._bytes <= HIGH_BYTES:
            return
        self._room.clear()
        self._valve.hold()
        self.waiting = True
        try:
            await self._room.wait()
        finally:
            self.waiting = False
            self._valve.let_go()

    def finish(self, *last: Line) -> None:
        """No more follows. May be called again; the first time counts."""
        if self.done.is_set():
            return
        self._show(None)
        for line in last:
            self._append(line)
            if line["type"] == "error":
                self.failed = line
        self.done.set()
        self.answered.set()
        self._news.set()
        self._ripe.set()

    def _show(self, line: Line | None) -> None:
        """The next value that is displayed; None when no more follow."""
        before, self._shown = self._shown, line
        if before is not None:
            is_main = line is None and self.failed is None and not _PICTURES & before.keys()
            self._append(before | {"is_main_result": is_main})

    async def take(self) -> bytes:
        """The next lines, as many as are there; empty when all was taken."""
        while not self._lines:
            if self.done.is_set():
                return b""
            self._news.clear()
            await self._news.wait()
        if self._bytes < _BATCH_BYTES and not self.done.is_set():
            self._ripe.clear()
            ripening = asyncio.get_running_loop().call_later(_LINGER_S, self._ripe.set)
            await self._ripe.wait()
            ripening.cancel()
        size = count = 0
        while count < len(self._lines) and size < _BATCH_BYTES:
            size += len(self._lines[count])
            count += 1
        batch = b"".join(self._lines[:count])
        del self._lines[:count]
        self._bytes -= len(batch)
        if self._bytes <= LOW_BYTES:
            self._room.set()
        return batch

    def _append(self, line: Line) -> None:
        if self._dropped:
            return
        encoded = encode(line)
        self._lines.append(encoded)
        self._bytes += len(encoded)
        if self._bytes >= _BATCH_BYTES:
            self._ripe.set()
        self._news.set()
