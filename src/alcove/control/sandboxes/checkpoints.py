"""Snapshots that users take, list and delete; to their owners they are templates."""

from dataclasses import replace

from alcove.control.db import Tx
from alcove.control.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotAvailableError,
    NotFoundError,
)
from alcove.control.events import store as events
from alcove.control.events.store import EventKind
from alcove.control.sandboxes import lineage, saving
from alcove.control.sandboxes.context import Context, to_its_end
from alcove.control.snapshots import catalog
from alcove.control.snapshots.catalog import Shown, Wanted
from alcove.control.snapshots.names import Name, Reference, read_name, read_reference
from alcove.control.snapshots.states import SnapshotKind, SnapshotState
from alcove.control.snapshots.store import Snapshot
from alcove.control.teams import store as teams
from alcove.control.teams.service import Caller
from alcove.control.templates import store as templates
from alcove.control.templates.store import DEFAULT_TAG
from alcove.wire.errors import ErrorCode
from alcove.wire.ids import SandboxId
from alcove.wire.node import SnapshotReport

_MOST_TOGETHER = 1000
"""Builds that one deletion of a whole template takes away."""


class Checkpoints:
    def __init__(self, context: Context) -> None:
        self._in = context

    async def create(
        self, caller: Caller, sandbox_id: SandboxId, name: str | None, *, memory: bool = True
    ) -> Shown:
        """Take a snapshot of a running sandbox, which goes on. Finishes without its caller."""
        wanted = None if name is None else read_name(name, caller.team.slug)
        work = self._create(caller, sandbox_id, wanted, memory=memory)
        return await to_its_end(work, name="sandbox.snapshot")

    async def page(
        self,
        caller: Caller,
        *,
        sandbox_id: SandboxId | None = None,
        name: str | None = None,
        after: tuple[int, str] | None = None,
        limit: int,
    ) -> list[Shown]:
        """Newest first. What no snapshot of the team is called or shows gives none."""
        reference = None if name is None else read_reference(name)
        if name is not None and reference is None:
            return []
        wanted = Wanted(caller.team_id, sandbox_id, reference, caller.team.slug)
        async with self._in.db.reading() as tx:
            return await catalog.page(tx, wanted, after=after, limit=limit)

    async def delete(self, caller: Caller, text: str) -> None:
        """Delete the snapshot a text names, or all of a name without a tag."""
        reference = read_reference(text)
        if reference is None:
            raise NotFoundError(f"template '{text[:200]}' not found")
        async with self._in.db.transaction() as tx:
            # Nobody makes a sandbox from it meanwhile.
            await teams.lock_team(tx, caller.team_id)
            wanted = Wanted(caller.team_id, reference=reference, slug=caller.team.slug)
            gone = await catalog.page(tx, wanted, limit=_MOST_TOGETHER)
            if not gone:
                raise await self._nothing_to_delete(tx, caller, reference, text)
            await self.withdraw(tx, caller, gone, why="requested")
        self._in.snapshots.changed.set()

    async def withdraw(self, tx: Tx, caller: Caller, gone: list[Shown], *, why: str) -> None:
        """Take snapshots away from their owner; the caller holds the team's lock."""
        used = await lineage.living_from(tx, [shown.snapshot_id for shown in gone])
        if used:
            raise InvalidRequestError(
                f"The snapshot is in use by {len(used)} sandboxes that run or are paused "
                f"({', '.join(used[:3])}{', …' if len(used) > 3 else ''}); end them first",
                error_code=ErrorCode.SNAPSHOT_IN_USE,
            )
        await catalog.withdraw(tx, gone)
        for shown in gone:
            await events.record(
                tx,
                caller.team_id,
                shown.sandbox_id,
                kind=EventKind.SNAPSHOT_DELETED,
                at=self._in.clock(),
                data={"snapshot": shown.public_id, "reason": why},
            )

    async def _create(
        self, caller: Caller, sandbox_id: SandboxId, name: Name | None, *, memory: bool
    ) -> Shown:
        async with self._in.db.transaction() as tx:
            if name is not None:
                await catalog.refuse_clash(tx, caller.team, name)
            now = self._in.clock()
            sandbox = await saving.running(tx, caller, sandbox_id, now, "snapshotted")
            snapshot = saving.new_snapshot(sandbox, SnapshotKind.CHECKPOINT, now, memory=memory)
            await self._in.snapshots.begin(tx, snapshot)
        await self._in.checkpoint("snapshot intent written")
        snapshot, report = await saving.save(self._in, caller, snapshot, "snapshotted")
        await self._in.checkpoint("snapshot saved")
        try:
            shown = await self._publish(caller, snapshot, report, name)
        except ConflictError:
            await saving.give_up(self._in, snapshot)
            raise
        await self._in.checkpoint("snapshot published")
        return shown

    async def _publish(
        self, caller: Caller, snapshot: Snapshot, report: SnapshotReport, name: Name | None
    ) -> Shown:
        async with self._in.db.transaction() as tx:
            await teams.lock_team(tx, caller.team_id)
            if name is not None:
                await catalog.refuse_clash(tx, caller.team, name)
            if not await self._in.snapshots.saved(tx, snapshot, report):
                raise saving.given_up()
            now = self._in.clock()
            ready = replace(snapshot, state=SnapshotState.READY, ready_at=now)
            shown = await catalog.publish(tx, caller.team, ready, name, now)
            await events.record(
                tx,
                caller.team_id,
                snapshot.sandbox_id,
                kind=EventKind.SNAPSHOT_CREATED,
                at=now,
                data={"snapshot": shown.public_id, "memory": snapshot.memory},
            )
            return shown

    async def _nothing_to_delete(
        self, tx: Tx, caller: Caller, reference: Reference, text: str
    ) -> ForbiddenError | NotAvailableError | NotFoundError:
        namespaces = (
            (caller.team.slug, "") if reference.namespace is None else (reference.namespace,)
        )
        by_id = reference.namespace is None
        for found in await templates.find_named(
            tx, namespaces, reference.name, reference.tag or DEFAULT_TAG, by_id=by_id
        ):
            if found.template.team_id is None:
                return ForbiddenError(f"template '{text}' ships with Alcove and cannot be deleted")
            if (
                found.template.team_id == caller.team_id
                and found.template.kind != templates.SNAPSHOT
            ):
                return NotAvailableError(
                    "changes of templates are not available in this version of Alcove"
                )
        return NotFoundError(f"template '{text}' not found")
