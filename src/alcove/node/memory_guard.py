"""Ends the process that fills a sandbox, before the kernel ends the whole sandbox.

    CALM ──use passes the threshold──▶ CLOSE ──and not by file cache──▶ RELIEVING
      ▲                                 │ ▲                                │
      └───────── below again ───────────┘ └── the largest process ended, ──┘
                                              or none would have helped

Under gVisor the kernel's OOM killer takes the application kernel and so everything in the sandbox.
So RELIEVING lends the place memory for a moment, in which the guest ends its largest process and
can say which one it was. What files in memory hold cannot be had back that way: that is told, and
the hard limit does the rest. In CALM nothing runs: the kernel wakes us.
"""

import asyncio
from collections.abc import Callable

import structlog

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
_LOAN_BYTES = 512 << 20


class MemoryGuard:
    """Watches one place."""

    def __init__(
        self,
        ground: Ground,
        place: Place,
        *,
        threshold_bytes: int,
        limit_bytes: int,
        guest: GuestClient,
        wake: Callable[[], None],
        tell: Callable[[EndedProcess | None], None],
    ) -> None:
        """`wake` makes sure that the guest is not frozen when it is asked."""
        self._ground = ground
        self._place = place
        self._threshold = threshold_bytes
        self._limit = limit_bytes
        self._guest = guest
        self._wake = wake
        self._tell = tell
        # A former daemon that was killed may have left a loan.
        self._lent = True
        self._told_of_files = False

    async def run(self) -> None:
        """Keep the place below the threshold, until it is gone or the task is cancelled."""
        self._repay()
        async for _ in self._ground.memory_above(self._place, self._threshold):
            while True:
                used = self._ground.usage(self._place)
                room = self._threshold - used.memory
                if room <= 0:
                    await self._relieve(used.memory)
                    continue
                self._repay()
                self._told_of_files = False
                if used.memory + used.memory_cache < self._threshold:
                    break
                # The kernel wakes us for file cache too, which it can drop by itself.
                pause_s = min(_LONGEST_LOOK_S, max(_SHORTEST_LOOK_S, room / _GROWTH_BYTES_PER_S))
                await asyncio.sleep(pause_s)

    async def _relieve(self, used_bytes: int) -> None:
        pause_s = _SETTLE_S
        self._lend()
        self._wake()
        try:
            ended = await self._guest.relieve(used_bytes, _RELIEVE_S)
        except (GuestError, DriverError) as error:
            _log.warning("memory.relief_failed", place=self._place.name, error=str(error))
        else:
            if ended is not None:
                self._tell(ended)
            else:
                # Nothing will come back: no time to fill what was lent.
                self._repay()
                self._tell_of_files(used_bytes)
                pause_s = _LONGEST_LOOK_S
        await asyncio.sleep(pause_s)
        self._repay()

    def _tell_of_files(self, used_bytes: int) -> None:
        if not self._told_of_files:
            self._told_of_files = True
            _log.warning("memory.held_by_files", place=self._place.name, used_bytes=used_bytes)
            self._tell(None)

    def _lend(self) -> None:
        """Raise the limit, if it is not raised already."""
        if not self._lent:
            self._lent = self._ground.limit_memory(self._place, self._limit + _LOAN_BYTES)

    def _repay(self) -> None:
        """Go back to the limit; later, if more is in use now."""
        if self._lent:
            self._lent = not self._ground.limit_memory(self._place, self._limit)
