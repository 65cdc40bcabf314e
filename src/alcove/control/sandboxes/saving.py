"""Takes a snapshot of a sandbox that goes on: the intent, the machine, what to say of a failure."""

from dataclasses import replace

from alcove.control.db import Tx
from alcove.control.errors import (
    RETRY_SOON,
    ConflictError,
    ControlError,
    TimedOutError,
    UnavailableError,
)
from alcove.control.nodes.client import (
    NodeError,
    NodeFullError,
    NodeGuestError,
    NodeNotSavedError,
    NodeTimeoutError,
    NodeUnreachableError,
)
from alcove.control.sandboxes import store
from alcove.control.sandboxes.context import Context, no_such_sandbox
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.snapshots.service import SAVE_LIMIT_US
from alcove.control.snapshots.states import SnapshotKind, SnapshotState
from alcove.control.snapshots.store import Snapshot
from alcove.control.teams.service import Caller
from alcove.wire.errors import ErrorCode
from alcove.wire.ids import SandboxId, new_snapshot_id
from alcove.wire.node import SnapshotReport, SnapshotSpec

_PASSING = {
    State.PAUSING: "is being paused",
    State.RESUMING: "is being resumed",
    State.STOPPING: "is being ended",
}


async def settled(tx: Tx, caller: Caller, sandbox_id: SandboxId, now: int) -> Sandbox:
    """The caller's sandbox, running or paused. Raises NotFoundError, ConflictError (in between)."""
    sandbox = await store.find(tx, sandbox_id)
    if sandbox is None or sandbox.team_id != caller.team_id:
        raise no_such_sandbox(sandbox_id)
    if sandbox.state in _PASSING:
        raise _not_now(sandbox_id, _PASSING[sandbox.state])
    if sandbox.state not in {State.RUNNING, State.PAUSED}:
        raise no_such_sandbox(sandbox_id)
    if sandbox.state is State.RUNNING and sandbox.end_at <= now:
        if sandbox.auto_pause:
            raise _not_now(sandbox_id, _PASSING[State.PAUSING])
        raise no_such_sandbox(sandbox_id)
    return sandbox


async def running(tx: Tx, caller: Caller, sandbox_id: SandboxId, now: int, done: str) -> Sandbox:
    """The caller's running sandbox; `done` says what cannot be done with a paused one."""
    sandbox = await settled(tx, caller, sandbox_id, now)
    if sandbox.state is State.PAUSED:
        raise ConflictError(
            f'Sandbox "{sandbox_id}" is paused and cannot be {done}; resume it first'
        )
    return sandbox


def new_snapshot(sandbox: Sandbox, kind: SnapshotKind, now: int, *, memory: bool) -> Snapshot:
    """A snapshot of this life of the sandbox that is about to be taken."""
    return Snapshot(
        id=new_snapshot_id(),
        team_id=sandbox.team_id,
        node_id=sandbox.node_id,
        kind=kind,
        state=SnapshotState.CREATING,
        sandbox_id=sandbox.id,
        generation=sandbox.generation,
        parent_id=sandbox.snapshot_id,
        template_id=sandbox.template_id,
        build_id=sandbox.build_id,
        memory=memory,
        vcpu_count=sandbox.vcpu_count,
        memory_mib=sandbox.memory_mib,
        disk_mib=sandbox.disk_mib,
        envd_version=sandbox.envd_version,
        size_bytes=0,
        created_at=now,
        deadline=now + SAVE_LIMIT_US,
        ready_at=None,
    )


async def save(
    context: Context, caller: Caller, snapshot: Snapshot, done: str
) -> tuple[Snapshot, SnapshotReport]:
    """Have the machine take a snapshot whose intent is committed; what fails is written down."""
    spec = SnapshotSpec(
        snapshot.id, snapshot.sandbox_id, snapshot.generation, memory=snapshot.memory
    )
    try:
        report = await context.nodes.client(snapshot.node_id).save(spec)
    except NodeError as error:
        await give_up(context, snapshot)
        async with context.db.reading() as tx:
            # Whoever ended or paused it meanwhile is the better explanation.
            await running(tx, caller, snapshot.sandbox_id, context.clock(), done)
        raise _save_error(error, snapshot.sandbox_id) from error
    return replace(snapshot, size_bytes=report.size_bytes), report


async def give_up(context: Context, snapshot: Snapshot) -> None:
    async with context.db.transaction() as tx:
        await context.snapshots.failed(tx, snapshot)


def given_up() -> ControlError:
    """The reconcile step thought it interrupted."""
    return TimedOutError(
        "The snapshot was not taken in time; the sandbox is as it was",
        error_code=ErrorCode.SNAPSHOT_FAILED,
    )


def _save_error(error: NodeError, sandbox_id: SandboxId) -> ControlError:
    match error:
        case NodeGuestError():
            return UnavailableError(
                "The agent in the sandbox does not answer, so its state was not saved; the sandbox "
                "is as it was",
                error_code=ErrorCode.GUEST_UNRESPONSIVE,
                detail=str(error),
            )
        case NodeNotSavedError():
            return ControlError(
                "The sandbox's state could not be saved; the sandbox runs on. See `alcove logs "
                "node` if it stays so",
                error_code=ErrorCode.SNAPSHOT_FAILED,
                detail=str(error),
            )
        case NodeFullError():
            return UnavailableError(
                "The node is busy or has no room for the sandbox's state; try again in a moment",
                error_code=ErrorCode.CAPACITY,
                detail=str(error),
            )
        case NodeUnreachableError():
            return UnavailableError(
                "The node does not answer; try again in a moment",
                error_code=ErrorCode.NO_NODE,
                detail=str(error),
            )
        case NodeTimeoutError():
            return TimedOutError(
                "The sandbox's state was not saved in time; the sandbox is as it was",
                error_code=ErrorCode.SNAPSHOT_FAILED,
                detail=str(error),
            )
        case _:
            return ConflictError(
                f'Sandbox "{sandbox_id}" cannot be saved right now; try again in a moment',
                headers=RETRY_SOON,
                detail=str(error),
            )


def _not_now(sandbox_id: SandboxId, what: str) -> ConflictError:
    return ConflictError(
        f'Sandbox "{sandbox_id}" {what}; try again in a moment', headers=RETRY_SOON
    )
