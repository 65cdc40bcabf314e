"""Removes the snapshots nobody needs, whatever crashed in between: idempotent steps.

being made, past its deadline           given up: to be removed
ready, and nobody refers to it          to be removed, and no longer billed
to be removed                           removed from its machine, then forgotten
on a machine, and not known here        removed there, once it is old
"""

from collections.abc import Callable, Sequence
from typing import Any

import structlog
from sqlalchemy import Select

from alcove.control import metrics
from alcove.control.clock import MICROSECONDS, from_seconds, now_us
from alcove.control.db import Database
from alcove.control.nodes.client import NodeError
from alcove.control.nodes.service import Node, Nodes
from alcove.control.snapshots import catalog, store
from alcove.control.usage import store as usage
from alcove.wire.ids import SnapshotId

_log = structlog.get_logger()

_BATCH = 200
_STRANGER_AGE_US = 15 * 60 * MICROSECONDS
"""Younger ones may be of another control, whose database this is not."""


class SnapshotReconciler:
    def __init__(
        self,
        db: Database,
        nodes: Nodes,
        needed: Sequence[Select[Any]],
        clock: Callable[[], int] = now_us,
    ) -> None:
        """`needed`: the ids of snapshots that something else than a template refers to."""
        self._db = db
        self._nodes = nodes
        self._in_use = [*needed, catalog.showing()]
        self._clock = clock

    async def step(self) -> None:
        await self._mark_unused()
        for node in self._nodes.all():
            try:
                await self._remove(node)
            except NodeError as error:
                _log.warning("snapshots.not_removed", node_id=node.node_id, why=str(error))

    async def look_for_strangers(self) -> None:
        """Remove what machines have and nobody here knows."""
        for node in self._nodes.all():
            try:
                await self._remove_strangers(node)
            except NodeError as error:
                _log.warning("snapshots.not_listed", node_id=node.node_id, why=str(error))

    async def forget_saves(self) -> None:
        """After a restart of the only control: nobody is left to finish what was being saved."""
        async with self._db.transaction() as tx:
            await store.give_up_all(tx, at=self._clock())

    async def _mark_unused(self) -> None:
        marked = _BATCH
        while marked == _BATCH:
            now = self._clock()
            async with self._db.transaction() as tx:
                unused = await store.mark_unused(tx, self._in_use, now=now, limit=_BATCH)
                await usage.close_storage(tx, [snapshot.id for snapshot in unused], now)
            marked = len(unused)

    async def _remove(self, node: Node) -> None:
        removed = _BATCH
        while removed == _BATCH:
            async with self._db.reading() as tx:
                leaving = await store.list_deleting(tx, node.node_id, limit=_BATCH)
            for snapshot in leaving:
                await node.client.delete_snapshot(snapshot.id)
                async with self._db.transaction() as tx:
                    await store.forget(tx, snapshot.id)
                _log.info("snapshot.removed", snapshot_id=snapshot.id, kind=snapshot.kind.value)
            removed = len(leaving)

    async def _remove_strangers(self, node: Node) -> None:
        before = self._clock() - _STRANGER_AGE_US
        old = [
            SnapshotId(report.snapshot_id)
            for report in await node.client.snapshots()
            if from_seconds(report.created_at) < before
        ]
        async with self._db.reading() as tx:
            known = await store.known(tx, old)
        for snapshot_id in old:
            if snapshot_id not in known:
                await node.client.delete_snapshot(snapshot_id)
                metrics.reconcile_repairs.labels("unknown_snapshot").inc()
                _log.info("snapshot.repaired", snapshot_id=snapshot_id, kind="unknown_snapshot")
