"""Where a sandbox comes from: its place in the tree of those made from each other's snapshots."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Select, select

from alcove.control.clock import MICROSECONDS
from alcove.control.db import Tx
from alcove.control.errors import ConflictError
from alcove.control.sandboxes import store
from alcove.control.sandboxes.context import no_such_sandbox
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.sandboxes.tables import sandboxes
from alcove.control.snapshots import store as snapshots
from alcove.control.snapshots.store import Snapshot
from alcove.control.teams.service import Caller
from alcove.wire.errors import ErrorCode
from alcove.wire.ids import SandboxId, SnapshotId, TeamId, TemplateId, new_sandbox_id

_LIVING = (State.STARTING, State.RUNNING, State.PAUSING, State.PAUSED, State.RESUMING)


async def descend(tx: Tx, sandbox: Sandbox) -> Sandbox:
    """A new sandbox that starts from a snapshot, below the one the snapshot shows."""
    if sandbox.snapshot_id is None:
        return sandbox
    snapshot = await snapshots.hold(tx, sandbox.snapshot_id)
    if snapshot is None:
        raise ConflictError(
            "The snapshot is being removed", error_code=ErrorCode.TEMPLATE_NOT_READY
        )
    parent = await store.find(tx, snapshot.sandbox_id)
    return replace(
        sandbox,
        build_id=snapshot.build_id,
        parent_id=snapshot.sandbox_id,
        # A parent that ended long ago is forgotten; its children still have it in common.
        root_id=snapshot.sandbox_id if parent is None else parent.root_id,
        depth=1 if parent is None else parent.depth + 1,
    )


def child(
    source: Sandbox, snapshot: Snapshot, *, now: int, timeout_s: int, start_deadline: int
) -> Sandbox:
    """A sandbox to be started from a snapshot of `source`: all its settings, nothing of its own."""
    return replace(
        source,
        id=new_sandbox_id(),
        generation=1,
        state=State.STARTING,
        build_id=snapshot.build_id,
        node_id=snapshot.node_id,
        created_at=now,
        started_at=now,
        end_at=now + timeout_s * MICROSECONDS,
        start_deadline=start_deadline,
        stopped_at=None,
        stop_reason=None,
        keyed=False,
        timeout_s=timeout_s,
        snapshot_id=snapshot.id,
        saving_id=None,
        paused_at=None,
        pause_reason=None,
        pause_memory=True,
        pause_strict=False,
        unresponsive=False,
        boots=0,
        root_id=source.root_id,
        parent_id=source.id,
        origin_snapshot_id=snapshot.id,
        depth=source.depth + 1,
        changes={},
    )


async def owned(tx: Tx, caller: Caller, sandbox_id: SandboxId) -> Sandbox:
    """A sandbox of the caller's team, whatever became of it."""
    sandbox = await store.find(tx, sandbox_id)
    if sandbox is None or sandbox.team_id != caller.team_id or sandbox.state is State.FAILED:
        raise no_such_sandbox(sandbox_id)
    return sandbox


async def living_from(tx: Tx, snapshot_ids: Sequence[SnapshotId]) -> list[SandboxId]:
    """Sandboxes made from one of these snapshots that have not ended."""
    found = select(sandboxes.c.id).where(
        sandboxes.c.origin_snapshot_id.in_(snapshot_ids), _in(_LIVING)
    )
    return list((await tx.execute(found.order_by(sandboxes.c.id))).scalars())


async def living_of(tx: Tx, template_id: TemplateId) -> list[SandboxId]:
    """Sandboxes of a template that have not ended."""
    found = select(sandboxes.c.id).where(sandboxes.c.template_id == template_id, _in(_LIVING))
    return list((await tx.execute(found.order_by(sandboxes.c.id))).scalars())


def needed_snapshots() -> list[Select[Any]]:
    """Ids of the snapshots that sandboxes will start from, or are being paused into.

    A paused one that is rolled back keeps the state it was paused in until that has succeeded.
    """
    starts = _in((State.STARTING, State.PAUSED, State.RESUMING))
    return [
        select(sandboxes.c.snapshot_id).where(sandboxes.c.snapshot_id.is_not(None), starts),
        select(sandboxes.c.saving_id).where(
            sandboxes.c.saving_id.is_not(None), _in((State.PAUSING, State.RESUMING))
        ),
    ]


async def family(tx: Tx, team_id: TeamId, root_id: SandboxId, *, limit: int) -> list[Sandbox]:
    """The sandboxes of one tree, the root first, as far as they are not forgotten."""
    found = select(sandboxes).where(sandboxes.c.root_id == root_id, sandboxes.c.team_id == team_id)
    ordered = found.order_by(sandboxes.c.depth, sandboxes.c.created_at, sandboxes.c.id)
    return [store.read(row) for row in await tx.execute(ordered.limit(limit))]


def _in(states: Sequence[State]) -> Any:
    return sandboxes.c.state.in_([state.value for state in states])
