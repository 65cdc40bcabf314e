"""Ends the process that fills a sandbox, before the kernel ends the whole sandbox.

Under gVisor the kernel's OOM killer takes the application kernel and so everything in the sandbox.
So near the limit the place gets more memory for a moment, in which the guest ends its largest
process and can say which one it was.
"""

import asyncio
from collections.abc import Callable

import structlog

from alcove.node.drivers.driver import DriverError, Place
from alcove.node.ground import Ground, Size
from alcove.node.guest_client import EndedProcess, GuestClient, GuestError

_log = structlog.get_logger()

_RELIEVE_S = 5.0
# Time for the memory of an ended process to come back before another one is chosen.
_SETTLE_S = 0.3
# A guest that gains nothing by this many ended processes is left to the kernel.
_ENDED_AT_MOST = 20


async def guard_memory(
    ground: Ground,
    place: Place,
    size: Size,
    *,
    threshold_bytes: int,
    guest: GuestClient,
    tell: Callable[[EndedProcess], None],
) -> None:
    """Keep a place below the threshold, until it is gone or the task is cancelled."""
    async for _ in ground.memory_above(place, threshold_bytes):
        await ground.lend_memory(place, size, lend=True)
        try:
            await _relieve(ground, place, threshold_bytes, guest, tell)
        finally:
            await ground.lend_memory(place, size, lend=False)


async def _relieve(
    ground: Ground,
    place: Place,
    threshold_bytes: int,
    guest: GuestClient,
    tell: Callable[[EndedProcess], None],
) -> None:
    for _ in range(_ENDED_AT_MOST):
        try:
            ended = await guest.relieve(_RELIEVE_S)
        except (GuestError, DriverError) as error:
            _log.warning("memory.relief_failed", place=place.name, error=str(error))
        else:
            if ended is not None:
                tell(ended)
        await asyncio.sleep(_SETTLE_S)
        used = ground.usage(place)
        if used.memory + used.memory_cache < threshold_bytes:
            return
