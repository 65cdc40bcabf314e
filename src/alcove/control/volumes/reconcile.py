"""Finishes what a crash left of volumes: one idempotent step.

in the making for long      given up: to be deleted
to be deleted               removed from its node, then forgotten

What a node has and no row knows is left alone: a row is there before a volume is and until it is
gone, so a volume without one means that the database was set back, and it is somebody's data.
"""

from collections.abc import Callable

import structlog

from alcove.control.clock import MICROSECONDS, now_us
from alcove.control.db import Database
from alcove.control.volumes import store
from alcove.control.volumes.service import Volumes

_log = structlog.get_logger()

_MAKING_US = 120 * MICROSECONDS
_BATCH = 100


class VolumeReconciler:
    def __init__(self, db: Database, volumes: Volumes, clock: Callable[[], int] = now_us) -> None:
        self._db = db
        self._volumes = volumes
        self._clock = clock

    async def step(self) -> None:
        async with self._db.transaction() as tx:
            before = self._clock() - _MAKING_US
            leaving = await store.unfinished(tx, made_before=before, limit=_BATCH)
            for volume in leaving:
                await store.mark_deleting(tx, volume.id)
        for volume in leaving:
            if await self._volumes.remove_quietly(volume):
                _log.info("volume.removed", volume_id=volume.id)
