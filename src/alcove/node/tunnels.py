"""The connections from the edge into one sandbox: bounded in number, held back while it is saved.

admitted ──▶ through() ──gate open──▶ connected ──part · cut──▶ closed
▲    │
└────┘ hold(): dials are given up, and done again after release()
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from alcove.concurrency import spawn

_Dial = Callable[[], Awaitable[socket.socket]]
_Attempt = asyncio.Task[socket.socket | Exception]


class Tunnel(Protocol):
    port: int
    touched_at: float
    """When it last carried anything, by the clock of the loop."""

    def part(self) -> None:
        """End what is connected so that the guest sees an orderly end; what waits may wait on."""
        ...

    def cut(self) -> None:
        """End it at once."""
        ...


class Tunnels:
    """All tunnels of one sandbox."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Tunnel] = set()
        self._dials: set[_Attempt] = set()
        self._connected: set[Tunnel] = set()
        self._gate = asyncio.Event()
        self._gate.set()
        self._over = False
        self._quiet = asyncio.Event()

    def admit(self, tunnel: Tunnel) -> bool:
        """Count one more; False when there are too many."""
        if len(self._open) >= self._limit:
            return False
        self._open.add(tunnel)
        return True

    async def through(self, tunnel: Tunnel, dial: _Dial) -> socket.socket | None:
        """What `dial` connects to, called while nothing is held back; None once all is over."""
        while True:
            await self._gate.wait()
            if self._over:
                return None
            inside = await self._attempt(dial)
            if inside is not None:
                self._connected.add(tunnel)
                return inside

    async def _attempt(self, dial: _Dial) -> socket.socket | None:
        """None if it was given up because of a hold."""
        attempt = spawn(_outcome(dial), name="dial into a sandbox")
        self._dials.add(attempt)
        try:
            await asyncio.wait([attempt])
        except asyncio.CancelledError:
            attempt.add_done_callback(_discard)
            attempt.cancel()
            raise
        finally:
            self._dials.discard(attempt)
        if attempt.cancelled():
            return None
        outcome = attempt.result()
        if isinstance(outcome, Exception):
            raise outcome
        if not self._gate.is_set():
            outcome.close()
            return None
        return outcome

    def closed(self, tunnel: Tunnel) -> None:
        self._open.discard(tunnel)
        self._connected.discard(tunnel)
        if not self._connected:
            self._quiet.set()

    def hold(self) -> None:
        """Let nothing new through until release(); who comes meanwhile waits."""
        self._gate.clear()
        for attempt in self._dials:
            attempt.cancel()

    async def drain(self, grace_s: float) -> None:
        """Part what is connected; cut what the guest has not closed after the grace."""
        for tunnel in list(self._connected):
            tunnel.part()
        if self._connected:
            self._quiet.clear()
            try:
                async with asyncio.timeout(grace_s):
                    await self._quiet.wait()
            except TimeoutError:
                for tunnel in list(self._connected):
                    tunnel.cut()

    def release(self) -> None:
        self._gate.set()

    def cut(self) -> None:
        """End all for good: what is in flight must fail now, not time out later."""
        self._over = True
        self._gate.set()
        for tunnel in list(self._open):
            tunnel.cut()

    @property
    def connected(self) -> list[Tunnel]:
        return list(self._connected)

    def __len__(self) -> int:
        return len(self._open)


async def _outcome(dial: _Dial) -> socket.socket | Exception:
    try:
        return await dial()
    except Exception as error:
        return error


def _discard(attempt: _Attempt) -> None:
    if not attempt.cancelled() and isinstance(inside := attempt.result(), socket.socket):
        inside.close()
