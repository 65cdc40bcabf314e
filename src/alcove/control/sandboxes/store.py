"""The SQL of sandboxes. Results are written guarded by generation and by the states they fit."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from alcove.control.db import Tx
from alcove.control.sandboxes.states import ALIVE, Event, State, sources, step
from alcove.control.sandboxes.tables import idempotency_keys, sandbox_pairs, sandboxes
from alcove.wire.ids import BuildId, NodeId, SandboxId, TeamId, TemplateId
from alcove.wire.states import StopReason


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox: what was meant, and what is known."""

    id: SandboxId
    generation: int
    state: State
    team_id: TeamId
    template_id: TemplateId
    build_id: BuildId
    alias: str | None
    node_id: NodeId
    vcpu_count: int
    memory_mib: int
    disk_mib: int
    envd_version: str
    created_at: int
    started_at: int
    end_at: int
    start_deadline: int
    """A start that has no result by then is given up by the reconcile step."""
    stopped_at: int | None
    stop_reason: StopReason | None
    metadata: dict[str, str]
    network: dict[str, Any]
    """The network settings as the client gave them."""
    allow_internet: bool | None
    public_traffic: bool
    keyed: bool
    """Made with an idempotency key: its maker will ask again, so a start is worth finishing."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which running sandboxes of a team to list, and in what order."""

    team_id: TeamId
    pairs: tuple[tuple[str, str], ...] = ()
    template_ids: Sequence[TemplateId] | None = None
    started_after: int | None = None
    descending: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """What the edge must know to reach a sandbox."""

    sandbox_id: SandboxId
    generation: int
    node_id: NodeId
    public_traffic: bool
    network: dict[str, Any]


# Statements of the hot path are built once: building costs more than SQLite's work on them.
_INSERT = insert(sandboxes)
_COUNT_ALIVE = (
    select(func.count())
    .select_from(sandboxes)
    .where(
        sandboxes.c.team_id == bindparam("team"),
        sandboxes.c.state.in_([state.value for state in sorted(ALIVE)]),
    )
)
_FIND_ROUTE = select(
    sandboxes.c.id,
    sandboxes.c.generation,
    sandboxes.c.node_id,
    sandboxes.c.public_traffic,
    sandboxes.c.network,
).where(
    sandboxes.c.id == bindparam("sandbox"),
    sandboxes.c.state == State.RUNNING.value,
    sandboxes.c.end_at > bindparam("now"),
)


async def insert_sandbox(tx: Tx, sandbox: Sandbox) -> None:
    values = {name: getattr(sandbox, name) for name in Sandbox.__dataclass_fields__}
    await tx.execute(_INSERT, values | {"state": sandbox.state.value})
    if sandbox.metadata:
        rows = [
            {"sandbox_id": sandbox.id, "digest": digest(*pair)} for pair in sandbox.metadata.items()
        ]
        await tx.execute(insert(sandbox_pairs), rows)


async def find(tx: Tx, sandbox_id: SandboxId) -> Sandbox | None:
    row = (await tx.execute(select(sandboxes).where(sandboxes.c.id == sandbox_id))).one_or_none()
    return None if row is None else _sandbox(row)


async def find_visible(tx: Tx, team_id: TeamId, sandbox_id: SandboxId, now: int) -> Sandbox | None:
    """A running sandbox of the team whose time is not over."""
    found = select(sandboxes).where(sandboxes.c.id == sandbox_id, _visible(team_id, now))
    row = (await tx.execute(found)).one_or_none()
    return None if row is None else _sandbox(row)


async def find_route(tx: Tx, sandbox_id: SandboxId, now: int) -> Route | None:
    row = (await tx.execute(_FIND_ROUTE, {"sandbox": sandbox_id, "now": now})).one_or_none()
    return None if row is None else Route(*row)


async def owned(tx: Tx, team_id: TeamId, sandbox_ids: Iterable[SandboxId]) -> list[SandboxId]:
    """Those of the ids that are or were sandboxes of the team."""
    found = select(sandboxes.c.id).where(
        sandboxes.c.team_id == team_id, sandboxes.c.id.in_(list(sandbox_ids))
    )
    return list((await tx.execute(found)).scalars())


async def page(
    tx: Tx, wanted: Filter, *, now: int, after: tuple[int, str] | None, limit: int
) -> list[Sandbox]:
    found = select(sandboxes).where(*_conditions(wanted, now))
    started, ident = sandboxes.c.started_at, sandboxes.c.id
    if after is not None:
        at, sandbox_id = after
        beyond = started < at if wanted.descending else started > at
        beyond_same = ident < sandbox_id if wanted.descending else ident > sandbox_id
        found = found.where(or_(beyond, and_(started == at, beyond_same)))
    order = (started.desc(), ident.desc()) if wanted.descending else (started.asc(), ident.asc())
    rows = await tx.execute(found.order_by(*order).limit(limit))
    return [_sandbox(row) for row in rows]


async def count(tx: Tx, wanted: Filter, *, now: int) -> int:
    counted = select(func.count()).select_from(sandboxes).where(*_conditions(wanted, now))
    found: int = (await tx.execute(counted)).scalar_one()
    return found


async def count_alive(tx: Tx, team_id: TeamId) -> int:
    counted: int = (await tx.execute(_COUNT_ALIVE, {"team": team_id})).scalar_one()
    return counted


async def count_by_state(tx: Tx) -> dict[State, int]:
    """How many sandboxes are in each of the living states."""
    counted = select(sandboxes.c.state, func.count()).group_by(sandboxes.c.state)
    rows = await tx.execute(counted.where(sandboxes.c.state.in_([state.value for state in ALIVE])))
    found = {State(state): number for state, number in rows}
    return {state: found.get(state, 0) for state in sorted(ALIVE)}


async def list_in(tx: Tx, states: Iterable[State], *, node_id: NodeId) -> list[Sandbox]:
    found = select(sandboxes).where(
        sandboxes.c.state.in_([state.value for state in states]), sandboxes.c.node_id == node_id
    )
    return [_sandbox(row) for row in await tx.execute(found)]


async def states_of(
    tx: Tx, sandbox_ids: Sequence[SandboxId], *, team_id: TeamId | None = None
) -> dict[SandboxId, tuple[State, int]]:
    """State and generation of the sandboxes that are known, or known as this team's."""
    of_team = () if team_id is None else (sandboxes.c.team_id == team_id,)
    found: dict[SandboxId, tuple[State, int]] = {}
    for begin in range(0, len(sandbox_ids), 500):
        rows = await tx.execute(
            select(sandboxes.c.id, sandboxes.c.state, sandboxes.c.generation).where(
                sandboxes.c.id.in_(sandbox_ids[begin : begin + 500]), *of_team
            )
        )
        found |= {row[0]: (State(row[1]), row[2]) for row in rows}
    return found


async def running_ids(tx: Tx, node_id: NodeId) -> set[SandboxId]:
    found = select(sandboxes.c.id).where(
        sandboxes.c.state == State.RUNNING.value, sandboxes.c.node_id == node_id
    )
    return set((await tx.execute(found)).scalars())


async def next_end(tx: Tx) -> int | None:
    """When the next running sandbox expires."""
    earliest = select(func.min(sandboxes.c.end_at))
    found: int | None = (
        await tx.execute(earliest.where(sandboxes.c.state == State.RUNNING.value))
    ).scalar_one_or_none()
    return found


async def mark_running(tx: Tx, sandbox: Sandbox, *, started_at: int, end_at: int) -> bool:
    return await _advance(tx, sandbox, Event.STARTED, {"started_at": started_at, "end_at": end_at})


async def mark_failed(tx: Tx, sandbox: Sandbox, *, at: int) -> bool:
    """The start failed. Its idempotency key is given back, so that a repeat starts anew."""
    if not await _advance(
        tx, sandbox, Event.FAILED, {"stopped_at": at, "stop_reason": StopReason.START_FAILED.value}
    ):
        return False
    await tx.execute(delete(idempotency_keys).where(idempotency_keys.c.sandbox_id == sandbox.id))
    await _drop_pairs(tx, [sandbox])
    return True


async def mark_stopping(
    tx: Tx,
    sandbox_id: SandboxId,
    reason: StopReason,
    *,
    team_id: TeamId | None = None,
) -> Sandbox | None:
    """Write the intent to stop; None when there is nothing to stop (any more).

    The first reason stays.
    """
    guard: list[ColumnElement[bool]] = [
        sandboxes.c.id == sandbox_id,
        sandboxes.c.state.in_([state.value for state in sources(Event.STOP)]),
    ]
    if team_id is not None:
        guard.append(sandboxes.c.team_id == team_id)
    changed = await tx.execute(
        update(sandboxes)
        .where(*guard)
        .values(
            state=State.STOPPING.value,
            stop_reason=func.coalesce(sandboxes.c.stop_reason, reason.value),
        )
        .returning(*sandboxes.c)
    )
    row = changed.one_or_none()
    return None if row is None else _sandbox(row)


async def mark_expired(tx: Tx, *, now: int, limit: int) -> list[Sandbox]:
    """Write the intent to stop those whose time is over, the longest overdue first."""
    over = (sandboxes.c.state == State.RUNNING.value, sandboxes.c.end_at <= now)
    chosen = select(sandboxes.c.id).where(*over).order_by(sandboxes.c.end_at).limit(limit)
    changed = await tx.execute(
        update(sandboxes)
        # Guarded once more: who was extended between the choice and the change lives on.
        .where(sandboxes.c.id.in_(chosen), *over)
        .values(state=step(State.RUNNING, Event.STOP).value, stop_reason=StopReason.TIMEOUT.value)
        .returning(*sandboxes.c)
    )
    return [_sandbox(row) for row in changed]


async def mark_stopped(
    tx: Tx, gone: Sequence[Sandbox], reason: StopReason, *, at: int
) -> list[Sandbox]:
    """Write down that these are gone; returns those that had not been before."""
    seen = tuple_(sandboxes.c.id, sandboxes.c.generation, sandboxes.c.state)
    for sandbox in gone:
        assert step(sandbox.state, Event.GONE) is State.STOPPED
    changed = await tx.execute(
        update(sandboxes)
        .where(seen.in_([(entry.id, entry.generation, entry.state.value) for entry in gone]))
        .values(state=State.STOPPED.value, stopped_at=at, stop_reason=reason.value)
        .returning(sandboxes.c.id)
    )
    ids = set(changed.scalars())
    stopped = [sandbox for sandbox in gone if sandbox.id in ids]
    await _drop_pairs(tx, stopped)
    return stopped


async def change_end(
    tx: Tx, sandbox: Sandbox, *, end_at: int, now: int, only_extend: bool
) -> int | None:
    """Set when a visible sandbox ends, and return it; None when it is no longer visible."""
    value: Any = end_at
    if only_extend:
        # Decided in the database: two calls at once must not shorten each other's extension.
        value = case((sandboxes.c.end_at > end_at, sandboxes.c.end_at), else_=end_at)
    changed = await tx.execute(
        update(sandboxes)
        .where(
            sandboxes.c.id == sandbox.id,
            sandboxes.c.generation == sandbox.generation,
            _visible(sandbox.team_id, now),
        )
        .values(end_at=value)
        .returning(sandboxes.c.end_at)
    )
    written: int | None = changed.scalar_one_or_none()
    return written


async def expedite_starts(tx: Tx, now: int) -> None:
    """Give up on every start: the process that was to finish them is gone."""
    await tx.execute(
        update(sandboxes)
        .where(sandboxes.c.state == State.STARTING.value)
        .values(start_deadline=now)
    )


async def purge(tx: Tx, *, before: int, limit: int) -> int:
    """Forget sandboxes that ended long ago."""
    old = select(sandboxes.c.id).where(sandboxes.c.stopped_at < before).limit(limit)
    ids = list((await tx.execute(old)).scalars())
    await tx.execute(delete(sandbox_pairs).where(sandbox_pairs.c.sandbox_id.in_(ids)))
    await tx.execute(delete(sandboxes).where(sandboxes.c.id.in_(ids)))
    return len(ids)


def digest(key: str, value: str) -> str:
    """Stands for one metadata pair; the length keeps ("a", "bc") and ("ab", "c") apart."""
    return hashlib.sha256(f"{len(key)}:{key}{value}".encode()).hexdigest()


async def _advance(tx: Tx, sandbox: Sandbox, event: Event, values: dict[str, Any]) -> bool:
    changed = await tx.execute(
        update(sandboxes)
        .where(
            sandboxes.c.id == sandbox.id,
            sandboxes.c.generation == sandbox.generation,
            sandboxes.c.state == sandbox.state.value,
        )
        .values(state=step(sandbox.state, event).value, **values)
    )
    return changed.rowcount == 1


async def _drop_pairs(tx: Tx, ended: Iterable[Sandbox]) -> None:
    ids = [sandbox.id for sandbox in ended if sandbox.metadata]
    if ids:
        await tx.execute(delete(sandbox_pairs).where(sandbox_pairs.c.sandbox_id.in_(ids)))


def _visible(team_id: TeamId, now: int) -> ColumnElement[bool]:
    return and_(
        sandboxes.c.team_id == team_id,
        sandboxes.c.state == State.RUNNING.value,
        sandboxes.c.end_at > now,
    )


def _conditions(wanted: Filter, now: int) -> list[ColumnElement[bool]]:
    conditions = [_visible(wanted.team_id, now)]
    if wanted.template_ids is not None:
        conditions.append(sandboxes.c.template_id.in_(wanted.template_ids))
    if wanted.started_after is not None:
        conditions.append(sandboxes.c.started_at >= wanted.started_after)
    for key, value in wanted.pairs:
        matching = select(sandbox_pairs.c.sandbox_id).where(
            sandbox_pairs.c.digest == digest(key, value)
        )
        conditions.append(sandboxes.c.id.in_(matching))
    return conditions


def _sandbox(row: Any) -> Sandbox:
    values = dict(row._mapping)  # noqa: SLF001 - public API of SQLAlchemy despite its name
    reason = values["stop_reason"]
    values["state"] = State(values["state"])
    values["stop_reason"] = None if reason is None else StopReason(reason)
    return Sandbox(**values)
