"""Makes what is match what was meant, whatever crashed in between: idempotent steps.

    running here, not on the machine        stopped (its reason, or lost with the machine)
    running here, paused on the machine     paused: the database lost its last commits
    stopping here                           stop again, then stopped
    pausing here                            what the machine did, or saved again
    resuming here                           running if it runs; paused past its deadline
    idle for longer than its policy says    paused or killed
    starting here, past its deadline        finished if somebody will ask for it, else failed
    on the machine, not alive here          stopped there

Rows are read before the machine is asked and its strangers looked up after, so a sandbox that
starts meanwhile is never taken for lost or unknown.
"""

from collections.abc import Callable

import structlog

from alcove.control import metrics
from alcove.control.clock import DAY_US, MICROSECONDS, from_seconds, now_us
from alcove.control.db import Database
from alcove.control.errors import ControlError
from alcove.control.events import store as events
from alcove.control.nodes.client import NodeClient, NodeError
from alcove.control.nodes.service import Node, Nodes
from alcove.control.sandboxes import history, idempotency, marks, store
from alcove.control.sandboxes.mounting import Mounting
from alcove.control.sandboxes.pauses import Pauses
from alcove.control.sandboxes.reach import Reach
from alcove.control.sandboxes.reports import is_here, is_running, was_paused, why_gone
from alcove.control.sandboxes.resumes import Resumes
from alcove.control.sandboxes.service import Sandboxes
from alcove.control.sandboxes.states import ALIVE, IdleAction, State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.secrets import use_store
from alcove.wire.ids import SandboxId
from alcove.wire.node import SandboxReport
from alcove.wire.states import NodeSandboxState, StopReason

_log = structlog.get_logger()

_EXPIRE_AT_ONCE = 16
_EXPIRE_BATCH = 500
_LONGEST_WAIT_US = 5 * MICROSECONDS
"""The expiry loop looks at least this often: another replica may have made a shorter life."""
_IDLE_MARGIN_US = 5 * MICROSECONDS
_KEEP_STOPPED_US = 7 * DAY_US
_PURGE_BATCH = 1000


class SandboxReconciler:
    def __init__(
        self,
        db: Database,
        nodes: Nodes,
        sandboxes: Sandboxes,
        clock: Callable[[], int] = now_us,
        *,
        pauses: Pauses,
        resumes: Resumes,
        reach: Reach,
        mounting: Mounting,
        keep_events_us: int,
    ) -> None:
        self._db = db
        self._nodes = nodes
        self._sandboxes = sandboxes
        self._pauses = pauses
        self._resumes = resumes
        self._reach = reach
        self._mounting = mounting
        self._clock = clock
        self._keep_events_us = keep_events_us

    async def step(self) -> None:
        for node in self._nodes.all():
            try:
                await self._reconcile(node)
            except NodeError as error:
                _log.warning("node.not_reconciled", node_id=node.node_id, why=str(error))

    async def observe(self, sandbox_id: SandboxId) -> None:
        """A machine says that a sandbox ended: ask it, and write down what it knows."""
        async with self._db.reading() as tx:
            sandbox = await store.find(tx, sandbox_id)
        if sandbox is None or sandbox.state is not State.RUNNING:
            return
        await self._lost(sandbox, await self._nodes.client(sandbox.node_id).find(sandbox_id))

    async def idle(self, sandbox_id: SandboxId, at: float) -> None:
        """A machine says that a sandbox has been idle for long: do what its policy says."""
        async with self._db.reading() as tx:
            sandbox = await store.find(tx, sandbox_id)
        if sandbox is None or sandbox.state is not State.RUNNING:
            return
        report = await self._nodes.client(sandbox.node_id).find(sandbox_id)
        # Somebody may have come back while the message was on its way.
        if is_running(sandbox, report) and report is not None and (report.active_at or 0.0) <= at:
            await self._end_idle(sandbox)

    async def expire(self) -> float:
        """End every sandbox whose time is over; return how long until the next one's is.

        Those to be paused then go on being paused after it has returned.
        """
        outcomes = self._sandboxes.outcomes
        outcomes.deadlines_changed.clear()
        outcomes.looks_at = 0  # what ends while it looks may have been missed
        pausing = await self._pauses.expire(_EXPIRE_BATCH)
        over = await self._sandboxes.expire(_EXPIRE_BATCH)
        for begin in range(0, len(over), _EXPIRE_AT_ONCE):
            await self._sandboxes.end(over[begin : begin + _EXPIRE_AT_ONCE])
        if _EXPIRE_BATCH in {len(over), pausing}:
            return 0.0
        async with self._db.reading() as tx:
            following = await store.next_end(tx)
        now = self._clock()
        wait_us = _LONGEST_WAIT_US
        if following is not None:
            wait_us = min(max(following - now, 0), _LONGEST_WAIT_US)
        outcomes.looks_at = now + wait_us
        return wait_us / MICROSECONDS

    async def purge(self) -> None:
        """Forget what is older than anybody may ask for. Usage is kept: bills are made from it."""
        now = self._clock()
        for purge, before in (
            (marks.purge, now - _KEEP_STOPPED_US),
            (events.purge, now - self._keep_events_us),
            (use_store.purge, now - self._keep_events_us),
        ):
            gone = _PURGE_BATCH
            while gone == _PURGE_BATCH:
                # In parts, so that no request waits long for its turn to write.
                async with self._db.transaction() as tx:
                    gone = await purge(tx, before=before, limit=_PURGE_BATCH)
        async with self._db.transaction() as tx:
            await idempotency.purge(tx, before=now - idempotency.LIFETIME_US)
            await history.purge(tx, now=now)

    async def forget_starts(self) -> None:
        """After a restart of the only control: nobody is left to finish the starts in progress."""
        async with self._db.transaction() as tx:
            await marks.expedite_starts(tx, self._clock())

    async def _reconcile(self, node: Node) -> None:
        async with self._db.reading() as tx:
            alive = await store.list_in(tx, ALIVE, node_id=node.node_id)
        reports = {report.sandbox_id: report for report in await node.client.list_all()}
        for sandbox in alive:
            try:
                await self._repair(sandbox, reports.get(sandbox.id), node.client)
            except ControlError as error:
                _log.warning("sandbox.not_repaired", sandbox_id=sandbox.id, why=error.detail)
        await self._pauses.finish([one for one in alive if one.state is State.PAUSING])
        await self._stop_strangers(node, list(reports.values()))

    async def _repair(
        self, sandbox: Sandbox, report: SandboxReport | None, client: NodeClient
    ) -> None:
        match sandbox.state:
            case State.RUNNING if not is_here(sandbox, report):
                # The list was made a moment ago: only what is gone twice is gone.
                if await self._lost(sandbox, await client.find(sandbox.id)):
                    _count("lost_sandbox", sandbox.id)
            case State.RUNNING if report is not None and self._is_idle(sandbox, report):
                await self._end_idle(sandbox)
            case State.RUNNING if report is not None and is_running(sandbox, report):
                if await self._reach.repair(sandbox, report):
                    _count("egress_policy", sandbox.id)
                if await self._mounting.repair(sandbox, report):
                    _count("volumes", sandbox.id)
            case State.RESUMING:
                await self._resumes.finish(sandbox, report)
            case State.STOPPING:
                await self._sandboxes.resume_stop(sandbox)
                _count("finished_stop", sandbox.id)
            case State.STARTING if sandbox.start_deadline <= self._clock():
                await self._finish_start(sandbox, report)
            case _:
                pass

    async def _finish_start(self, sandbox: Sandbox, report: SandboxReport | None) -> None:
        if report is not None and sandbox.keyed and is_running(sandbox, report):
            started = await self._sandboxes.outcomes.started(
                sandbox, timeout_us=sandbox.end_at - sandbox.created_at, changes=report.changes
            )
            if started is not None:
                _count("finished_start", sandbox.id)
            return
        if await self._sandboxes.give_up(sandbox, "its start was interrupted"):
            _count("failed_start", sandbox.id)

    async def _lost(self, sandbox: Sandbox, report: SandboxReport | None) -> bool:
        """Write down what became of a running sandbox; False when it is still there."""
        if is_here(sandbox, report):
            return False
        if was_paused(sandbox, report) and await self._pauses.found(sandbox):
            _count("found_pause", sandbox.id)
            return False
        return await self._sandboxes.outcomes.stopped(sandbox, reason=why_gone(report))

    def _is_idle(self, sandbox: Sandbox, report: SandboxReport) -> bool:
        """The machine's word for it may have been missed."""
        if sandbox.idle_after_s is None or report.active_at is None:
            return False
        idle_us = self._clock() - from_seconds(report.active_at)
        return idle_us >= sandbox.idle_after_s * MICROSECONDS + _IDLE_MARGIN_US

    async def _end_idle(self, sandbox: Sandbox) -> None:
        match sandbox.idle_action:
            case IdleAction.PAUSE:
                await self._pauses.pause_idle(sandbox)
            case IdleAction.KILL:
                try:
                    await self._sandboxes.kill_idle(sandbox)
                except ControlError as error:
                    _log.warning("sandbox.not_stopped", sandbox_id=sandbox.id, why=error.detail)
            case None:
                pass

    async def _stop_strangers(self, node: Node, reports: list[SandboxReport]) -> None:
        present = [report for report in reports if report.state is not NodeSandboxState.STOPPED]
        async with self._db.reading() as tx:
            known = await store.states_of(tx, [report.sandbox_id for report in present])
        for report in present:
            state, generation = known.get(report.sandbox_id, (State.STOPPED, report.generation))
            # The life before the one being started ends when the machine has looked at the new.
            if state is State.RESUMING or (state in ALIVE and generation <= report.generation):
                continue
            # The list was made a moment ago, and a stop would end any life.
            again = await node.client.find(report.sandbox_id)
            if again is None or again.state is NodeSandboxState.STOPPED:
                continue
            if again.generation == report.generation:
                await self._stop_stranger(node, report.sandbox_id)

    async def _stop_stranger(self, node: Node, sandbox_id: SandboxId) -> None:
        async with self._db.reading() as tx:
            sandbox = await store.find(tx, sandbox_id)
        if sandbox is not None and sandbox.state is State.PAUSED:
            await self._resumes.stop_remains(sandbox)
        elif sandbox is None or sandbox.state is not State.RESUMING:
            await node.client.stop(sandbox_id, StopReason.KILLED)
        _count("unknown_sandbox", sandbox_id)


def _count(kind: str, sandbox_id: SandboxId) -> None:
    metrics.reconcile_repairs.labels(kind).inc()
    _log.info("sandbox.repaired", sandbox_id=sandbox_id, kind=kind)
