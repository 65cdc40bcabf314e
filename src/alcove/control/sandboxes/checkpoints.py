"""Snapshots that users take, list and delete; to their owners they are templates."""

from collections.abc import Callable
from dataclasses import replace

import structlog

from alcove.control.db import Tx
from alcove.control.ending import to_its_end
from alcove.control.errors import (
    ConflictError,
    ControlError,
    InvalidRequestError,
    NotFoundError,
)
from alcove.control.events import store as events
from alcove.control.events.store import EventKind
from alcove.control.nodes.client import NodeError
from alcove.control.sandboxes import lineage, saving
from alcove.control.sandboxes.context import Context
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.snapshots import catalog
from alcove.control.snapshots import store as snapshots
from alcove.control.snapshots.catalog import Shown, Wanted
from alcove.control.snapshots.names import (
    Name,
    Reference,
    is_uuid,
    read_name,
    read_reference,
)
from alcove.control.snapshots.states import SnapshotKind, SnapshotState
from alcove.control.snapshots.store import Snapshot
from alcove.control.teams import store as teams
from alcove.control.teams.service import Caller
from alcove.control.templates import build_store
from alcove.control.templates import store as templates
from alcove.control.templates.store import DEFAULT_TAG, Build
from alcove.wire.errors import ErrorCode
from alcove.wire.ids import SandboxId, SnapshotId, TeamId
from alcove.wire.node import SandboxReport, SnapshotReport

_log = structlog.get_logger()

MOST_TOGETHER = 1000
"""So many snapshots are shown of a tree, or deleted at once with their name."""


class Checkpoints:
    def __init__(self, context: Context, builds_gone: Callable[[list[Build]], None]) -> None:
        """`builds_gone` is told of builds whose template was deleted."""
        self._in = context
        self._builds_gone = builds_gone

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
        ids = None if sandbox_id is None else [sandbox_id]
        wanted = Wanted(caller.team_id, ids, reference, caller.team.slug)
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
            gone = await catalog.page(tx, wanted, limit=MOST_TOGETHER)
            if gone:
                await self._withdraw(tx, caller, gone)
                builds: list[Build] = []
            else:
                builds = await self._delete_template(tx, caller, reference, text)
        self._in.snapshots.changed.set()
        self._builds_gone(builds)

    async def history(self, caller: Caller, sandbox_id: SandboxId) -> tuple[Sandbox, list[Shown]]:
        """A sandbox and the snapshots of it, oldest first."""
        async with self._in.db.reading() as tx:
            sandbox = await lineage.owned(tx, caller, sandbox_id)
            wanted = Wanted(caller.team_id, [sandbox_id], oldest_first=True)
            return sandbox, await catalog.page(tx, wanted, limit=MOST_TOGETHER)

    async def family(
        self, caller: Caller, sandbox_id: SandboxId
    ) -> tuple[list[Sandbox], list[Shown]]:
        """All sandboxes of one tree and the snapshots of them, as far as they are kept."""
        async with self._in.db.reading() as tx:
            root_id = (await lineage.owned(tx, caller, sandbox_id)).root_id
            members = await lineage.family(tx, caller.team_id, root_id, limit=MOST_TOGETHER)
            ids = [member.id for member in members]
            wanted = Wanted(caller.team_id, ids, oldest_first=True)
            return members, await catalog.page(tx, wanted, limit=MOST_TOGETHER)

    async def whereabouts(self, sandbox: Sandbox) -> tuple[SandboxReport | None, Snapshot | None]:
        """What the machine says of this life of it, and the snapshot it is paused in."""
        report = paused = None
        if sandbox.state is State.RUNNING:
            try:
                report = await self._in.nodes.client(sandbox.node_id).find(sandbox.id)
            except NodeError as error:
                _log.info("sandbox.not_asked", sandbox_id=sandbox.id, why=str(error))
        if sandbox.state is State.PAUSED and sandbox.snapshot_id is not None:
            async with self._in.db.reading() as tx:
                paused = await snapshots.find(tx, sandbox.snapshot_id)
        return report, paused

    async def delete_of(self, caller: Caller, sandbox_id: SandboxId, text: str) -> None:
        """Delete one snapshot of a sandbox."""
        async with self._in.db.transaction() as tx:
            await teams.lock_team(tx, caller.team_id)
            await lineage.owned(tx, caller, sandbox_id)
            shown = await named(tx, caller, text)
            if shown is None or shown.sandbox_id != sandbox_id:
                raise no_such_checkpoint(sandbox_id, text)
            await self._withdraw(tx, caller, [shown])
        self._in.snapshots.changed.set()

    async def _withdraw(self, tx: Tx, caller: Caller, gone: list[Shown]) -> None:
        used = await lineage.living_from(tx, [shown.snapshot_id for shown in gone])
        if used:
            raise InvalidRequestError(
                f"The snapshot is in use by {len(used)} sandboxes that run or are paused "
                f"({', '.join(used[:3])}{', …' if len(used) > 3 else ''}); end them first",
                error_code=ErrorCode.SNAPSHOT_IN_USE,
            )
        await withdraw(tx, caller.team_id, gone, at=self._in.clock(), why="requested")

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
        async with self._in.db.transaction(durable=True) as tx:
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

    async def _delete_template(
        self, tx: Tx, caller: Caller, reference: Reference, text: str
    ) -> list[Build]:
        """Delete a template of the team; the builds it had."""
        slug = caller.team.slug
        template = await build_store.owned(tx, caller.team_id, slug, reference.name)
        foreign = reference.namespace not in {None, slug}
        if template is None or template.kind == templates.SNAPSHOT or foreign:
            raise await self._nothing_to_delete(tx, caller, reference, text)
        if reference.tag is not None:
            raise InvalidRequestError(
                f"'{text[:200]}' is a tag: remove tags with DELETE /templates/tags, or name the"
                " template without a tag to delete all of it"
            )
        used = await lineage.living_of(tx, template.id)
        if used:
            raise InvalidRequestError(
                f"The template is in use by {len(used)} sandboxes that run or are paused "
                f"({', '.join(used[:3])}{', …' if len(used) > 3 else ''}); end them first",
                error_code=ErrorCode.TEMPLATE_IN_USE,
            )
        return await build_store.delete_template(tx, template)

    async def _nothing_to_delete(
        self, tx: Tx, caller: Caller, reference: Reference, text: str
    ) -> ControlError:
        namespaces = (
            (caller.team.slug, "") if reference.namespace is None else (reference.namespace,)
        )
        by_id = reference.namespace is None
        for found in await templates.find_named(
            tx, namespaces, reference.name, reference.tag or DEFAULT_TAG, by_id=by_id
        ):
            if found.template.team_id is None:
                return InvalidRequestError(
                    f"template '{text}' ships with Alcove and cannot be deleted"
                )
        return NotFoundError(f"template '{text}' not found")


async def withdraw(tx: Tx, team_id: TeamId, gone: list[Shown], *, at: int, why: str) -> None:
    """Take snapshots away from their owner; the caller holds the team's lock."""
    await catalog.withdraw(tx, gone)
    for shown in gone:
        data = {"snapshot": shown.public_id, "reason": why}
        kind = EventKind.SNAPSHOT_DELETED
        await events.record(tx, team_id, shown.sandbox_id, kind=kind, at=at, data=data)


async def named(tx: Tx, caller: Caller, text: str) -> Shown | None:
    """The snapshot of the caller's team that a UUID, or a name with its tag, means."""
    if is_uuid(text):
        return await catalog.find(tx, caller.team_id, SnapshotId(text))
    reference = read_reference(text)
    if reference is None:
        return None
    if reference.tag is None:
        reference = replace(reference, tag=DEFAULT_TAG)
    wanted = Wanted(caller.team_id, reference=reference, slug=caller.team.slug)
    found = await catalog.page(tx, wanted, limit=1)
    return found[0] if found else None


def no_such_checkpoint(sandbox_id: SandboxId, text: str) -> NotFoundError:
    return NotFoundError(f'Sandbox "{sandbox_id}" has no checkpoint "{text[:200]}"')


def continued(
    history: list[Shown], generation: int, started_from: SnapshotId | None
) -> SnapshotId | None:
    """The snapshot that a life goes on from: the last of it, or where it was started.

    `history`: the snapshots of the sandbox, oldest first, up to the moment asked about.
    """
    of_this_life = [shown for shown in history if shown.generation == generation]
    if of_this_life:
        return of_this_life[-1].snapshot_id
    if any(shown.snapshot_id == started_from for shown in history):
        return started_from
    # Started from a pause, whose snapshot is gone: it went on from where the life before ended.
    before = [shown for shown in history if shown.generation < generation]
    return before[-1].snapshot_id if before else None
