"""Rollbacks: a sandbox becomes again what one of its checkpoints shows, in place.

    intent   RUNNING or PAUSED -> RESUMING, the next generation, from the checkpoint
    act      the machine looks at the checkpoint, ends the old life, starts the new one
    result   RESUMING -> RUNNING

When the machine refuses, the sandbox is what it was before. When the old life is gone and the new
one did not start, it is paused at the checkpoint. The same holds after a crash in between.
"""

from dataclasses import replace

from alcove.control.clock import MICROSECONDS
from alcove.control.db import Tx
from alcove.control.ending import to_its_end
from alcove.control.errors import ConflictError, ControlError, UnavailableError
from alcove.control.events import store as events
from alcove.control.events.store import EventKind
from alcove.control.nodes.client import (
    NodeError,
    NodeFullError,
    NodeSnapshotError,
    NodeTimeoutError,
    NodeUnreachableError,
)
from alcove.control.sandboxes import checkpoints, marks, plan, rollback_marks, saving, store
from alcove.control.sandboxes.context import Context
from alcove.control.sandboxes.plan import Created
from alcove.control.sandboxes.reports import is_here
from alcove.control.sandboxes.service import Sandboxes
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.snapshots import store as snapshots
from alcove.control.snapshots.catalog import Shown
from alcove.control.teams import store as teams
from alcove.control.teams.service import Caller
from alcove.control.usage import store as usage
from alcove.wire.errors import ErrorCode
from alcove.wire.ids import SandboxId
from alcove.wire.states import StopReason


class Rollbacks:
    def __init__(self, context: Context, sandboxes: Sandboxes) -> None:
        self._in = context
        self._sandboxes = sandboxes

    async def rollback(
        self, caller: Caller, sandbox_id: SandboxId, checkpoint: str, timeout_s: int | None
    ) -> Created:
        """Start the sandbox again from a checkpoint of it, or from what it was made from.

        `timeout_s` None: a running one ends when it would have, a paused one gets its own timeout.
        Finishes although the caller goes away.
        """
        if timeout_s is not None:
            self._in.limits.check_timeout(timeout_s)
        work = self._rollback(caller, sandbox_id, checkpoint, timeout_s)
        return await to_its_end(work, name="sandbox.rollback")

    async def _rollback(
        self, caller: Caller, sandbox_id: SandboxId, checkpoint: str, timeout_s: int | None
    ) -> Created:
        before, resuming, shown = await self._intend(caller, sandbox_id, checkpoint, timeout_s)
        self._in.outcomes.news.tell(sandbox_id)
        await self._in.checkpoint("rollback intent written")
        spec = self._in.spec(resuming, {})
        try:
            report = await self._in.nodes.client(resuming.node_id).start(spec)
        except NodeError as error:
            raise _refusal(error, await self._undo(before, resuming, error)) from error
        await self._in.checkpoint("sandbox rolled back")
        running = await self._in.outcomes.resumed(
            resuming,
            end_at=resuming.end_at,
            changes=report.changes,
            kind=EventKind.ROLLED_BACK,
            data={"snapshot": shown.public_id},
        )
        self._in.snapshots.changed.set()
        await self._in.checkpoint("rollback written")
        return self._in.created(running or await self._decided_meanwhile(resuming))

    async def _intend(
        self, caller: Caller, sandbox_id: SandboxId, checkpoint: str, timeout_s: int | None
    ) -> tuple[Sandbox, Sandbox, Shown]:
        async with self._in.db.transaction() as tx:
            await teams.lock_team(tx, caller.team_id)
            now = self._in.clock()
            before = await saving.settled(tx, caller, sandbox_id, now)
            shown = await self._checkpoint(tx, caller, before, checkpoint)
            if before.state is State.PAUSED:
                await self._in.check_limit(tx, caller.team)
            end_at = before.end_at
            if timeout_s is not None or before.state is State.PAUSED:
                end_at = now + (timeout_s or before.timeout_s) * MICROSECONDS
            resuming = replace(
                before,
                state=State.RESUMING,
                generation=before.generation + 1,
                # Where it is paused if it does not start: at the checkpoint, with the memory that
                # one has. A paused sandbox's own snapshot is kept as `saving_id` meanwhile.
                snapshot_id=shown.snapshot_id,
                saving_id=before.snapshot_id if before.state is State.PAUSED else None,
                pause_memory=shown.memory,
                start_deadline=self._in.limits.start_deadline(now),
                end_at=end_at,
                boots=before.boots + (0 if shown.memory else 1),
            )
            if not await marks.mark_resuming(tx, before, resuming):
                raise ConflictError(f'Sandbox "{sandbox_id}" changed meanwhile; try again')
            await usage.close_entries(tx, [(before.id, before.generation)], now)
            return before, resuming, shown

    async def _checkpoint(self, tx: Tx, caller: Caller, sandbox: Sandbox, text: str) -> Shown:
        shown = await checkpoints.named(tx, caller, text)
        if shown is None or not (
            shown.sandbox_id == sandbox.id or shown.snapshot_id == sandbox.origin_snapshot_id
        ):
            raise checkpoints.no_such_checkpoint(sandbox.id, text)
        if await snapshots.hold(tx, shown.snapshot_id) is None:
            raise checkpoints.no_such_checkpoint(sandbox.id, text)
        return shown

    async def _undo(self, before: Sandbox, resuming: Sandbox, error: NodeError) -> str:
        """Write down what the sandbox is after a rollback that failed, and say it."""
        if isinstance(error, NodeUnreachableError | NodeTimeoutError):
            # What became of it is not known: nothing of either life shall stay.
            await self._sandboxes.stop_quietly(resuming, StopReason.START_FAILED)
            still = before.state is State.PAUSED
        else:
            still = before.state is State.PAUSED or await self._runs_on(before)
        if still:
            await self._as_before(before, resuming, str(error))
            return "runs on as before" if before.state is State.RUNNING else "is paused as before"
        await self._in.outcomes.not_resumed(resuming, str(error))
        return "is paused at the checkpoint"

    async def _runs_on(self, before: Sandbox) -> bool:
        try:
            report = await self._in.nodes.client(before.node_id).find(before.id)
        except NodeError:
            return False
        return is_here(before, report)

    async def _as_before(self, before: Sandbox, resuming: Sandbox, why: str) -> None:
        async with self._in.db.transaction() as tx:
            if not await rollback_marks.mark_as_before(tx, resuming, before):
                return
            if before.state is State.RUNNING:
                await usage.reopen_entry(tx, before.id, before.generation)
            await events.record(
                tx,
                before.team_id,
                before.id,
                kind=EventKind.ROLLBACK_FAILED,
                at=self._in.clock(),
                data={"cause": why[:500]},
            )
        self._in.outcomes.news.tell(before.id)
        self._in.outcomes.deadlines_changed.set()

    async def _decided_meanwhile(self, resuming: Sandbox) -> Sandbox:
        """The reconcile step, or a kill, was faster."""
        async with self._in.db.reading() as tx:
            current = await store.find(tx, resuming.id)
        same = current is not None and current.generation == resuming.generation
        if current is not None and same and current.state is State.RUNNING:
            return current
        await self._sandboxes.stop_quietly(resuming, StopReason.KILLED)
        raise UnavailableError(
            "The sandbox was ended or given up while it was rolled back; ask again what it is"
        )


def _refusal(error: NodeError, now: str) -> ControlError:
    """What to tell of a rollback that failed; `now`: what the sandbox is."""
    match error:
        case NodeSnapshotError():
            told = plan.snapshot_error(error)
            told.message = f"The sandbox was not rolled back and {now}. {told.message}"
            return told
        case NodeFullError():
            code, why = ErrorCode.CAPACITY, "the node has no room for it"
        case NodeUnreachableError() | NodeTimeoutError():
            code, why = ErrorCode.NO_NODE, "the node does not answer"
        case _:
            code, why = ErrorCode.CREATE_FAILED, "the checkpoint did not start"
    return UnavailableError(
        f"The sandbox was not rolled back, because {why}; it {now}. Try again in a moment",
        error_code=code,
        detail=str(error),
    )
