"""Makes what is match what was meant, whatever crashed in between: idempotent steps.

    running here, not on the machine        stopped (its reason, or lost with the machine)
    stopping here                           stop again, then stopped
    starting here, past its deadline        finished if somebody will ask for it, else failed
    on the machine, not alive here          stopped there

Rows are read before the machine is asked and its strangers looked up after, so a sandbox that
starts meanwhile is never taken for lost or unknown.
"""

from collections.abc import Callable

import structlog

from alcove.control import metrics
from alcove.control.clock import DAY_US, MICROSECONDS, now_us
from alcove.control.db import Database
from alcove.control.errors import ControlError
from alcove.control.events import store as events
from alcove.control.nodes.client import NodeClient, NodeError
from alcove.control.nodes.service import Node, Nodes
from alcove.control.sandboxes import history, idempotency, marks, store
from alcove.control.sandboxes.service import Sandboxes
from alcove.control.sandboxes.states import ALIVE, State
from alcove.control.sandboxes.store import Sandbox
from alcove.wire.ids import SandboxId
from alcove.wire.node import SandboxReport
from alcove.wire.states import NodeSandboxState, StopReason

_log = structlog.get_logger()

_EXPIRE_AT_ONCE = 16
_EXPIRE_BATCH = 500
_LONGEST_WAIT_S = 5.0
"""The expiry loop looks at least this often: another replica may have made a shorter life."""
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
        keep_events_us: int,
    ) -> None:
        self._db = db
        self._nodes = nodes
        self._sandboxes = sandboxes
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
        report = await self._nodes.client(sandbox.node_id).find(sandbox_id)
        if not _is_alive(sandbox, report):
            await self._sandboxes.outcomes.stopped(sandbox, reason=_why_gone(report))

    async def expire(self) -> float:
        """End every sandbox whose time is over; return how long until the next one's is."""
        self._sandboxes.outcomes.deadlines_changed.clear()
        over = await self._sandboxes.expire(_EXPIRE_BATCH)
        for begin in range(0, len(over), _EXPIRE_AT_ONCE):
            await self._sandboxes.end(over[begin : begin + _EXPIRE_AT_ONCE])
        if len(over) == _EXPIRE_BATCH:
            return 0.0
        async with self._db.reading() as tx:
            following = await store.next_end(tx)
        if following is None:
            return _LONGEST_WAIT_S
        wait_s = (following - self._clock()) / MICROSECONDS
        return min(max(wait_s, 0.0), _LONGEST_WAIT_S)

    async def purge(self) -> None:
        """Forget what is older than anybody may ask for. Usage is kept: bills are made from it."""
        now = self._clock()
        for purge, before in (
            (marks.purge, now - _KEEP_STOPPED_US),
            (events.purge, now - self._keep_events_us),
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
        await self._stop_strangers(node, list(reports.values()))

    async def _repair(
        self, sandbox: Sandbox, report: SandboxReport | None, client: NodeClient
    ) -> None:
        match sandbox.state:
            case State.RUNNING if not _is_alive(sandbox, report):
                # The list was made a moment ago: only what is gone twice is gone.
                again = await client.find(sandbox.id)
                if not _is_alive(sandbox, again) and await self._sandboxes.outcomes.stopped(
                    sandbox, reason=_why_gone(again)
                ):
                    _count("lost_sandbox", sandbox.id)
            case State.STOPPING:
                await self._sandboxes.resume_stop(sandbox)
                _count("finished_stop", sandbox.id)
            case State.STARTING if sandbox.start_deadline <= self._clock():
                await self._finish_start(sandbox, report)
            case _:
                pass

    async def _finish_start(self, sandbox: Sandbox, report: SandboxReport | None) -> None:
        runs = report is not None and report.state is NodeSandboxState.RUNNING
        if runs and sandbox.keyed and _is_alive(sandbox, report):
            timeout_us = sandbox.end_at - sandbox.created_at
            if await self._sandboxes.outcomes.started(sandbox, timeout_us=timeout_us) is not None:
                _count("finished_start", sandbox.id)
            return
        if await self._sandboxes.give_up(sandbox, "its start was interrupted"):
            _count("failed_start", sandbox.id)

    async def _stop_strangers(self, node: Node, reports: list[SandboxReport]) -> None:
        present = [report for report in reports if report.state is not NodeSandboxState.STOPPED]
        async with self._db.reading() as tx:
            known = await store.states_of(tx, [report.sandbox_id for report in present])
        for report in present:
            state, generation = known.get(report.sandbox_id, (State.STOPPED, report.generation))
            if state not in ALIVE or generation > report.generation:
                await node.client.stop(report.sandbox_id, StopReason.KILLED)
                _count("unknown_sandbox", report.sandbox_id)


def _is_alive(sandbox: Sandbox, report: SandboxReport | None) -> bool:
    return (
        report is not None
        and report.state is not NodeSandboxState.STOPPED
        and report.generation == sandbox.generation
    )


def _why_gone(report: SandboxReport | None) -> StopReason:
    if report is None or report.stop_reason is None:
        return StopReason.NODE_LOST
    return report.stop_reason


def _count(kind: str, sandbox_id: SandboxId) -> None:
    metrics.reconcile_repairs.labels(kind).inc()
    _log.info("sandbox.repaired", sandbox_id=sandbox_id, kind=kind)
