"""Ends the process that fills a sandbox, before the kernel ends the whole sandbox.

    CALM ──use passes the threshold──▶ CLOSE ──and not by file cache──▶ RELIEVING
      ▲                                 │ ▲                                │
      └───────── below again ───────────┘ └── the largest process ended ───┘

Under gVisor the kernel's OOM killer takes the application kernel and so everything in the sandbox.
So RELIEVING lends the place memory for a moment, in which the guest ends its largest process and
can say which one it was. In CALM nothing runs: the kernel wakes us.
"""

import asyncio
from collections.abc import Callable

import structlog

from alcove.node.cgroups import CgroupError
from alcove.node.drivers.driver import DriverError, Place
from alcove.node.ground import Ground
from alcove.node.guest_client import EndedProcess, GuestClient, GuestError

_log = structlog.get_logger()

_RELIEVE_S = 5.0
_SETTLE_S = 0.3
"""Time for the memory of an ended process to come back before another one is chosen."""
_GROWTH_BYTES_PER_S = 2 << 30
"""No guest fills memory faster than this, so between two looks it cannot pass the threshold."""
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.05, 1.0


class MemoryGuard:
    """Watches one place."""

    def __init__(
        self,
        ground: Ground,
        place: Place,
        *,
        threshold_bytes: int,
        guest: GuestClient,
        tell: Callable[[EndedProcess], None],
    ) -> None:
        self._ground = ground
        self._place = place
        self._threshold = threshold_bytes
        self._guest = guest
        self._tell = tell
        self._owed: int | None = None
        """The limit to go back to, while memory is lent. One loan at a time."""

    async def run(self) -> None:
        """Keep the place below the threshold, until it is gone or the task is cancelled."""
        async for _ in self._ground.memory_above(self._place, self._threshold):
            while True:
                used = self._ground.usage(self._place)
                room = self._threshold - used.memory
                if room <= 0:
                    await self._relieve()
                    continue
                self._repay()
                if used.memory + used.memory_cache < self._threshold:
                    break
                # The kernel wakes us for file cache too, which it can drop by itself.
                pause_s = min(_LONGEST_LOOK_S, max(_SHORTEST_LOOK_S, room / _GROWTH_BYTES_PER_S))
                await asyncio.sleep(pause_s)

    async def _relieve(self) -> None:
        try:
            if self._owed is None:
                self._owed = self._ground.lend_memory(self._place)
            ended = await self._guest.relieve(_RELIEVE_S)
        except (GuestError, DriverError, CgroupError) as error:
            _log.warning("memory.relief_failed", place=self._place.name, error=str(error))
        else:
            if ended is not None:
                self._tell(ended)
        await asyncio.sleep(_SETTLE_S)
        self._repay()

    def _repay(self) -> None:
        if self._owed is not None and self._ground.limit_memory(self._place, self._owed):
            self._owed = None
