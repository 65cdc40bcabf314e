"""Pauses sandboxes: asked for, when their time is over, when they are idle.

    intent   RUNNING -> PAUSING, with the id of the snapshot to write
    act      the machine saves the sandbox under that id and stops it
    result   PAUSING -> PAUSED: its usage is closed, the snapshot's storage opened

A sandbox that cannot be saved runs on. One whose machine does not say what became of it stays in
between until the machine does: `finish` asks again.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import structlog

from alcove.control import metrics
from alcove.control.clock import MICROSECONDS
from alcove.control.db import Tx
from alcove.control.ending import to_its_end
from alcove.control.errors import (
    RETRY_SOON,
    ConflictError,
    ControlError,
    NotFoundError,
    UnavailableError,
)
from alcove.control.events import store as events
from alcove.control.events.store import EventKind
from alcove.control.nodes.client import (
    NodeClient,
    NodeError,
    NodeFullError,
    NodeGuestError,
    NodeNotSavedError,
    NodeTimeoutError,
    NodeUnreachableError,
)
from alcove.control.sandboxes import marks, saving, store
from alcove.control.sandboxes.context import Context, no_such_sandbox
from alcove.control.sandboxes.reports import is_here, why_gone
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.sandboxes.turns import Turns
from alcove.control.snapshots import store as snapshots
from alcove.control.snapshots.states import SnapshotKind
from alcove.control.snapshots.store import Snapshot
from alcove.control.teams.service import Caller
from alcove.control.usage import store as usage
from alcove.wire.errors import ErrorCode
from alcove.wire.ids import SandboxId
from alcove.wire.node import SnapshotReport, SnapshotSpec
from alcove.wire.states import PauseReason, SandboxState

_log = structlog.get_logger()

TRY_AGAIN_US = 30 * MICROSECONDS
"""A sandbox that could not be paused at its end runs on for so long; then it is tried again."""
_LONGEST_FINISH_S = 10.0
_AT_ONCE = 4
"""Pauses nobody waits for, at a time: each writes the sandbox's memory to the disk."""


class Pauses:
    def __init__(self, context: Context) -> None:
        self._in = context
        self._turns: Turns[None] = Turns()
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def pause(
        self,
        caller: Caller,
        sandbox_id: SandboxId,
        *,
        memory: bool = True,
        require_healthy: bool = False,
        wait: bool = True,
    ) -> None:
        """Pause a running sandbox; with `wait` the answer comes when it is paused.

        Finishes although the caller goes away. Raises ConflictError (paused, or in between),
        also with GUEST_UNRESPONSIVE if `require_healthy`; UnavailableError: it runs on.
        """
        work = self._pause(caller, sandbox_id, memory, require_healthy, wait=wait)
        await to_its_end(work, name="sandbox.pause")

    async def expire(self, limit: int) -> int:
        """Begin to pause those whose time is over and that are to be paused; how many there are."""
        now = self._in.clock()
        async with self._in.db.reading() as tx:
            over = await store.list_over(tx, now=now, limit=limit)
        begun = []
        if over:
            async with self._in.db.transaction() as tx:
                for sandbox in over:
                    memory = sandbox.auto_pause_memory
                    begun.append(
                        await self._begin(
                            tx, sandbox, PauseReason.TIMEOUT, memory=memory, over_at=now
                        )
                    )
            await self._in.checkpoint("pause intent written")
        for pausing in begun:
            if pausing is not None:
                self._go_on_alone(pausing)
        return len(over)

    async def pause_idle(self, sandbox: Sandbox) -> None:
        """Begin to pause a running sandbox that has been idle for as long as its policy says."""
        async with self._in.db.transaction() as tx:
            begun = await self._begin(
                tx, sandbox, PauseReason.IDLE, memory=sandbox.auto_pause_memory
            )
        if begun is not None:
            self._go_on_alone(begun)

    async def finish(self, pausing: Sequence[Sandbox]) -> None:
        """Bring pauses that were cut off to their end; go on without it when that takes long."""
        work = [
            self._turns.begin(sandbox.id, partial(self._finish, sandbox.id), name="sandbox.pause")
            for sandbox in pausing
            if not self._turns.busy(sandbox.id)
        ]
        if work:
            await asyncio.wait(work, timeout=_LONGEST_FINISH_S)

    async def found(self, sandbox: Sandbox) -> bool:
        """A running sandbox was paused on its machine and we do not know of it: write it down.

        That happens when the power fails and the database loses its last commits. False: the
        machine has no snapshot of this life.
        """
        client = self._in.nodes.client(sandbox.node_id)
        saved = [
            report
            for report in await client.snapshots()
            if (report.sandbox_id, report.generation) == (sandbox.id, sandbox.generation)
        ]
        if not saved:
            return False
        newest = max(saved, key=lambda report: report.created_at)
        async with self._in.db.transaction() as tx:
            begun = await self._begin(
                tx, sandbox, PauseReason.REQUESTED, memory=newest.memory, found=newest
            )
        return begun is not None and await self._paused(begun, newest)

    async def _pause(
        self, caller: Caller, sandbox_id: SandboxId, memory: bool, healthy: bool, *, wait: bool
    ) -> None:
        async with self._in.db.transaction() as tx:
            sandbox = await store.find(tx, sandbox_id)
            if sandbox is None or sandbox.team_id != caller.team_id:
                raise no_such_sandbox(sandbox_id)
            self._check(sandbox)
            begun = await self._begin(
                tx, sandbox, PauseReason.REQUESTED, memory=memory, strict=healthy
            )
            if begun is None:
                raise _already(sandbox_id)
        self._in.outcomes.news.tell(sandbox_id)

        work = partial(self._save, begun)
        await self._turns.free(sandbox_id)
        if wait:
            await self._turns.join_or_begin(sandbox_id, work, name="sandbox.pause")
        else:
            self._turns.begin(sandbox_id, work, name="sandbox.pause")

    def _check(self, sandbox: Sandbox) -> None:
        shown = store.public_state(sandbox, self._in.clock())
        if shown is None:
            raise no_such_sandbox(sandbox.id)
        if shown is SandboxState.PAUSED:
            raise _already(sandbox.id)
        if sandbox.state is not State.RUNNING:
            raise ConflictError(
                f'Sandbox "{sandbox.id}" is being resumed; pause it in a moment',
                headers=RETRY_SOON,
            )

    async def _begin(
        self,
        tx: Tx,
        sandbox: Sandbox,
        reason: PauseReason,
        *,
        memory: bool,
        strict: bool = False,
        over_at: int | None = None,
        found: SnapshotReport | None = None,
    ) -> Sandbox | None:
        """Write the intent; None when the sandbox is not as it was."""
        now = self._in.clock()
        snapshot = saving.new_snapshot(sandbox, SnapshotKind.PAUSE, now, memory=memory)
        if found is not None:
            snapshot = replace(snapshot, id=found.snapshot_id)
        pausing = replace(
            sandbox,
            state=State.PAUSING,
            saving_id=snapshot.id,
            pause_reason=reason,
            pause_memory=memory,
            pause_strict=strict,
        )
        if not await marks.mark_pausing(tx, sandbox, pausing, over_at=over_at):
            return None
        if found is None or await snapshots.find(tx, snapshot.id) is None:
            await self._in.snapshots.begin(tx, snapshot)
        return pausing

    def _go_on_alone(self, sandbox: Sandbox) -> None:
        self._in.outcomes.news.tell(sandbox.id)

        async def in_line() -> None:
            async with self._room:
                await self._save(sandbox)

        self._turns.begin(sandbox.id, in_line, name="sandbox.pause")

    async def _save(self, sandbox: Sandbox) -> None:
        """Carry out a written intent."""
        await self._in.checkpoint("pause intent written")
        try:
            report = await self._in.nodes.client(sandbox.node_id).save(_spec(sandbox))
        except (NodeUnreachableError, NodeTimeoutError) as error:
            raise _unknown(error) from error
        except (NodeGuestError, NodeNotSavedError, NodeFullError) as error:
            await self._not_paused(sandbox, str(error))
            raise _refusal(error) from error
        except NodeError as error:
            await self._ask(sandbox, again=False, why=str(error))
            await self._tell(sandbox)
            return
        await self._in.checkpoint("sandbox saved")
        if not await self._paused(sandbox, report):
            await self._tell(sandbox)
        await self._in.checkpoint("pause written")

    async def _finish(self, sandbox_id: SandboxId) -> None:
        async with self._room:
            # Looked at anew, now that nobody here is at work on it.
            async with self._in.db.reading() as tx:
                sandbox = await store.find(tx, sandbox_id)
            if sandbox is not None and sandbox.state is State.PAUSING:
                await self._ask(sandbox, again=True, why="it was interrupted")
                metrics.reconcile_repairs.labels("finished_pause").inc()

    async def _ask(self, sandbox: Sandbox, *, again: bool, why: str) -> None:
        try:
            await self._look(sandbox, again=again, why=why)
        except NodeError as error:
            raise _unknown(error) from error

    async def _look(self, sandbox: Sandbox, *, again: bool, why: str) -> None:
        """Ask the machine what became of a pause, and write it down; `again`: try once more."""
        assert sandbox.saving_id is not None
        client = self._in.nodes.client(sandbox.node_id)
        report = await client.find(sandbox.id)
        saved = await client.snapshot(sandbox.saving_id)
        if is_here(sandbox, report):
            if saved is None and not again:
                await self._not_paused(sandbox, why)
                return
            saved = await self._save_again(sandbox, client)
            if saved is None:
                return
        if saved is not None:
            await self._paused(sandbox, saved)
            return
        await self._in.outcomes.stopped(sandbox, reason=why_gone(report))
        self._in.snapshots.changed.set()

    async def _save_again(self, sandbox: Sandbox, client: NodeClient) -> SnapshotReport | None:
        try:
            return await client.save(_spec(sandbox))
        except (NodeGuestError, NodeNotSavedError, NodeFullError) as error:
            await self._not_paused(sandbox, str(error))
            return None

    async def _paused(self, sandbox: Sandbox, report: SnapshotReport) -> bool:
        """Write down that it is paused; False when it was decided otherwise meanwhile."""
        now = self._in.clock()
        unresponsive = report.unresponsive
        async with self._in.db.transaction(durable=True) as tx:
            if not await marks.mark_paused(tx, sandbox, at=now, unresponsive=unresponsive):
                return False
            snapshot = await self._snapshot(tx, sandbox)
            if snapshot is not None:
                await self._in.snapshots.saved(tx, snapshot, report)
            await usage.close_entries(tx, [(sandbox.id, sandbox.generation)], now)
            data = {
                "reason": _reason(sandbox).value,
                "memory": sandbox.pause_memory,
                "size_bytes": report.size_bytes,
            }
            if unresponsive:
                data["unresponsive"] = True
            await events.record(
                tx, sandbox.team_id, sandbox.id, kind=EventKind.PAUSED, at=now, data=data
            )
        self._in.outcomes.news.tell(sandbox.id)
        metrics.pauses_finished.labels(_reason(sandbox).value).inc()
        _log.info("sandbox.paused", sandbox_id=sandbox.id, team_id=sandbox.team_id, **data)
        return True

    async def _not_paused(self, sandbox: Sandbox, why: str) -> None:
        """Write down that it runs on: one to be paused at its end, for a while at least."""
        now = self._in.clock()
        end_at = sandbox.end_at
        if sandbox.auto_pause or _reason(sandbox) is not PauseReason.REQUESTED:
            end_at = max(end_at, now + TRY_AGAIN_US)
        async with self._in.db.transaction() as tx:
            if not await marks.mark_not_paused(tx, sandbox, end_at=end_at):
                return
            snapshot = await self._snapshot(tx, sandbox)
            if snapshot is not None:
                await self._in.snapshots.failed(tx, snapshot)
            await events.record(
                tx,
                sandbox.team_id,
                sandbox.id,
                kind=EventKind.PAUSE_FAILED,
                at=now,
                data={"reason": _reason(sandbox).value, "cause": why[:_MOST_OF_A_CAUSE]},
            )
        self._in.outcomes.news.tell(sandbox.id)
        self._in.outcomes.deadlines_changed.set()
        metrics.pauses_failed.inc()
        _log.warning("sandbox.not_paused", sandbox_id=sandbox.id, team_id=sandbox.team_id, why=why)

    async def _snapshot(self, tx: Tx, sandbox: Sandbox) -> Snapshot | None:
        assert sandbox.saving_id is not None
        return await snapshots.find(tx, sandbox.saving_id)

    async def _tell(self, sandbox: Sandbox) -> None:
        """Somebody was faster: return if it is paused, else say what it is."""
        async with self._in.db.reading() as tx:
            current = await store.find(tx, sandbox.id)
        if current is None or current.state in _ENDED:
            raise NotFoundError(f'Sandbox "{sandbox.id}" was ended while it was being paused')
        if current.generation == sandbox.generation and current.state is State.RUNNING:
            raise _refusal(NodeNotSavedError("the machine refused to save it"))


_MOST_OF_A_CAUSE = 500
_ENDED = frozenset({State.STOPPING, State.STOPPED, State.FAILED})


def _reason(sandbox: Sandbox) -> PauseReason:
    return sandbox.pause_reason or PauseReason.REQUESTED


def _spec(sandbox: Sandbox) -> SnapshotSpec:
    assert sandbox.saving_id is not None
    return SnapshotSpec(
        sandbox.saving_id,
        sandbox.id,
        sandbox.generation,
        memory=sandbox.pause_memory,
        stop=True,
        require_healthy=sandbox.pause_strict,
    )


def _already(sandbox_id: SandboxId) -> ConflictError:
    return ConflictError(f'Sandbox "{sandbox_id}" is already paused or being paused')


def _unknown(error: NodeError) -> ControlError:
    return UnavailableError(
        "The sandbox's node does not answer; the sandbox will be paused as soon as it does",
        error_code=ErrorCode.NO_NODE,
        detail=str(error),
    )


def _refusal(error: NodeError) -> ControlError:
    match error:
        case NodeGuestError():
            return ConflictError(
                "The agent in the sandbox does not answer, so the sandbox was not paused; pause it "
                "without requireHealthyGuest to save it as it is, or kill it",
                error_code=ErrorCode.GUEST_UNRESPONSIVE,
                detail=str(error),
            )
        case NodeFullError():
            return UnavailableError(
                "The node is busy or has no room for the sandbox's state; the sandbox runs on",
                error_code=ErrorCode.CAPACITY,
                detail=str(error),
            )
        case _:
            return UnavailableError(
                "The sandbox's state could not be saved; the sandbox runs on. See `alcove logs "
                "node` if it stays so",
                error_code=ErrorCode.SNAPSHOT_FAILED,
                detail=str(error),
            )
