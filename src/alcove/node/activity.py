"""Whether anything goes on in one sandbox: traffic, processor, disk, network, open streams.

Bytes through its tunnels are told (touch). The rest is looked for, and only when somebody wants to
know: counters of the host, then connections that are open without saying anything, and last the
agent, which knows the commands whose output somebody follows. An idle connection that the edge only
keeps for its next request is no activity.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from alcove.node.drivers.driver import DriverError, Place
from alcove.node.ground import Counters, Ground
from alcove.node.guest_client import GuestClient, GuestError
from alcove.wire.hosts import GUEST_PORT

_BUSY_SHARE = 0.05
"""Of one core. The agent and the application kernel use 0.2 % while idle, 2.4 % if not quieted."""
_BUSY_BYTES = 256 * 1024
"""Of disk or network in one window; a file system and a network have a little life of their own."""
_ASK_S = 1.0
_EDGE_KEEPS_S = 20.0
"""Longer than the edge keeps an unused connection to a program's port (edge/upstreams.py). Those to
the agent it keeps for minutes, but there the agent knows better."""
_LATER_S = 0.1


class OpenTunnel(Protocol):
    port: int
    touched_at: float


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    counters: Counters


class Activity:
    """Of one sandbox, since it was last opened."""

    def __init__(
        self,
        ground: Ground,
        place: Place,
        guest: GuestClient,
        tunnels: Callable[[], Iterable[OpenTunnel]],
    ) -> None:
        self._ground = ground
        self._place = place
        self._guest = guest
        self._tunnels = tunnels
        self._time = asyncio.get_running_loop().time
        self._reading: _Reading | None = None
        self.last = self._time()
        """When anything last went on, by the clock of the loop."""

    @property
    def last_wall(self) -> float:
        """The same in seconds since the epoch."""
        return time.time() - (self._time() - self.last)

    def touch(self) -> None:
        self.last = self._time()

    def begin_window(self) -> None:
        """What was used until now is not what `look` asks for."""
        self._reading = _Reading(self._time(), self._ground.counters(self._place))

    def look(self) -> None:
        """Note it if something was used since the last look."""
        before = self._reading
        self.begin_window()
        if before is not None and self._reading is not None and _busy(before, self._reading):
            self.touch()

    async def look_closely(self) -> float:
        """Note it if somebody has a connection open or follows a command.

        Returns after how many seconds it can be said of all connections whether they are in use.
        """
        now = self._time()
        touched = [tunnel.touched_at for tunnel in self._tunnels() if tunnel.port != GUEST_PORT]
        oldest_s = now - min(touched, default=now)
        if oldest_s > _EDGE_KEEPS_S or await self._streams():
            self.touch()
            return 0.0
        return _EDGE_KEEPS_S - oldest_s + _LATER_S if touched else 0.0

    async def _streams(self) -> int:
        try:
            return await self._guest.streams(_ASK_S)
        except (GuestError, DriverError):
            return 0  # nobody follows what an agent says that says nothing


def _busy(before: _Reading, after: _Reading) -> bool:
    span_s = max(after.at - before.at, 1e-3)
    was, now = before.counters, after.counters
    return (
        now.cpu_seconds - was.cpu_seconds > _BUSY_SHARE * span_s
        or now.disk_bytes - was.disk_bytes > _BUSY_BYTES
        or abs(now.disk_used_bytes - was.disk_used_bytes) > _BUSY_BYTES
        or now.network_bytes - was.network_bytes > _BUSY_BYTES
    )
