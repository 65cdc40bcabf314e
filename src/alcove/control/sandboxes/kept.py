"""Looks whether the states that paused sandboxes were saved in are still on their machines.

A machine may lose its disk. The sandbox is not ended for that: somebody may bring the disk back.
It is told once, as an event and in /v1, and a resume says so.
"""

from collections.abc import Callable

import structlog

from alcove.control.clock import now_us
from alcove.control.db import Database
from alcove.control.events import store as events
from alcove.control.events.store import EventKind
from alcove.control.nodes.client import NodeError
from alcove.control.nodes.service import Node, Nodes
from alcove.control.sandboxes import marks, store
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox

_log = structlog.get_logger()

MISSING = "snapshot_missing"
"""Key of a paused sandbox's `changes` while its machine does not have its snapshot."""


class KeptStates:
    def __init__(self, db: Database, nodes: Nodes, clock: Callable[[], int] = now_us) -> None:
        self._db = db
        self._nodes = nodes
        self._clock = clock

    async def step(self) -> None:
        for node in self._nodes.all():
            try:
                await self._look(node)
            except NodeError as error:
                _log.warning("node.not_reconciled", node_id=node.node_id, why=str(error))

    async def _look(self, node: Node) -> None:
        async with self._db.reading() as tx:
            paused = await store.list_in(tx, [State.PAUSED], node_id=node.node_id)
        present = {report.snapshot_id for report in await node.client.snapshots()}
        for sandbox in paused:
            if sandbox.snapshot_id is None:
                continue
            missing = sandbox.snapshot_id not in present
            if missing == (MISSING in sandbox.changes):
                continue
            # The list was made a moment ago: only what is missing twice is missing.
            if missing and await node.client.snapshot(sandbox.snapshot_id) is not None:
                continue
            await self._note(sandbox, missing=missing)

    async def _note(self, sandbox: Sandbox, *, missing: bool) -> None:
        changes = {name: value for name, value in sandbox.changes.items() if name != MISSING}
        if missing:
            changes[MISSING] = True
        async with self._db.transaction() as tx:
            if not await marks.note_changes(tx, sandbox, changes) or not missing:
                return
            await events.record(
                tx,
                sandbox.team_id,
                sandbox.id,
                kind=EventKind.RESUME_FAILED,
                at=self._clock(),
                data={"cause": "the state it was paused in is no longer on its node"},
            )
        _log.error("sandbox.state_lost", sandbox_id=sandbox.id, team_id=sandbox.team_id)
