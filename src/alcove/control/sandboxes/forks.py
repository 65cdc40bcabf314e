"""Forks: one snapshot of a sandbox, and any number of new sandboxes started from it.

fork   the source runs and runs on; each child succeeds or fails by itself
clone  the same also of a paused source, which stays paused, and all or nothing if wanted
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alcove.control.clock import MICROSECONDS
from alcove.control.db import Tx
from alcove.control.ending import to_its_end
from alcove.control.errors import (
    ConflictError,
    ControlError,
    InvalidRequestError,
)
from alcove.control.events import store as events
from alcove.control.events.store import EventKind
from alcove.control.nodes.client import NodeError
from alcove.control.sandboxes import lineage, marks, plan, saving, store
from alcove.control.sandboxes.context import Context
from alcove.control.sandboxes.plan import Created
from alcove.control.sandboxes.service import Sandboxes
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.snapshots import store as snapshots
from alcove.control.snapshots.states import SnapshotKind
from alcove.control.snapshots.store import Snapshot
from alcove.control.teams import store as teams
from alcove.control.teams.service import Caller
from alcove.wire.ids import SandboxId, SnapshotId
from alcove.wire.node import SnapshotReport

PAUSED_TIMEOUT_S = 300
"""Life of the clones of a paused sandbox when none is asked for."""

Outcome = Created | ControlError


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checked request for children of a sandbox."""

    count: int
    timeout_s: int | None
    """None: as long as the source was to live, or PAUSED_TIMEOUT_S if it is paused."""
    of_paused: bool = False
    strict: bool = False
    """All of them or none."""


@dataclass(frozen=True, slots=True)
class Forked:
    snapshot_id: SnapshotId
    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True)
class _Planned:
    source: Sandbox
    snapshot: Snapshot
    children: list[Sandbox]
    refused: int
    """So many were asked for beyond the team's limit."""


class Forks:
    def __init__(self, context: Context, sandboxes: Sandboxes, *, starts_at_once: int) -> None:
        self._in = context
        self._sandboxes = sandboxes
        self._starts_at_once = starts_at_once

    async def fork(self, caller: Caller, sandbox_id: SandboxId, wanted: Wanted) -> Forked:
        """Start children of a sandbox. Finishes although the caller goes away."""
        return await to_its_end(self._fork(caller, sandbox_id, wanted), name="sandbox.fork")

    async def _fork(self, caller: Caller, sandbox_id: SandboxId, wanted: Wanted) -> Forked:
        if wanted.timeout_s is not None:
            self._in.limits.check_timeout(wanted.timeout_s)
        planned = await self._intend(caller, sandbox_id, wanted)
        if isinstance(planned, Snapshot):
            await self._in.checkpoint("fork intent written")
            snapshot, report = await saving.save(self._in, caller, planned, "forked")
            await self._in.checkpoint("fork saved")
            planned = await self._plan_saved(caller, snapshot, report, wanted)
        await self._in.checkpoint("children written")
        outcomes = await self._start_all(planned)
        if len(outcomes) > 1:
            outcomes = await self._begin_time(outcomes)
        self._in.snapshots.changed.set()
        if wanted.strict:
            await self._all_or_none(outcomes)
        refused: list[Outcome] = [
            self._in.limit_reached(caller.team) for _ in range(planned.refused)
        ]
        return Forked(planned.snapshot.id, outcomes + refused)

    async def _intend(
        self, caller: Caller, sandbox_id: SandboxId, wanted: Wanted
    ) -> Snapshot | _Planned:
        """Commit the intent to save a running source, or the children of a paused one."""
        async with self._in.db.transaction() as tx:
            await teams.lock_team(tx, caller.team_id)
            now = self._in.clock()
            if wanted.of_paused:
                source = await saving.settled(tx, caller, sandbox_id, now)
            else:
                source = await saving.running(tx, caller, sandbox_id, now, "forked")
            await self._room(tx, caller, wanted)
            if source.state is State.PAUSED:
                return await self._plan_paused(tx, caller, source, wanted)
            snapshot = saving.new_snapshot(source, SnapshotKind.FORK, now, memory=True)
            await self._in.snapshots.begin(tx, snapshot)
            return snapshot

    async def _plan_paused(
        self, tx: Tx, caller: Caller, source: Sandbox, wanted: Wanted
    ) -> _Planned:
        held = source.snapshot_id and await snapshots.hold(tx, source.snapshot_id)
        if not held:
            raise ConflictError(f'Sandbox "{source.id}" has no state to clone; resume it first')
        return await self._write_children(tx, caller, source, held, wanted)

    async def _plan_saved(
        self, caller: Caller, snapshot: Snapshot, report: SnapshotReport, wanted: Wanted
    ) -> _Planned:
        try:
            async with self._in.db.transaction() as tx:
                await teams.lock_team(tx, caller.team_id)
                if not await self._in.snapshots.saved(tx, snapshot, report):
                    raise saving.given_up()
                # Ended or paused since: its state is saved all the same.
                source = await store.find(tx, snapshot.sandbox_id)
                if source is None:
                    raise saving.given_up()
                return await self._write_children(tx, caller, source, snapshot, wanted)
        except ControlError:
            await saving.give_up(self._in, snapshot)
            raise

    async def _write_children(
        self, tx: Tx, caller: Caller, source: Sandbox, snapshot: Snapshot, wanted: Wanted
    ) -> _Planned:
        room = await self._room(tx, caller, wanted)
        timeout_s = wanted.timeout_s
        if timeout_s is None:
            timeout_s = PAUSED_TIMEOUT_S if source.state is State.PAUSED else source.timeout_s
        now = self._in.clock()
        # The last of them waits for its turn.
        rounds = -(-wanted.count // self._starts_at_once)
        limits = self._in.limits
        deadline = now + rounds * (limits.start_deadline(now) - now)
        children = [
            lineage.child(source, snapshot, now=now, timeout_s=timeout_s, start_deadline=deadline)
            for _ in range(min(room, wanted.count))
        ]
        for entry in children:
            await store.insert_sandbox(tx, entry)
        data = {"snapshot": snapshot.id, "children": [entry.id for entry in children]}
        await events.record(tx, source.team_id, source.id, kind=EventKind.FORKED, at=now, data=data)
        return _Planned(source, snapshot, children, wanted.count - len(children))

    async def _room(self, tx: Tx, caller: Caller, wanted: Wanted) -> int:
        """How many more sandboxes the team may have; refuses what cannot be done at all."""
        limit = self._in.limit(caller.team)
        if wanted.count > limit:
            raise InvalidRequestError(
                f"count is {wanted.count}, and your team may have {limit} sandboxes at once"
            )
        room = max(0, limit - await store.count_alive(tx, caller.team_id))
        if room == 0 or (wanted.strict and room < wanted.count):
            raise self._in.limit_reached(caller.team)
        return room

    async def _start_all(self, planned: _Planned) -> list[Outcome]:
        turn = asyncio.Semaphore(self._starts_at_once)

        async def start(entry: Sandbox) -> Outcome:
            async with turn:
                return await self._start(entry, planned)

        async with asyncio.TaskGroup() as group:
            starts = [group.create_task(start(entry)) for entry in planned.children]
        return [started.result() for started in starts]

    async def _start(self, entry: Sandbox, planned: _Planned) -> Outcome:
        spec, source = self._in.spec(entry, {}), planned.source
        if source.state is State.PAUSED and not source.pause_memory:
            spec = replace(spec, reboot=True)
        try:
            report = await self._in.nodes.client(entry.node_id).start(spec)
        except NodeError as error:
            await self._sandboxes.give_up(entry, str(error))
            return plan.start_error(error, entry.alias or entry.template_id)
        # None ends while others are still started: `_begin_time` has the last word.
        alone = len(planned.children) == 1
        waits_us = 0 if alone else max(0, entry.start_deadline - self._in.clock())
        running = await self._sandboxes.outcomes.started(
            entry,
            timeout_us=entry.timeout_s * MICROSECONDS + waits_us,
            changes=report.changes,
        )
        if running is None:
            await self._sandboxes.give_up(entry, "it was given up while it started")
            return saving.given_up()
        return self._in.created(running)

    async def _begin_time(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Have the time of all children begin now, when the caller is about to hear of them."""
        now = self._in.clock()
        async with self._in.db.transaction() as tx:
            settled = [
                await self._end_counted_from(tx, outcome, now)
                if isinstance(outcome, Created)
                else outcome
                for outcome in outcomes
            ]
        for outcome in settled:
            if isinstance(outcome, Created):
                self._in.outcomes.beginnings.tell(outcome.sandbox)
        self._in.outcomes.deadlines_changed.set()
        return settled

    async def _end_counted_from(self, tx: Tx, created: Created, now: int) -> Created:
        child = created.sandbox
        end_at = now + child.timeout_s * MICROSECONDS
        # Whoever found it in a list and gave it another end meanwhile meant that.
        if not await marks.settle_end(tx, child, end_at=end_at):
            return created
        return replace(created, sandbox=replace(child, end_at=end_at))

    async def _all_or_none(self, outcomes: Sequence[Outcome]) -> None:
        failed = [outcome for outcome in outcomes if isinstance(outcome, ControlError)]
        if not failed:
            return
        for outcome in outcomes:
            if isinstance(outcome, Created):
                await self._sandboxes.abandon(outcome.sandbox)
        raise failed[0]
