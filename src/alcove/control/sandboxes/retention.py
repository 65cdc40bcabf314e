"""What is kept for a limited time only: paused sandboxes, and snapshots without a name."""

import structlog

from alcove.control.clock import DAY_US
from alcove.control.errors import ControlError
from alcove.control.sandboxes import checkpoints, lineage, marks, store
from alcove.control.sandboxes.context import Context
from alcove.control.sandboxes.service import Sandboxes
from alcove.control.sandboxes.states import State
from alcove.control.snapshots import catalog
from alcove.control.teams import store as teams
from alcove.wire.states import StopReason

_log = structlog.get_logger()

_BATCH = 200


class Retention:
    def __init__(
        self, context: Context, sandboxes: Sandboxes, *, paused_days: int, unnamed_days: int
    ) -> None:
        """Days since the pause, and since the snapshot was taken; 0: for ever."""
        self._in = context
        self._sandboxes = sandboxes
        self._paused_days = paused_days
        self._unnamed_days = unnamed_days

    async def step(self) -> None:
        """End and delete what has been kept for long enough; events say so."""
        if self._paused_days:
            await self._end_paused(self._in.clock() - self._paused_days * DAY_US)
        if self._unnamed_days:
            await self._delete_unnamed(self._in.clock() - self._unnamed_days * DAY_US)
        self._in.snapshots.changed.set()

    async def _end_paused(self, before: int) -> None:
        async with self._in.db.reading() as tx:
            old = await store.list_paused(tx, before=before, limit=_BATCH)
        for sandbox in old:
            async with self._in.db.transaction() as tx:
                stopping = await marks.mark_stopping(
                    tx,
                    sandbox.id,
                    StopReason.RETENTION,
                    only=(sandbox.generation, State.PAUSED),
                )
            if stopping is None:
                continue
            try:
                await self._sandboxes.resume_stop(stopping)
            except ControlError as error:
                _log.warning("sandbox.not_removed", sandbox_id=sandbox.id, why=error.detail)

    async def _delete_unnamed(self, before: int) -> None:
        async with self._in.db.reading() as tx:
            old = await catalog.unnamed(tx, before=before, limit=_BATCH)
        for team_id, shown in old:
            async with self._in.db.transaction() as tx:
                await teams.lock_team(tx, team_id)
                # Deleted, or made use of, since it was listed.
                if await catalog.find(tx, team_id, shown.snapshot_id) is None:
                    continue
                if not await lineage.living_from(tx, [shown.snapshot_id]):
                    at = self._in.clock()
                    await checkpoints.withdraw(tx, team_id, [shown], at=at, why="retention")
