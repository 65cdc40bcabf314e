"""Snapshots: begun, saved or failed; reconcile.py removes those nobody refers to any more."""

import asyncio
from collections.abc import Callable

from alcove.control.clock import MICROSECONDS, now_us
from alcove.control.db import Tx
from alcove.control.snapshots import store
from alcove.control.snapshots.store import Snapshot
from alcove.control.usage import store as usage
from alcove.control.usage.store import StorageEntry
from alcove.wire.node import SnapshotReport

SAVE_LIMIT_US = 600 * MICROSECONDS
"""A snapshot that is not ready by then was interrupted."""


class Snapshots:
    def __init__(self, clock: Callable[[], int] = now_us) -> None:
        self._clock = clock
        self.changed = asyncio.Event()
        """Set whenever a snapshot may have lost the last that referred to it."""

    async def begin(self, tx: Tx, snapshot: Snapshot) -> None:
        """Write down that the snapshot shall be taken, before a machine is asked."""
        await store.insert_snapshot(tx, snapshot)

    async def saved(self, tx: Tx, snapshot: Snapshot, report: SnapshotReport) -> bool:
        """Write down that it was taken, and open its storage; False if it was given up before."""
        now = self._clock()
        if not await store.mark_ready(tx, snapshot.id, size_bytes=report.size_bytes, at=now):
            return False
        await usage.open_storage(
            tx,
            StorageEntry(
                snapshot.id, snapshot.team_id, snapshot.sandbox_id, report.size_bytes, now
            ),
        )
        return True

    async def failed(self, tx: Tx, snapshot: Snapshot) -> None:
        """Write down that it was not taken; what a machine may have of it is removed."""
        await store.give_up(tx, snapshot.id)
        self.changed.set()
